"""The bundled EAGLE-3 head: greedy answers are the target's, and most of its drafts' first tokens stand."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

from hf_judge import StrictVerifier
from hf_judge.cli import main
from hf_judge.evaluation.loading import load_models
from hf_judge.speculators import AutoDraftModel
from hf_judge.tiny.pair import HOME, load_pair
from hf_judge.tiny.world import make_problem

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "tiny_pair"))


def test_its_answers_are_the_targets_in_few_forwards():
    pair = load_pair(4)
    draft = AutoDraftModel.from_pretrained(HOME / "eagle3", target=pair.target)
    rng, accepted, forwards = random.Random(9), 0, 0
    for _ in range(3):
        messages = [{"role": "user", "content": make_problem(rng).question}]
        inputs = pair.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        options = {"max_new_tokens": 100, "do_sample": False}
        out = pair.target.generate(
            **inputs, **options, assistant_model=draft, judge=StrictVerifier(), return_dict_in_generate=True
        )
        assert torch.equal(out.sequences, pair.target.generate(**inputs, **options))
        accepted, forwards = accepted + out.judge_stats.accepted, forwards + out.judge_stats.target_forwards
    assert accepted > 2.2 * forwards


def test_the_script_trains():
    import train_eagle3

    torch.manual_seed(0)
    pair, lines = load_pair(4), []
    draft = train_eagle3.new_draft(pair.target, (1, 2, 4), intermediate_size=32)
    texts = train_eagle3.stories(pair.tokenizer, 16, 4)
    before = {name: tensor.clone() for name, tensor in draft.named_parameters()}
    train_eagle3.train(draft, pair.target, texts, n_steps=2, epochs=2, learning_rate=3e-3, log=lines.append)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in draft.named_parameters())
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert losses[-1] < 0.8 * losses[0]


def test_evaluate_takes_it(capsys):
    target, draft, judge = (str(HOME / name) for name in ("target", "eagle3", "judge"))
    words = ["evaluate", "--target", target, "--draft", draft, "--judge", judge, "--rules", "assisted", "judge=0.5"]
    assert main([*words, "--problems", "1", "--max-new-tokens", "40", "--no-plots"]) == 0
    table = capsys.readouterr().out
    assert "judge" in table
    assert "assisted" in table


def test_commands_that_run_the_draft_by_itself_refuse_it():
    with pytest.raises(ValueError, match="runs beside its target alone"):
        load_models(str(HOME / "target"), str(HOME / "eagle3"))
