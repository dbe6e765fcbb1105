"""Tasks by name: each asks and checks made entries of its dataset's layout; names, splits and own tasks are read."""

import json
import sys

import pytest
from task_entries import ENTRIES

from hf_judge.checking.correctness import is_right, make_checker
from hf_judge.cli.commands import main
from hf_judge.labelling.prompts import prompt_of
from hf_judge.tasks.load import load_task
from hf_judge.tasks.named import TaskName, find_named, is_named, parse_name
from hf_judge.tasks.table import TASKS


def test_every_task_of_the_table_has_entries():
    assert set(TASKS) - set(ENTRIES) == {"ifeval", "spec-bench"}  # tested below


@pytest.mark.parametrize("name", ENTRIES)
def test_a_task_asks_and_checks(name):
    spec = TASKS[name]
    for entry, right, wrong in ENTRIES[name]:
        assert set(spec.columns) <= set(entry)
        row = spec.make(entry)
        asked = prompt_of(row).text
        question = next(entry[key] for key in spec.columns if isinstance(entry[key], str | list))
        assert (question if isinstance(question, str) else question[0]) in asked
        if right is not None:
            checker = make_checker(spec.checker, allow_code_execution=True)
            assert is_right(checker, right, row)
            assert not is_right(checker, wrong, row)


@pytest.mark.parametrize("name", ["gpqa", "truthfulqa"])
def test_options_are_shuffled_by_the_question_alone(name):
    entry = ENTRIES[name][0][0]
    key = "Question" if name == "gpqa" else "question"
    rows = [TASKS[name].make(entry | {key: f"Question {i}?"}) for i in range(40)]
    assert rows == [TASKS[name].make(entry | {key: f"Question {i}?"}) for i in range(40)]
    assert len({row["answer"] for row in rows}) == (4 if name == "gpqa" else 2)
    right = "iron" if name == "gpqa" else "that"
    for row in rows:
        assert f"\n{row['answer']}. {right}\n" in prompt_of(row).text
        assert is_right(make_checker("choice"), f"The best answer is {row['answer']}.", row)


def test_names():
    assert parse_name("gsm8k") == TaskName("gsm8k")
    assert parse_name("gsm8k:train:300") == TaskName("gsm8k", None, "train", 300)
    assert parse_name("gsm8k:20") == TaskName("gsm8k", None, None, 20)
    assert parse_name("gsm8k@abc:train") == TaskName("gsm8k", "abc", "train")
    for text, message in (("gsm9k", "no task 'gsm9k'"), ("gsm8k:a:b", "expected NAME"), ("gsm8k:0", "at least 1")):
        with pytest.raises(ValueError, match=message):
            parse_name(text)


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_named("gsm8k")
    (tmp_path / "gsm8k").write_text('{"prompt": "Q", "answer": 1}\n')
    assert not is_named("gsm8k")


class TestSpecBench:
    @pytest.fixture(autouse=True)
    def file(self, tmp_path, monkeypatch):
        from dataclasses import replace

        path = tmp_path / "question.jsonl"
        kinds = ("writing", "qa", "math_reasoning", "qa")
        rows = [{"question_id": i, "category": kind, "turns": [f"{kind} {i}", "more"]} for i, kind in enumerate(kinds)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setitem(TASKS, "spec-bench", replace(TASKS["spec-bench"], dataset=str(path)))

    def test_kinds(self):
        assert [prompt_of(row).text for row in find_named("spec-bench:qa").problems().rows] == ["qa 1", "qa 3"]
        assert [prompt_of(row).text for row in find_named("spec-bench:multi-turn").problems().rows] == ["writing 0"]
        assert len(find_named("spec-bench:2").problems().rows) == 2

    def test_it_is_for_speed_alone(self, capsys):
        assert load_task("spec-bench", 3, needs_answers=False).examples[0].is_right is None
        with pytest.raises(ValueError, match="speed alone"):
            load_task("spec-bench", 3)
        assert main(["evaluate", "--task", "spec-bench:qa", "--quick"]) == 2
        assert "has no right answers" in capsys.readouterr().err


class TestOwnTasks:
    def yaml(self, tmp_path, text="data: d.jsonl\nprompt: 'Q: {{ question }}'\nanswer: solution\nchecker: numeric\n"):
        (tmp_path / "d.jsonl").write_text('{"question": "1+1", "solution": "2"}\n{"question": "1+2", "solution": 3}\n')
        (tmp_path / "own.yaml").write_text(text)
        return str(tmp_path / "own.yaml")

    def test_yaml(self, tmp_path):
        task = load_task(self.yaml(tmp_path), 0)
        assert [example.prompt.text for example in task.examples] == ["Q: 1+1", "Q: 1+2"]
        assert task.examples[1].is_right("It is 3.")
        assert not task.examples[1].is_right("It is 4.")
        assert len(load_task(self.yaml(tmp_path), 1).examples) == 1

    def test_python(self, tmp_path):
        path = tmp_path / "own.py"
        path.write_text(
            "checker = 'contains'\ndef rows():\n    yield {'prompt': 'Capital of France?', 'answer': 'Paris'}\n"
        )
        (example,) = load_task(str(path), 0).examples
        assert example.is_right("It is paris, I think.")
        assert not example.is_right("It is Parisian.")

    def test_another_checker_needs_nothing_of_its_own(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "math_verify", None)
        text = "data: d.jsonl\nprompt: 'Q: {{ question }}'\nanswer: solution\nchecker: math\n"
        with pytest.raises(ImportError, match="math-verify"):
            load_task(self.yaml(tmp_path, text), 0)
        assert load_task(self.yaml(tmp_path, text), 0, checker="numeric").examples[0].is_right("It is 2.")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("data: d.jsonl\n", "missing: \\['checker', 'prompt'\\]"),
            ("- 1\n", "expected the keys"),
            ("a: [\n", "not valid YAML"),
            ("data: d.jsonl\nprompt: '{{ question '\nanswer: solution\nchecker: numeric\n", "no jinja2 template"),
            (
                "data: d.jsonl\nprompt: '{{ other }}'\nanswer: solution\nchecker: numeric\n",
                "line 1: .*'other' is undefined",
            ),
            ("data: d.jsonl\nprompt: x\nanswer: other\nchecker: numeric\n", "line 1: expected the key 'other'"),
            ("data: d.jsonl\nprompt: x\nanswer: solution\nchecker: 3\n", "checker must be text, got a number"),
            ("data: d.jsonl\nprompt: x\nanswer: solution\nchecker: magic\n", "--checker must be one of"),
        ],
    )
    def test_what_is_wrong_with_it(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=message):
            load_task(self.yaml(tmp_path, text), 0)

    def test_a_missing_file(self):
        with pytest.raises(FileNotFoundError, match="no file at 'nowhere.yaml'"):
            load_task("nowhere.yaml", 0)


def test_json_of_a_schema():
    pytest.importorskip("jsonschema")
    checker, task = make_checker("json_schema"), {"schema": {"type": "object", "required": ["a"]}}
    assert is_right(checker, 'Here:\n```json\n{"a": 1}\n```', task)
    assert not is_right(checker, '{"b": 1}', task)
    assert not is_right(checker, "no JSON", task)
    with pytest.raises(ValueError, match="is no JSON schema"):
        is_right(checker, "{}", {"schema": {"type": 3}})


def test_instructions_of_ifeval():
    pytest.importorskip("lm_eval.tasks.ifeval.utils")
    entry = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    row, checker = TASKS["ifeval"].make(entry), make_checker("ifeval")
    assert is_right(checker, "no commas here", row)
    assert not is_right(checker, "one, two", row)


def test_exact():
    checker = make_checker("exact")
    assert is_right(checker, " The  end\n", {"answer": "The end"})
    assert not is_right(checker, "the end", {"answer": "The end"})


def test_the_command_lists_them(capsys):
    assert main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in TASKS)
    assert "openai/gsm8k (main), split test; licence MIT" in said


def test_unit_tests_need_consent():
    with pytest.raises(ValueError, match="executes code written by a model"):
        load_task("humaneval", 1)
