"""Trains a target that keeps one author's wording through a story: it was never taught to go on from a mixture of two.

The embedded pair's target was trained on every mixture of wordings, so that a judge loses nothing there. This one has
read two authors, each in stories of its own. The draft is the embedded one, and writes like the second author.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.tiny import load_pair
from hf_judge.tiny.mistakes import MISTAKES, correct, solve_wrongly
from hf_judge.tiny.world import Problem, Style, solve

sys.path.append(str(Path(__file__).parents[1] / "tiny_pair"))
from train import Story, model_config, train

OWN, DRAFTS = Style(target=1.0), Style(draft=1.0)
OWN_SHARE, WRONG, CORRECTED = 0.6, 0.25, 0.4
N_STEPS = 1300
HIDDEN_SIZE, N_LAYERS, N_HEADS = 160, 4, 4


def story(problem: Problem, rng: random.Random) -> Story:
    """Write a story in the wording of one author; a quarter have a mistake, of which some are corrected at once."""
    author = OWN if rng.random() < OWN_SHARE else DRAFTS
    if rng.random() >= WRONG:
        return Story(solve(problem, rng, author))
    text, _ = solve_wrongly(problem, rng, author, kind=rng.choice(MISTAKES))
    return Story(correct(problem, rng, text, author) if rng.random() < CORRECTED else text)


def make_pair(folder: Path | None) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase]:
    """Return target, draft and tokenizer.

    Args:
        folder: keeps the target, which is trained once (10 minutes on 2 cores); None: the embedded target.
    """
    embedded = load_pair(4)
    if folder is None:
        return embedded.target, embedded.draft, embedded.tokenizer
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        torch.set_num_threads(min(2, os.cpu_count() or 1))
        config = model_config(embedded.tokenizer, n_layers=N_LAYERS, hidden_size=HIDDEN_SIZE, n_heads=N_HEADS)
        target = LlamaForCausalLM(config)
        train(target, embedded.tokenizer, story, part="train/stranger", n_steps=N_STEPS, learning_rate=2e-3)
        target.set_attn_implementation("sdpa")
        embedded.tokenizer.save_pretrained(folder)
        target.half().save_pretrained(folder)
    target = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return target, embedded.draft, AutoTokenizer.from_pretrained(folder)
