"""One reading of answers and references for every command, and one factory of checkers."""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal

import pytest

from hf_judge.checking.correctness import CHECKERS, is_right, make_checker, needed_key, reference
from hf_judge.cli.inputs import checker_of
from hf_judge.tasks.files import read_prompts
from hf_judge.tasks.load import load_task

REFERENCES = ["#### 42", "42 apples", "**42**", "$42", "42", 42, 42.0, r"\boxed{42}", "４２", "reasons: 6*7\n#### 42"]


def gives_a_number(response, task):
    return Decimal(response)


def gives_text(response, task):
    return response


@pytest.mark.parametrize("written", REFERENCES)
def test_a_reference_is_read_alike_wherever_it_is_used(tmp_path, written):
    row = {"prompt": "Q?", "answer": written}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = load_task(str(tmp_path / "tasks.jsonl"), 0, checker="numeric").examples
    checker = make_checker("numeric")
    ((_, task),) = read_prompts(str(tmp_path / "tasks.jsonl"), checker)
    for response, right in (("So it is 42.", True), ("So it is 41.", False), ("none", False)):
        assert example.is_right(response) is right
        assert is_right(checker, response, task) is right


@pytest.mark.parametrize(
    ("name", "answer", "right", "wrong"),
    [
        ("numeric", "3/4", r"\frac{3}{4}", "4"),
        ("numeric", 12345678901234567890123, "It is 12,345,678,901,234,567,890,123.", "12345678901234567890124"),
        (r"numeric:answer is (\S+)", "5", "The answer is 5. Not 7", "The answer is 7. Not 5"),
        ("regex:(?:is) (\\w+)", "blue", "It is blue", "It is red"),
        ("regex:(?:is) (\\w+)", "it is blue", "It is blue", "blue"),
        ("choice", "B", "The answer is **(B)**.", "The answer is A dog, so C"),
        ("choice", "(b)", r"\boxed{\text{B}}", r"\boxed{C}"),
        ("choice", "Answer: Ｂ", "答案\nB", "the answer is a matter of taste"),
        ("test_checking_correctness:gives_a_number", "1,000", "1000.0", "1000.1"),
        ("test_checking_correctness:gives_text", " yes", "yes ", "no"),
    ],
)
def test_right_and_wrong(name, answer, right, wrong):
    checker, task = make_checker(name), {"prompt": "", "answer": answer}
    assert is_right(checker, right, task)
    assert not is_right(checker, wrong, task)


def test_math_answers():
    pytest.importorskip("math_verify")
    checker = make_checker("math")
    for answer, right, wrong in [
        (r"\frac{\sqrt{2}}{2}", r"It is $\boxed{\frac{1}{\sqrt{2}}}$.", r"$\boxed{\frac{\sqrt{3}}{2}}$"),
        ("x+1", r"$\boxed{1+x}$", r"$\boxed{1}$"),
        ("12345678901234567890.5", r"$\boxed{12345678901234567890.5}$", r"$\boxed{12345678901234567890.6}$"),
        ("0.75", r"$\boxed{\frac34}$", r"$\boxed{0.7500000001}$"),
        (r"\{1,2\}", r"$\boxed{\{2,1\}}$", r"$\boxed{\{2,3\}}$"),
    ]:
        task = {"answer": answer}
        assert is_right(checker, right, task), answer
        assert not is_right(checker, wrong, task), answer


def test_the_checker_math_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-judge\[math\]'"):
        make_checker("math")


def test_both_spellings_of_a_pattern_make_the_same_checker():
    options = {"pattern": r"is (\d+)", "allow_code_execution": False}
    by_option = checker_of(argparse.Namespace(checker="numeric", **options), None)
    assert by_option.name == make_checker(r"numeric:is (\d+)").name
    assert by_option("is 5, not 6", {}) == 5
    with pytest.raises(ValueError, match="two patterns"):
        make_checker("regex:a", pattern="b")
    with pytest.raises(ValueError, match="--pattern is for the checkers numeric and regex"):
        make_checker("choice", pattern="b")


@pytest.mark.parametrize("name", [None, "", "magic", "choice:x", "unit_tests:x", ":f", "module:", "math:x"])
def test_unknown_checkers_are_refused_with_the_list(name):
    with pytest.raises(ValueError, match="must be one of numeric, numeric:PATTERN, regex:PATTERN, choice, math"):
        make_checker(name)
    assert len(CHECKERS) == 12


def test_an_unreadable_reference_is_told_before_any_work():
    numeric = make_checker("numeric")
    with pytest.raises(ValueError, match="finds no answer in 'answer': 'many'"):
        reference(numeric, {"answer": "many"})
    with pytest.raises(ValueError, match="has no 'answer'"):
        reference(numeric, {"prompt": "Q"})
    with pytest.raises(ValueError, match="gives the number 5, 'answer' is none"):
        is_right(gives_a_number, "5", {"answer": "many"})
    assert [needed_key(check) for check in (numeric, gives_text)] == ["answer", None]


def test_a_function_that_cannot_compare_is_told_with_file_and_line(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "a", "answer": "5"}\n{"prompt": "b", "answer": "many"}\n')
    good, bad = load_task(str(path), 0, checker="test_checking_correctness:gives_a_number").examples
    assert good.is_right("5.0")
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 2: the checker gives the number 5, 'answer' is none"):
        bad.is_right("5")


def test_calibrate_names_file_and_line_of_an_unreadable_reference(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "a", "answer": "5"}\n{"prompt": "b", "answer": "many"}\n')
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 2: .*finds no answer"):
        read_prompts(str(path), make_checker("numeric"))
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 2: .*finds no answer"):
        load_task(str(path), 0, checker="numeric")


def wants_nothing():
    return 1


@pytest.mark.parametrize("name", ["os:getcwd", "test_checking_correctness:wants_nothing"])
def test_a_function_of_other_arguments_is_no_checker(name):
    with pytest.raises(ValueError, match=rf"'{name}' must take \(response, task\), got"):
        make_checker(name)


def test_a_branch_without_the_group_is_no_answer():
    checker = make_checker("numeric", pattern=r"is (\d+)|no (?:idea|way)")
    assert checker("It is 5, no idea", {}) == 5
    assert checker("no idea", {}) is None


def test_a_number_that_json_cannot_hold(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "Q", "answer": 1e999}\n')
    with pytest.raises(ValueError, match="tasks.jsonl, line 1: the number 1e999 is too large"):
        load_task(str(path), 0, checker="regex:(.*)")
