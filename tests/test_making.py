"""From a pair to a judge in one call: what it is worth, which prompts go where, kills, refusals, and the command."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, replace

import pytest
import torch
from test_labelling_mining import DRAFT, TARGET
from test_labelling_responses import TOKENIZER
from tiny_models import save_models

from hf_judge import JudgeHead
from hf_judge.cli.commands import main
from hf_judge.labelling.responses import read_jsonl
from hf_judge.making.make import STEPS, make
from hf_judge.making.preflight import CannotPay, ModelAnswers, Preflight, preflight
from hf_judge.making.problems import divide, world_problems
from hf_judge.making.settings import MakeSettings
from hf_judge.making.worth import Text, count_rounds
from hf_judge.tasks.problems import Problems

SETTINGS = MakeSettings(
    max_new_tokens=12,
    batch_size=16,
    margin=1.0,
    num_assistant_tokens=4,
    preflight_prompts=6,
    force=True,
    max_held_out=4,
)


def checker(response, task):
    """An answer that some swaps change and others do not."""
    return str(sum(map(ord, response[-6:])) % 3)


def problems(n=60, **more):
    rows = [{"prompt": "Q " + "more " * (i % 4) + f"{i}<|assistant|>", "answer": "1"} | more for i in range(n)]
    return Problems("sums", rows, checker, [f"line {i}" for i in range(n)])


def made(output, said=None, settings=SETTINGS, **more):
    said = [] if said is None else said
    return make(TARGET, DRAFT, TOKENIZER, more.pop("problems", problems()), output, settings=settings, say=said.append)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """The folder of a judge that the command made, and what it wrote to `--json`."""
    folder = tmp_path_factory.mktemp("made")
    save_models(folder, TOKENIZER, target=TARGET, draft=DRAFT)
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in problems().rows))
    pair = ["--target", str(folder / "target"), "--draft", str(folder / "draft"), "--batch-size", "16"]
    few = ["--max-new-tokens", "12", "--margin", "1", "--num-assistant-tokens", "4", "--max-held-out", "4", "--force"]
    few += ["--preflight-prompts", "6", "--checker", "test_making:checker", "--json", str(folder / "found.json")]
    assert main(["make", *pair, *few, "--task", str(path), "--output-dir", str(folder / "judge")]) == 0
    return folder / "judge", json.loads((folder / "found.json").read_text())


def test_the_folder_is_the_head(judge):
    output, found = judge
    head = JudgeHead.from_pretrained(output)
    assert head.config.threshold == found["calibrated"]["threshold"]
    assert found["calibrated"]["kind"] in head.config.provenance["calibration"]
    assert any("problems.jsonl" in name for name in head.config.provenance["measured"]["evaluate"])
    assert (output / "README.md").read_text().count("accepted") > 1
    assert (output / "report" / "report.html").is_file()
    assert (output / "figures" / "judge_curves.png").is_file()
    assert found["in_plain_words"].startswith("Gained: ")
    assert found["measured"]["judged"]["n"] == 4
    assert found["worth"]["n_prompts"] == 6


def test_no_prompt_stands_on_two_sides(judge):
    output, _ = judge
    parts = divide(problems(), None, SETTINGS)
    sides = [set(part.hashes()) for part in (parts.fit, parts.calibrate, parts.held_out)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert min(map(len, sides)) > 3
    assert {row.prompt_hash for row in read_jsonl(output / "journal" / "labels.jsonl")} <= sides[0] | sides[1]
    fit = set(json.loads((output / "journal" / "head" / "fit_prompts.json").read_text()))
    assert fit <= sides[0]
    twice = divide(world_problems(80, part="label"), world_problems(80, part="label").first(30), SETTINGS)
    assert len(twice.held_out) == 30
    assert len(twice.fit) + len(twice.calibrate) == 50


def test_a_run_that_is_killed_anywhere_goes_on(judge, tmp_path):
    """Each run dies one line further than the one before; the last one finds what a whole run found."""

    class Killed(BaseException):
        pass

    lines = []

    def say(text):
        lines.append(text)
        if sum(line.startswith("[") and "done before" not in line for line in lines) == 2:
            raise Killed

    for _ in STEPS[:-1]:
        lines.clear()
        with pytest.raises(Killed):
            make(TARGET, DRAFT, TOKENIZER, problems(), tmp_path, settings=SETTINGS, say=say)
    lines.clear()
    again = make(TARGET, DRAFT, TOKENIZER, problems(), tmp_path, settings=SETTINGS, say=lines.append)
    assert sum("done before" in line for line in lines) == len(STEPS) - 1
    _, whole = judge
    assert asdict(again.calibrated) == whole["calibrated"]
    assert asdict(again.mined)["n_mistakes"] == whole["mined"]["n_mistakes"]
    for part in ("plain", "strict", "judged"):
        for key in ("accuracy", "accepted_per_forward", "answer_tokens"):
            assert getattr(again.measured, part)[key] == whole["measured"][part][key]


def test_a_finished_run_does_nothing_again(judge):
    output, found = judge
    forwards, said = [], []
    handle = TARGET.register_forward_pre_hook(lambda *_: forwards.append(1))
    again = made(output, said)
    handle.remove()
    assert forwards == []
    assert asdict(again) == found | {"output_dir": str(output)}
    assert sum("done before" in line for line in said) == len(STEPS)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"settings": MakeSettings(max_new_tokens=11, force=True)}, "max_new_tokens"),
        ({"problems": problems(50)}, "problems"),
        ({"problems": problems(60, answer="2")}, "problems"),
    ],
)
def test_other_work_is_never_replaced(judge, change, what):
    output, _ = judge
    before = (output / "adapter_config.json").read_bytes()
    with pytest.raises(ValueError, match=f"other settings .*{what}"):
        made(output, **change)
    assert (output / "adapter_config.json").read_bytes() == before


def test_too_few_problems_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 problems are too few: none is left for the part"):
        made(tmp_path, problems=problems(3))


def test_rounds_of_a_text():
    """Drafts of 4: matched 0-3 and the target's 4; 5 accepted, 6 rejected; 7-10 and 11; then 12."""
    assert count_rounds(Text(13, (6,)), 4) == 4
    assert count_rounds(Text(13, ()), 12) == 1
    assert count_rounds(Text(3, (0, 1, 2)), 8) == 3
    assert count_rounds(Text(0, ()), 8) == 0


def answers(right, length=5, n_parameters=100):
    n = len(right)
    return ModelAnswers(["text"] * n, [[1] * length] * n, right, [True] * n, 1.0, n_parameters)


@pytest.mark.parametrize(
    ("target", "draft", "said"),
    [
        (answers([False] * 19 + [True]), answers([False] * 20, n_parameters=10), "the target is right in 1 of 20"),
        (answers([True] * 20), answers([True] * 20, n_parameters=200), "swapped"),
        (answers([True] * 10 + [False] * 10), answers([True] * 20, n_parameters=10), "swapped"),
        (answers([True] * 20, length=12), answers([True] * 20, n_parameters=10), "cut off at 12 tokens"),
        (answers([True] * 20), answers([True] * 15 + [False] * 5, n_parameters=10), None),
    ],
)
def test_the_preflight_says_what_looks_wrong(target, draft, said):
    looked = Preflight([f"prompt {i}" for i in range(20)], target, draft, 12)
    assert said in " ".join(looked.faults()) if said else looked.faults() == []
    assert sum("prompt: " in line for line in looked.lines()) == 3


def test_the_preflight_calls_the_checker_once_for_each_answer():
    """Unit tests run for long; an answer that cannot be compared is still counted once."""
    texts = []

    def counting(response, task):
        texts.append(response)
        return 5

    asked = replace(problems(6), checker=counting)
    asked.rows[0]["answer"] = "no number"
    looked = preflight(TARGET, DRAFT, TOKENIZER, asked, max_new_tokens=4, batch_size=3)
    assert len(texts) == 12
    assert looked.target.right == [None] + [False] * 5
    assert len(looked.target.found) == 6


@pytest.mark.parametrize(("n_more", "said"), [(1, "swapped"), (0, "the target is right in 0 of 6")])
def test_what_looks_wrong_is_said_before_costs_are_measured(tmp_path, monkeypatch, n_more, said):
    """A draft that is larger than the target comes first: a swapped target is often wrong too."""
    draft = deepcopy(TARGET)
    draft.more = torch.nn.Parameter(torch.zeros(n_more))
    monkeypatch.setattr("hf_judge.doctor.run.check_costs", lambda *_: pytest.fail("costs were measured"))
    settings = MakeSettings(max_new_tokens=12, preflight_prompts=6)
    with pytest.raises(CannotPay, match=said):
        make(TARGET, draft, TOKENIZER, problems(60, answer="none"), tmp_path, settings=settings)


def test_it_stops_where_nothing_can_be_gained(tmp_path):
    """A target as its own draft: a draft costs a whole forward, and makes no mistake."""
    said = []
    settings = MakeSettings(max_new_tokens=6, preflight_prompts=6)
    with pytest.raises(CannotPay, match="--force goes on all the same"):
        make(TARGET, TARGET, TOKENIZER, problems(), tmp_path, settings=settings, say=said.append)
    assert not (tmp_path / "adapter_config.json").exists()
    assert not any(line.startswith("[3/") for line in said)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "nowhere", "--draft", "nowhere"], "make needs --task"),
        (["--task", "nowhere.jsonl"], "no task 'nowhere.jsonl'"),
        (["--task", "mt-bench"], "no right answers"),
        (["--task", "humaneval"], "executes code written by a model"),
        (["--task", "world", "--risk", "2"], "risk must be between 0 and 1"),
        (["--task", "world", "--push", "a b"], "repo_id must be user/repo"),
        (["--task", "world", "--json", "."], "is a folder"),
    ],
)
def test_wrong_words_are_refused_before_any_model_runs(tmp_path, capsys, more, message):
    assert main(["make", "--output-dir", str(tmp_path / "judge"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "judge").exists()
