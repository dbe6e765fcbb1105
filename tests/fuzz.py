"""A differential fuzzer: strict-judged output against upstream's plain output, over settings that nobody listed.

    python tests/fuzz.py --seconds 600 --seed 1

Each case draws an architecture, an attention implementation, padding, positions, a prior cache, a batch, processors and
criteria (upstream's, and ones that look at the row), lengths up to the last position, a source of drafts and an engine.
Greedy: token for token, up to a tie of the two best logits. A call may be refused by a ValueError, never answered
differently, never with another error. The last line counts: "N comparisons, D differences"; exit 1 when D > 0.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from conftest import ARCHITECTURES, VOCAB, noisy_copy, randomize
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
)

from hf_judge import StrictVerifier, judged
from hf_judge.upstream.forward import with_cache

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
# name -> (architecture, settings): those of the tests, and variants whose attention, positions or state differ
MODELS = {name: (name, settings) for name, settings in ARCHITECTURES.items()} | {
    "gpt2": ("gpt2", {"n_positions": 64}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "falcon": ("falcon", {"new_decoder_architecture": False}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "gpt_neo-local": ("gpt_neo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
    "phi3-longrope": ("phi3", {"original_max_position_embeddings": 20, "rope_parameters": LONGROPE}),
    "starcoder2": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
}
TIE = 1e-4
_models: dict[tuple[str, str], tuple[PreTrainedModel, PreTrainedModel]] = {}


class ByRow(LogitsProcessor):
    """Bans other tokens in each row."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        for row in range(scores.shape[0]):
            scores[row, 3 + row :: 7] = -torch.inf
        return scores


class EndByRow(StoppingCriteria):
    """Ends row r after 2 + r tokens.

    Args:
        width: of the prompts.
    """

    def __init__(self, width: int):
        self._width = width

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] - self._width >= 2 + row for row in range(input_ids.shape[0])])


@dataclass
class Case:
    """One call; its repr is what a report needs."""

    model: str
    attention: str
    seed: int
    lengths: list[int]
    n_new: int
    n_drafted: int
    engine: str
    source: str
    extras: list[str] = field(default_factory=list)


def drawn(rng: random.Random) -> Case:
    """A random case."""
    batch = rng.choice([1, 1, 1, 2, 3, 4])
    lengths = [rng.randint(1, 30) for _ in range(batch)]
    extras = [
        name
        for name, share in (
            ("positions", 0.15),
            ("shifted positions", 0.1),
            ("cache", 0.15),
            ("prior cache", 0.1),
            ("row processor", 0.15),
            ("row criterion", 0.15),
            ("repetition penalty", 0.15),
            ("no repeated pairs", 0.1),
            ("suppressed", 0.15),
            ("hole in the mask", 0.05),
            ("no mask", 0.1),
            ("train mode", 0.05),
            ("hook", 0.05),
            ("to the last position", 0.15),
        )
        if rng.random() < share
    ]
    return Case(
        model=rng.choice(list(MODELS)),
        attention=rng.choice(["eager", "sdpa"]),
        seed=rng.randint(0, 1 << 30),
        lengths=lengths,
        n_new=rng.choice([1, 2, 5, 12, 20]),
        n_drafted=rng.choice([1, 2, 4, 7, 16]),
        engine=rng.choice(["auto", "auto", "upstream", "ragged"]),
        source=rng.choice(["assistant", "assistant", "assistant", "lookup", "itself", "early exit"]),
        extras=extras,
    )


def models_of(case: Case) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Target and draft, built once."""
    key = case.model, case.attention
    if key not in _models:
        model_type, settings = MODELS[case.model]
        config = AutoConfig.for_model(model_type, **COMMON | settings)
        config._attn_implementation = case.attention
        try:
            target = AutoModelForCausalLM.from_config(config)
        except ValueError:  # sdpa, where the architecture has eager attention alone
            config._attn_implementation = "eager"
            target = AutoModelForCausalLM.from_config(config)
        target = randomize(target.eval(), 0)
        _models[key] = target, noisy_copy(target)
    return _models[key]


def run(case: Case) -> str:
    """ "equal", "refused", or what went wrong."""
    target, draft = models_of(case)
    generator = torch.Generator().manual_seed(case.seed)
    width, batch = max(case.lengths), len(case.lengths)
    ids = torch.randint(4, VOCAB, (batch, width), generator=generator)
    mask = torch.ones_like(ids)
    for row, n in enumerate(case.lengths):
        mask[row, : width - n] = 0
    if "hole in the mask" in case.extras and width > 3:
        mask[0, -2] = 0
    n_new = max(1, 64 - width) if "to the last position" in case.extras else case.n_new
    options = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
    if "no mask" not in case.extras or (mask == 0).any():
        options["attention_mask"] = mask
    if "positions" in case.extras or "shifted positions" in case.extras:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + (3 if "shifted positions" in case.extras else 0)
    if "repetition penalty" in case.extras:
        options["repetition_penalty"] = 1.3
    if "no repeated pairs" in case.extras:
        options["no_repeat_ngram_size"] = 2
    if "suppressed" in case.extras:
        options["suppress_tokens"] = [2]
    if "row processor" in case.extras:
        options["logits_processor"] = [ByRow()]
    if "row criterion" in case.extras:
        options["stopping_criteria"] = [EndByRow(width)]
    target = copy.deepcopy(target) if {"train mode", "hook"} & set(case.extras) else target
    if "train mode" in case.extras:
        target.train()
    if "hook" in case.extras:
        next(target.children()).register_forward_hook(lambda module, args, output: None)
    plain_cache = judged_cache = {}
    if "cache" in case.extras or "prior cache" in case.extras:
        plain_cache, judged_cache = with_cache(DynamicCache()), with_cache(DynamicCache())
    if "prior cache" in case.extras and width > 2 and batch == 1:
        for cache in (plain_cache, judged_cache):
            target(ids[:, : width // 2], use_cache=True, **cache)
    try:
        plain = target.generate(ids, **options, **plain_cache)
    except Exception:  # noqa: BLE001  what upstream itself does not serve is no case
        return "not served by upstream"
    drafting = {
        "assistant": {"assistant_model": draft, "num_assistant_tokens": case.n_drafted},
        "itself": {"assistant_model": target, "num_assistant_tokens": case.n_drafted},
        "lookup": {"prompt_lookup_num_tokens": case.n_drafted},
        "early exit": {"assistant_early_exit": 1, "num_assistant_tokens": case.n_drafted},
    }[case.source]
    try:
        got = judged(target).generate(
            ids, **options, **judged_cache, **drafting, judge=StrictVerifier(), judge_engine=case.engine
        )
    except ValueError:
        return "refused"
    except Exception:
        if not _upstream_drafts(target, ids, options | drafting):
            return "not served by upstream"
        raise
    if torch.equal(got, plain):
        for mine, theirs in zip(judged_cache.values(), plain_cache.values(), strict=True):
            if mine.get_seq_length() != theirs.get_seq_length():
                return f"the cache holds {mine.get_seq_length()} tokens, plain's {theirs.get_seq_length()}"
        return "equal"
    return "equal up to a tie" if _is_tie(target, options, plain, got, width) else "other tokens"


def _upstream_drafts(target, ids, options: dict) -> bool:
    """Whether upstream's own assisted generation serves the case."""
    try:
        target.generate(ids, **options)
    except Exception:  # noqa: BLE001
        return False
    return True


@torch.no_grad()
def _is_tie(target, options: dict, plain: torch.Tensor, got: torch.Tensor, width: int) -> bool:
    """Whether every row differs first where the two best logits of a plain forward are as good as equal."""
    if options.keys() & {"logits_processor", "stopping_criteria", "repetition_penalty", "no_repeat_ngram_size"}:
        return False  # the logits are not what was chosen by
    for row in range(plain.shape[0]):
        n = min(plain.shape[1], got.shape[1])
        different = (plain[row, :n] != got[row, :n]).nonzero()
        if not len(different) and plain.shape[1] == got.shape[1]:
            continue
        at = int(different[0]) if len(different) else n
        pad = int((options["attention_mask"][row] == 0).sum()) if "attention_mask" in options else 0
        best = target(plain[row : row + 1, pad:at]).logits[0, -1].float().topk(2).values
        if at < width or float(best[0] - best[1]) > TIE:
            return False
    return True


def smaller(case: Case) -> Case:
    """The case with everything left out that the fault does not need."""
    wrong = outcome(case)
    changed = True
    while changed:
        changed = False
        candidates = [copy.deepcopy(case) for _ in case.extras]
        for candidate, extra in zip(candidates, case.extras, strict=True):
            candidate.extras.remove(extra)
        for attribute, values in (
            ("lengths", [case.lengths[:-1]]),
            ("n_new", [case.n_new // 2]),
            ("n_drafted", [case.n_drafted // 2]),
        ):
            for value in values:
                if value:
                    candidates.append(copy.deepcopy(case))
                    setattr(candidates[-1], attribute, value)
        for candidate in candidates:
            if outcome(candidate) == wrong:
                case, changed = candidate, True
                break
    return case


def outcome(case: Case) -> str:
    """`run`, with an error from inside as its name."""
    try:
        return run(case)
    except Exception as error:  # noqa: BLE001  that is what is looked for
        return f"{type(error).__name__} in {traceback.extract_tb(error.__traceback__)[-1].name}"


FINE = ("equal", "equal up to a tie", "refused", "not served by upstream")


def fuzz(seconds: float, seed: int, most: int | None = None) -> tuple[Counter, list[tuple[Case, str]]]:
    """Run cases until the time is over.

    Returns:
        How often each outcome came, and the faults, made small.
    """
    rng, counts, faults, end = random.Random(seed), Counter(), [], time.monotonic() + seconds
    while time.monotonic() < end and (most is None or sum(counts.values()) < most):
        case = drawn(rng)
        found = outcome(case)
        counts[found] += 1
        if found not in FINE and len(faults) < 20:
            faults.append((smaller(case), found))
            print(f"{found}: {faults[-1][0]!r}", flush=True)
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    counts, _ = fuzz(args.seconds, args.seed)
    print(", ".join(f"{name}: {n}" for name, n in counts.most_common()))
    n_wrong = sum(n for name, n in counts.items() if name not in FINE)
    print(f"{counts['equal'] + counts['equal up to a tie'] + n_wrong} comparisons, {n_wrong} differences")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
