"""A differential fuzzer: strict-judged output against upstream's plain output, over settings that nobody listed.

    make fuzz SECONDS=600 SEED=1

Each case draws an architecture, an attention implementation, a dtype, padding, positions, a prior cache, a batch,
processors and criteria (upstream's, and ones that look at the row), lengths up to the last position, a source of
drafts, an engine, compiled forwards, training with gradient checkpointing, hooks. Greedy: token for token, up to a tie
of the two best scores. Sampling: the first two tokens by chi-square against upstream's own probabilities. Under a judge
with a random head: against the naive loop of fixtures/naive.py, kinds of tokens included. A call may be refused by a
ValueError, never answered differently, never with another error. The last line counts: "N comparisons, D differences";
exit 1 when D > 0.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from unittest import mock

import torch
from naive import NaiveModel, naive_judged
from scipy.stats import chi2
from test_upstream_sources import MTP_SETTINGS, dflash_draft, mtp_from_config, tiny_tokenizer
from tiny_models import ARCHITECTURES, VOCAB, noisy_copy, random_head, randomize, tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    LogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
)
from transformers.modeling_layers import MtpModel

from hf_judge import JudgeCandidateVerifier, StrictVerifier, VerdictCode, judged
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
    # without dropout the mode in which a model trains answers as the other
    "dropout": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "activation_dropout": 0.0,
    "embed_dropout": 0.0,
    "resid_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "classifier_dropout": 0.0,
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
    "glm4_moe-mtp": ("glm4_moe", MTP_SETTINGS),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
}
ROUNDING = {"float32": 1e-4, "float64": 1e-5, "bfloat16": 0.12}  # of a score, always float32
N_DRAWS = 300
_models: dict[tuple[str, str, str], tuple[PreTrainedModel, PreTrainedModel]] = {}


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
    dtype: str = "float32"
    mode: str = "strict"


# name of an extra -> its share of cases
EXTRAS = {
    "positions": 0.12,
    "shifted positions": 0.08,
    "positions of one row": 0.04,
    "cache": 0.12,
    "prior cache": 0.1,
    "second turn": 0.08,
    "row processor": 0.1,
    "row criterion": 0.1,
    "repetition penalty": 0.1,
    "no repeated pairs": 0.08,
    "suppressed": 0.1,
    "forced end": 0.05,
    "minimum length": 0.08,
    "bad words": 0.05,
    "early decay": 0.04,
    "first suppressed": 0.04,
    "guidance": 0.03,
    "encoder processor": 0.03,
    "two ends": 0.05,
    "padding on the right": 0.03,
    "hole in the mask": 0.05,
    "four-dimensional mask": 0.02,
    "no mask": 0.1,
    "embeddings": 0.04,
    "beams": 0.02,
    "static cache": 0.03,
    "train mode": 0.04,
    "gradient checkpointing": 0.03,
    "hook": 0.04,
    "to the last position": 0.12,
}


def drawn(rng: random.Random) -> Case:
    """A random case; a few are of a kind that takes long."""
    batch = rng.choice([1, 1, 1, 2, 3, 4])
    case = Case(
        model=rng.choice(list(MODELS)),
        attention=rng.choice(["eager", "sdpa"]),
        seed=rng.randint(0, 1 << 30),
        lengths=[rng.randint(1, 30) for _ in range(batch)],
        n_new=rng.choice([1, 2, 5, 12, 20]),
        n_drafted=rng.choice([1, 2, 4, 7, 16]),
        engine=rng.choice(["auto", "auto", "upstream", "ragged"]),
        source=rng.choice([*["assistant"] * 5, "lookup", "itself", "early exit", "other tokenizer", "dflash", "mtp"]),
        extras=[name for name, share in EXTRAS.items() if rng.random() < 0.7 * share],
        dtype=rng.choice(["float32"] * 4 + ["float64", "bfloat16"]),
        mode=rng.choices(["strict", "judge", "sampling", "compiled"], [100, 15, 0.7, 0.1])[0],
    )
    if case.source == "mtp":
        case.model = "glm4_moe-mtp"
    if case.mode == "judge":
        case.extras, case.source, case.dtype = [], "assistant", "float64"
    return case


def models_of(case: Case) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Target and draft, built once."""
    key = case.model, case.attention, case.dtype
    if key not in _models:
        model_type, settings = MODELS[case.model]
        config = AutoConfig.for_model(model_type, **COMMON | settings)
        config._attn_implementation = case.attention
        config._experts_implementation = "eager"  # of the others some take no float64
        try:
            target = AutoModelForCausalLM.from_config(config)
        except ValueError:  # sdpa, where the architecture has eager attention alone
            config._attn_implementation = "eager"
            target = AutoModelForCausalLM.from_config(config)
        target = randomize(target.eval(), 0).to(getattr(torch, case.dtype))
        _models[key] = target, noisy_copy(target)
    return _models[key]


def inputs_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts (batch, width) and their mask."""
    generator = torch.Generator().manual_seed(case.seed)
    width, batch = max(case.lengths), len(case.lengths)
    ids = torch.randint(4, VOCAB, (batch, width), generator=generator)
    mask = torch.ones_like(ids)
    for row, n in enumerate(case.lengths):
        pads = slice(n, width) if "padding on the right" in case.extras else slice(0, width - n)
        mask[row, pads] = 0
    if "hole in the mask" in case.extras and width > 3:
        mask[0, -2] = 0
    return ids, mask


def options_of(case: Case, mask: torch.Tensor) -> dict:
    """The keywords of `generate()` that the case's extras come to."""
    extras, width = set(case.extras), mask.shape[1]
    options = {"max_new_tokens": case.n_new, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    if "to the last position" in extras:
        options["max_new_tokens"] = max(1, 64 - width)
    if "no mask" in extras and mask.all():
        del options["attention_mask"]
    if "four-dimensional mask" in extras:
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        options["attention_mask"] = causal[None, None] & mask[:, None, None, :].bool()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if "positions of one row" in extras:
        options["position_ids"] = positions[:1]
    elif "positions" in extras or "shifted positions" in extras:
        options["position_ids"] = positions + (3 if "shifted positions" in extras else 0)
    simple = {
        "repetition penalty": {"repetition_penalty": 1.3},
        "no repeated pairs": {"no_repeat_ngram_size": 2},
        "suppressed": {"suppress_tokens": [2]},
        "forced end": {"forced_eos_token_id": 2},
        "minimum length": {"min_new_tokens": 4},
        "bad words": {"bad_words_ids": [[5], [6, 7]]},
        "early decay": {"exponential_decay_length_penalty": (2, 1.5)},
        "first suppressed": {"begin_suppress_tokens": [9, 10, 11, 12]},
        "guidance": {"guidance_scale": 1.5},
        "encoder processor": {"encoder_repetition_penalty": 1.3},
        "two ends": {"eos_token_id": [2, 17]},
        "beams": {"num_beams": 2},
        "static cache": {"cache_implementation": "static"},
        "row processor": {"logits_processor": [ByRow()]},
        "row criterion": {"stopping_criteria": [EndByRow(width)]},
    }
    for name in extras & simple.keys():
        options |= simple[name]
    return options


def drafting_of(case: Case, target: PreTrainedModel, draft: PreTrainedModel) -> dict:
    """The keywords of `generate()` by which it drafts."""
    n = {"num_assistant_tokens": case.n_drafted, "num_assistant_tokens_schedule": "constant"}
    if case.source == "other tokenizer":
        return n | of_another_tokenizer()
    return {
        "assistant": n | {"assistant_model": draft},
        "itself": n | {"assistant_model": target},
        "lookup": {"prompt_lookup_num_tokens": case.n_drafted},
        "early exit": n | {"assistant_early_exit": 1},
        "dflash": {"assistant_model": dflash_of(case.dtype), "speculation_type": "dflash"},
        "mtp": {"use_mtp": True},
    }[case.source]


def drafts(name: str) -> bool:
    """Whether a keyword of `generate()` is about drafting or judging."""
    return any(part in name for part in ("assist", "lookup", "judge", "tokenizer", "speculation", "mtp"))


@functools.cache
def of_another_tokenizer() -> dict:
    """A draft with other words, and both tokenizers."""
    return {
        "assistant_model": tiny_model(vocab_size=76, seed=9),
        "tokenizer": tiny_tokenizer(pairs=False),
        "assistant_tokenizer": tiny_tokenizer(pairs=True),
    }


@functools.cache
def dflash_of(dtype: str) -> PreTrainedModel:
    return dflash_draft().to(getattr(torch, dtype))


def run(case: Case) -> str:
    """ "equal", "refused", or what went wrong."""
    with mock.patch.object(MtpModel, "from_pretrained", classmethod(mtp_from_config)):
        found = _run(case)
        # Rounding may send a token to another expert, which moves its scores by more than any bound on rounding: then
        # the same case has the same tokens in float32.
        if found == "other tokens" and case.dtype == "bfloat16" and _has_experts(case):
            return "equal up to a tie" if _run(replace(case, dtype="float32")) == "equal" else found
        return found


def _has_experts(case: Case) -> bool:
    config = models_of(case)[0].config.get_text_config()
    return any(getattr(config, name, None) for name in ("num_experts", "n_routed_experts", "num_local_experts"))


def _run(case: Case) -> str:
    target, draft = models_of(case)
    ids, mask = inputs_of(case)
    if case.mode == "judge":
        return _against_naive(case, target, draft, ids, mask)
    options, extras = options_of(case, mask), set(case.extras)
    if extras & {"train mode", "hook", "gradient checkpointing"}:
        target = copy.deepcopy(target)
    if "train mode" in extras:
        target.train()
    if "gradient checkpointing" in extras:
        target.train()
        target.gradient_checkpointing_enable()
    if "hook" in extras:
        next(target.children()).register_forward_hook(lambda module, args, output: None)
    if "embeddings" in extras:
        options["inputs_embeds"] = target.get_input_embeddings()(ids)
    plain_cache = judged_cache = {}
    if extras & {"cache", "prior cache", "second turn"}:
        plain_cache, judged_cache = with_cache(DynamicCache()), with_cache(DynamicCache())
    if "prior cache" in extras and ids.shape[1] > 2 and ids.shape[0] == 1:
        for cache in (plain_cache, judged_cache):
            target(ids[:, : ids.shape[1] // 2], use_cache=True, **cache)
    if case.mode == "sampling":
        options |= {"do_sample": True, "top_k": 4, "temperature": 1.5, "max_new_tokens": 3}
    try:
        plain = target.generate(ids, **options, **plain_cache, return_dict_in_generate=True, output_scores=True)
    except Exception:  # noqa: BLE001  what upstream itself does not serve is no case
        return "not served by upstream"
    if any(scores.isnan().any() for scores in plain.scores):  # of padding, which 5.19 lets into a mixture of experts
        return "not served by upstream"
    options |= drafting_of(case, target, draft)
    judged_options = options | {"judge": StrictVerifier(), "judge_engine": case.engine}
    if case.mode == "compiled":
        judged_options["compile_config"] = CompileConfig()
    try:
        if case.mode == "sampling":
            return _sampled(target, ids, options, judged_options)
        got = judged(target).generate(ids, **judged_options, **judged_cache)
        found = _compared(case, plain, got)
        if found != "equal":
            return found
        caches = [*judged_cache.values(), *plain_cache.values()]
        if caches and caches[0].get_seq_length() != caches[1].get_seq_length():
            return f"the cache holds {caches[0].get_seq_length()} tokens, plain's {caches[1].get_seq_length()}"
        if "second turn" in extras and ids.shape[0] == 1:
            return _second_turn(case, target, got, judged_options, judged_cache, plain_cache)
        return "equal"
    except ValueError:
        return "refused"
    except Exception:  # raised again, unless upstream's own drafting fails on the case too
        if not _upstream_drafts(target, ids, options):
            return "not served by upstream"
        raise


def _second_turn(case: Case, target, got, options: dict, judged_cache: dict, plain_cache: dict) -> str:
    """Both go on from their caches with the same two new tokens."""
    longer = torch.cat([got, torch.full_like(got[:, :2], 21)], dim=1)
    options = {name: value for name, value in options.items() if name not in ("attention_mask", "position_ids")}
    plain_options = {name: value for name, value in options.items() if name in ("max_new_tokens", "do_sample")}
    plain_options |= {n: options[n] for n in ("pad_token_id", "eos_token_id", "suppress_tokens") if n in options}
    rest = {n: v for n, v in options.items() if drafts(n)}
    try:
        plain = target.generate(
            longer, **plain_options, **plain_cache, return_dict_in_generate=True, output_scores=True
        )
    except Exception:  # noqa: BLE001  upstream does not serve this second turn: what was compared is the first
        return "equal"
    return _compared(case, plain, judged(target).generate(longer, **plain_options, **rest, **judged_cache))


def _upstream_drafts(target, ids, options: dict) -> bool:
    """Whether upstream's own assisted generation serves the case."""
    try:
        copy.deepcopy(target).generate(ids, **options)  # when it fails it may leave the model changed
    except Exception:  # noqa: BLE001  whatever it is, upstream raised it without a judge
        return False
    return True


def _compared(case: Case, plain, got: torch.Tensor) -> str:
    """Token for token; every row may differ from where the two best of plain's scores are as good as equal."""
    if torch.equal(got, plain.sequences):
        return "equal"
    n, start = max(plain.sequences.shape[1], got.shape[1]), plain.sequences.shape[1] - len(plain.scores)
    ours, theirs = (torch.nn.functional.pad(ids, (0, n - ids.shape[1])) for ids in (got, plain.sequences))  # pad id: 0
    for row in range(got.shape[0]):
        different = (ours[row] != theirs[row]).nonzero()
        if not len(different):
            continue
        at = int(different[0]) - start
        if not 0 <= at < len(plain.scores):
            return "other tokens"
        best = plain.scores[at][row].float().topk(2).values
        if float(best[0] - best[1]) > ROUNDING[case.dtype]:
            return "other tokens"
    return "equal up to a tie"


def _sampled(target, ids: torch.Tensor, options: dict, judged_options: dict) -> str:
    """The first two tokens of the first prompt, by chi-square against the probabilities that upstream samples from."""
    ids = ids[:1]
    both = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in judged_options.items()}
    plain = {n: v for n, v in both.items() if not drafts(n)} | {"return_dict_in_generate": True}
    if "attention_mask" in plain and not plain["attention_mask"][:, -1].all():
        return "refused"  # within one call upstream counts on from the position of padding, in a second one it does not
    of_one_call = {"inputs_embeds", "position_ids", "stopping_criteria", "min_new_tokens", "num_beams"}
    if plain.keys() & {*of_one_call, "encoder_repetition_penalty"}:
        return "refused"  # the two steps below would not be those of one call
    expected = torch.zeros(VOCAB, VOCAB, dtype=torch.double)
    for first, p in _probabilities(target, ids, plain):
        if first in (2, *plain.get("eos_token_id", ())):
            expected[first] += p * torch.eye(VOCAB, dtype=torch.double)[0]
            continue
        mask = torch.nn.functional.pad(plain["attention_mask"], (0, 1), value=1) if "attention_mask" in plain else None
        longer = torch.cat([ids, torch.tensor([[first]])], dim=1)
        behind = {name: value for name, value in plain.items() if name != "begin_suppress_tokens"}  # of the first alone
        behind |= {"attention_mask": mask} if mask is not None else {}
        for second, q in _probabilities(target, longer, behind):
            expected[first, second] += p * q
    model, seen = judged(target), torch.zeros_like(expected)
    for _ in range(N_DRAWS):
        new = model.generate(ids, **both)[0, ids.shape[1] :].tolist()
        seen[new[0], new[1] if len(new) > 1 else 0] += 1
    expected, seen = expected.flatten() * N_DRAWS, seen.flatten()
    common = expected >= 5
    if seen[expected == 0].any():
        return "sampled what has no probability"
    expected = torch.cat([expected[common], expected[~common].sum(0, keepdim=True)])
    seen = torch.cat([seen[common], seen[~common].sum(0, keepdim=True)])
    statistic = float(((seen - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    return "equal" if statistic < chi2.isf(1e-7, max(1, len(seen) - 1)) else "another distribution"


def _probabilities(target, ids: torch.Tensor, options: dict) -> list[tuple[int, float]]:
    """Upstream's next tokens and their probabilities."""
    options = options | {"max_new_tokens": 2, "output_scores": True}  # not 1: the last token may be a forced end
    p = target.generate(ids, **options).scores[0][0].double().softmax(-1)
    return [(int(token), float(p[token])) for token in p.nonzero().flatten()]


def _against_naive(case: Case, target, draft, ids: torch.Tensor, mask: torch.Tensor) -> str:
    """Judged decoding under a random head, each row against the loop without a cache."""
    if "longrope" in case.model:  # a full forward over drafted tokens has other angles than the rounds before it
        return "not served by upstream"
    width = target.get_output_embeddings().weight.shape[1]
    head, threshold = random_head(width=width, seed=case.seed % 1000), 0.5
    options = drafting_of(case, target, draft) | {"assistant_confidence_threshold": 0.0, "do_sample": False}
    options |= {"max_new_tokens": case.n_new, "pad_token_id": 0, "attention_mask": mask, "eos_token_id": 2}
    options |= {"judge": JudgeCandidateVerifier(head, threshold), "judge_engine": case.engine}
    try:
        out = judged(target).generate(ids, **options, return_dict_in_generate=True)
    except ValueError:
        return "refused"
    naive = [NaiveModel(copy.deepcopy(model)) for model in (target, draft)]
    for row, n in enumerate(case.lengths):
        expected = naive_judged(
            *naive, ids[row, -n:].tolist(), weight=head.weight, bias=head.bias, threshold=threshold,
            n_draft=case.n_drafted, max_new_tokens=case.n_new, eos=(2,),
        )  # fmt: skip
        got = out.sequences[row, ids.shape[1] :].tolist()
        if got[: len(expected.new_tokens)] != expected.new_tokens or any(got[len(expected.new_tokens) :]):
            return "other tokens than the naive loop"
        kinds = [VerdictCode(int(code)).name.lower() for code in out.verdicts[row]][: len(expected.kinds)]
        if kinds != expected.kinds:
            return "other kinds of tokens than the naive loop"
    return "equal"


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
N_FAULTS = 20  # a run that has found so many stops


def fuzz(
    seconds: float, seed: int, *, most: int | None = None, n_faults: int = N_FAULTS, quick: bool = False
) -> tuple[Counter, list[tuple[Case, str]]]:
    """Run cases until the time is over.

    Args:
        seconds: time.
        seed: of the cases.
        most: cases.
        n_faults: after so many, stop.
        quick: leave out the modes that take long.

    Returns:
        How often each outcome came, and the faults, made small.
    """
    rng, counts, faults, end = random.Random(seed), Counter(), [], time.monotonic() + seconds
    while time.monotonic() < end and len(faults) < n_faults and (most is None or sum(counts.values()) < most):
        case = drawn(rng)
        if quick and case.mode in ("sampling", "compiled"):
            continue
        found = outcome(case)
        counts[found] += 1
        if found not in FINE:
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
