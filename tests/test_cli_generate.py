"""`hf-judge generate`: what is drafted, and what is marked."""

from __future__ import annotations

import pytest
import torch

from hf_judge import AutoJudgeModelForCausalLM
from hf_judge.cli import main
from hf_judge.tiny import HOME

QUESTION = "Ivy has 36 pens. Ivy gets 4 more. Ivy loses 3. Ivy gets 3 more. Ivy finds 8 more. How many pens are left?"
ARGUMENTS = ["generate", "--target", str(HOME / "target"), "--chat", "--prompt", QUESTION]


def test_without_a_judge_nothing_is_drafted_or_marked(capsys):
    assert main(ARGUMENTS) == 0
    printed = capsys.readouterr()
    assert "48 pens left" in printed.out
    assert not set("{}[]<>") & set(printed.out)
    assert "prompt lookup" not in printed.err


def test_prompt_lookup_in_place_of_a_draft_is_told(capsys):
    assert main([*ARGUMENTS, "--judge", str(HOME / "judge")]) == 0
    printed = capsys.readouterr()
    assert "bonus: the target's own token" in printed.out
    assert "hf-judge: warning: no --draft: drafting by prompt lookup, 10 tokens at most" in printed.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_a_device_that_is_not_there(capsys):
    assert main([*ARGUMENTS, "--device-map", "cuda"]) == 2
    printed = capsys.readouterr().err
    assert "hf-judge: error:" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("name", ["nothing", "nothing.jsonl", "labels.csv", "a/b/c"])
def test_info_on_what_is_not_there(name, capsys):
    assert main(["info", name]) == 2
    assert f"'{name}' is no file, directory or Hub repository" in capsys.readouterr().err


def test_info_on_an_empty_folder(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert "is an empty folder: expected labelled JSONL" in capsys.readouterr().err


@pytest.mark.parametrize("judge", [None, str(HOME / "judge")])
def test_generate_names_what_is_no_criterion(judge):
    target = AutoJudgeModelForCausalLM.from_pretrained(HOME / "target")
    with pytest.raises(TypeError, match=r"stopping_criteria must hold criteria .*, got 3: pass"):
        target.generate(torch.tensor([[1]]), judge=judge, max_new_tokens=1, stopping_criteria=[3])


@pytest.mark.parametrize("judge", [None, str(HOME / "judge")])
def test_generate_names_what_is_no_draft(judge):
    target = AutoJudgeModelForCausalLM.from_pretrained(HOME / "target")
    with pytest.raises(ValueError, match=r"is no EAGLE-3 draft: .*load it with AutoModelForCausalLM"):
        target.generate(torch.tensor([[1]]), judge=judge, max_new_tokens=1, assistant_model=str(HOME / "draft"))
