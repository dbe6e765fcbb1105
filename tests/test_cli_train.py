"""The five commands that make a judge, one after the other on files, and what they say when something is missing."""

import json

import pytest
from test_labelling_mining import DRAFT, TARGET, TASKS
from test_labelling_responses import TOKENIZER
from tiny_models import save_models

from hf_judge import JudgeHead
from hf_judge.cli.commands import main
from hf_judge.labelling.responses import read_jsonl


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), TOKENIZER, target=TARGET, draft=DRAFT)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(task | {"answer": "x"}) + "\n" for task in TASKS))
    return path


def run(*arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code


def wrote_something(response, task):
    return bool(response)


def test_from_prompts_to_a_calibrated_head(models, prompts, tmp_path, capsys):
    pair = ("--target", models / "target", "--draft", models / "draft")
    labels, features, head = tmp_path / "labels.jsonl", tmp_path / "features", tmp_path / "head"
    mine = ("mine", *pair, "--prompts", prompts, "--checker", "test_labelling_mining:checker", "--output", labels)
    run(*mine, "--max-new-tokens", 14, code=2)  # random models never end
    assert "answers are cut off at 14 tokens" in capsys.readouterr().err
    mine += ("--force",)
    run(*mine, "--max-new-tokens", 14)
    assert "swaps kept" in capsys.readouterr().out
    assert len(list(read_jsonl(labels))) > 20
    before = labels.read_bytes()
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"prompt": "another<|assistant|>", "answer": "x"}) + "\n")
    run(*(others if word == prompts else word for word in mine), "--max-new-tokens", 14, code=2)
    assert "holds labels of 9 prompts that are not among these 1" in capsys.readouterr().err
    assert labels.read_bytes() == before
    run("info", labels, "--tokenizer", models / "target", "--samples", 1)
    said = capsys.readouterr().out
    assert "responses to 9 prompts" in said
    assert "acceptable and" in said
    assert "[[" in said
    run("features", "--target", models / "target", "--data", labels, "--output", features, "--hidden-state", "pre_norm")
    assert "tokens x 32" in capsys.readouterr().out
    run("info", features)
    assert "'pre_norm'" in capsys.readouterr().out
    train = ("train", "--features", features, "--output-dir", head, "--validation-fraction", 0.3)
    run(*train, "--l2-grid", 0.1, 0.01, "--seed", 2)
    assert "AUC" in capsys.readouterr().out
    assert JudgeHead.from_pretrained(head).config.hidden_state == "pre_norm"
    # nine prompts cannot certify 5%: nothing is chosen, the head keeps its threshold
    run("calibrate", "--head", head, "--features", features, code=2)
    assert "nothing was chosen" in capsys.readouterr().err
    assert JudgeHead.from_pretrained(head).config.threshold == 0.5
    by_task = ("--margin", 1.0, "--checker", "test_cli_train:wrote_something", "--max-new-tokens", 6)
    run("calibrate", "--head", head, *by_task, *pair, "--prompts", prompts, "--thresholds", 0.7, 0.9)
    assert "threshold 0.7: accuracy" in capsys.readouterr().out
    assert JudgeHead.from_pretrained(head).config.threshold == 0.7
    run("info", head)
    assert "by_accuracy" in capsys.readouterr().out


def test_draft_answers_with_a_locating_function(models, prompts, tmp_path, capsys):
    arguments = ("mine", "--source", "draft", "--draft", models / "draft", "--prompts", prompts)
    run(*arguments, "--output", tmp_path / "d.jsonl", code=2)
    assert "--locate module:function" in capsys.readouterr().err
    run(*arguments, "--output", tmp_path / "d.jsonl", "--locate", "test_labelling_mining:locate", "--max-new-tokens", 8)
    assert "answers or pieces with a mistake" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checker", "regex"), "needs --pattern"),
        (("--checker", "magic"), "--checker must be one of numeric"),
        (("--checker", "nowhere:f"), "'nowhere:f' cannot be imported"),
        (("--checker", "unit_tests"), "allow_code_execution=True"),
    ],
)
def test_checkers_that_cannot_be_made(models, prompts, tmp_path, capsys, arguments, message):
    pair = ("--target", models / "target", "--draft", models / "draft")
    run("mine", *pair, "--prompts", prompts, "--output", tmp_path / "x.jsonl", *arguments, code=2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "line 1: "),
        ('{"question": 1}\n', "line 1: expected a JSON object with 'prompt'"),
        ("\n", "holds no prompts"),
    ],
)
def test_broken_prompts_are_named(models, tmp_path, capsys, text, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    pair = ("--target", models / "target", "--draft", models / "draft")
    run("mine", *pair, "--prompts", path, "--output", tmp_path / "x.jsonl", code=2)
    assert message in capsys.readouterr().err


def test_mine_swaps_needs_a_target(models, prompts, tmp_path, capsys):
    run("mine", "--draft", models / "draft", "--prompts", prompts, "--output", tmp_path / "x", code=2)
    assert "--source swap needs --target" in capsys.readouterr().err


def test_calibrate_needs_one_way(tmp_path, capsys):
    run("calibrate", "--head", tmp_path, code=2)
    assert "either --features (by risk) or --margin" in capsys.readouterr().err
    run("info", tmp_path / "nothing", code=2)
    assert "is no file, directory or Hub repository" in capsys.readouterr().err
