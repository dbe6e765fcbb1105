"""Loads a pair, and checks whether its parts fit together."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.doctor.findings import Diagnosis
from hf_judge.head.compatibility import doubts
from hf_judge.head.judge_head import JudgeHead
from hf_judge.modeling.classes import AutoJudgeModelForCausalLM
from hf_judge.tiny.pair import load_pair
from hf_judge.upstream.forward import vocabulary_rows
from hf_judge.upstream.generation import disagreement
from hf_judge.upstream.states import StateReader


@dataclass
class Models:
    """What the checks of a pair need."""

    target: PreTrainedModel
    draft: PreTrainedModel  # the target itself, if no draft was given
    tokenizer: PreTrainedTokenizerBase
    draft_tokenizer: PreTrainedTokenizerBase
    head: JudgeHead | None


def load_models(
    found: Diagnosis,
    target: str | None,
    draft: str | None,
    judge: str | None,
    options: dict,
    tokenizers: tuple[str | None, str | None],
) -> Models | None:
    """Load the pair; None, with a problem noted, if a part of it cannot be loaded.

    Args:
        found: receives what happened.
        target, draft, judge: see [`hf_judge.doctor.run.diagnose`].
        options: keywords of `from_pretrained`, for both models.
        tokenizers: Hub ids or directories of the tokenizers of target and draft.
    """
    if target is None:
        if draft is not None or judge is not None:
            found.problem("target", "a draft or a judge was given without a target", "pass --target")
            return None
        pair = load_pair()
        found.ok("pair", "the embedded pair (--target, --draft and --judge check another one)")
        return Models(pair.target, pair.draft, pair.tokenizer, pair.tokenizer, JudgeHead.from_pretrained(pair.judge))
    steps = {
        "target": (lambda: AutoJudgeModelForCausalLM.from_pretrained(target, **options).eval(), target),
        "tokenizer": (lambda: AutoTokenizer.from_pretrained(tokenizers[0]), tokenizers[0]),
    }
    if draft is not None:
        steps["draft"] = (lambda: AutoModelForCausalLM.from_pretrained(draft, **options).eval(), draft)
        steps["draft tokenizer"] = (lambda: AutoTokenizer.from_pretrained(tokenizers[1]), tokenizers[1])
    if judge is not None:
        steps["judge"] = (lambda: JudgeHead.from_pretrained(judge), judge)
    loaded = {name: _loaded(found, name, load, source) for name, (load, source) in steps.items()}
    if any(part is None for part in loaded.values()):
        return None
    return Models(
        loaded["target"],
        loaded.get("draft", loaded["target"]),
        loaded["tokenizer"],
        loaded.get("draft tokenizer", loaded["tokenizer"]),
        loaded.get("judge"),
    )


def _loaded(found: Diagnosis, name: str, load, source: str):
    try:
        part = load()
    except (OSError, ValueError, TypeError, ImportError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = f"pass a Hub id or a directory with a {name}"
        found.problem(name, f"{source!r} cannot be loaded: {reason}", remedy)
        return None
    if isinstance(part, PreTrainedModel):
        found.ok(name, f"{type(part).__name__}, {str(part.dtype).removeprefix('torch.')}, {part.device}")
    return part


def check_tokenizers(found: Diagnosis, models: Models) -> None:
    """Check whether vocabularies agree, and whether the tokenizer has what chats and batches need."""
    _check_vocabulary(found, models)
    if models.tokenizer.pad_token is None:
        found.warn("padding", "the tokenizer has no padding token", "for batches: tokenizer.pad_token = eos_token")
    else:
        found.ok("padding", f"padding token {models.tokenizer.pad_token!r}")
    if models.tokenizer.chat_template is None:
        found.warn("chat", "the tokenizer has no chat template", "pass prompts as text, not as messages")
    else:
        found.ok("chat", "the tokenizer has a chat template")


def _check_vocabulary(found: Diagnosis, models: Models) -> None:
    target_rows, draft_rows = vocabulary_rows(models.target), vocabulary_rows(models.draft)
    size = len(models.tokenizer)
    if disagreement(models.tokenizer, models.draft_tokenizer) is not None:
        found.warn(
            "vocabulary",
            f"the tokenizers disagree (target: {size} tokens, draft: {len(models.draft_tokenizer)})",
            "pass tokenizer= and assistant_tokenizer= to generate(), one prompt at a time; a draft of the target's "
            "family is faster",
        )
    elif size > min(target_rows, draft_rows):
        found.problem(
            "vocabulary",
            f"the tokenizer has {size} tokens, the models have {target_rows} (target) and {draft_rows} (draft)",
            "resize_token_embeddings() on both models, or load the tokenizer that belongs to them",
        )
    elif target_rows != draft_rows:
        found.warn(
            "vocabulary",
            f"one tokenizer of {size} tokens, padded to {target_rows} rows (target) and {draft_rows} (draft)",
            f"draft.resize_token_embeddings({target_rows}) gives both the same width",
        )
    else:
        padding = f", padded to {target_rows} rows" if target_rows > size else ""
        found.ok("vocabulary", f"one vocabulary of {size} tokens{padding}")


def check_head(found: Diagnosis, models: Models) -> None:
    """Check whether the head fits the target: width, base, commit, quantisation, hidden state."""
    if models.head is None:
        found.warn("judge", "no judge was given", "train one (docs/train-a-judge.md), or pass --judge")
        return
    config = models.head.config
    try:
        models.target.resolve_judge(models.head)
        StateReader(models.target, config.hidden_state)
    except (ValueError, TypeError) as error:
        found.problem("judge", str(error), "load the target that the head was trained for")
        return
    draft = None if models.draft is models.target else models.draft
    for doubt in doubts(models.head, models.target, draft):
        found.warn("judge", doubt, "load that model, or measure accuracy with `hf-judge evaluate`")
    found.ok(
        "judge", f"reads {config.hidden_state} states of width {config.hidden_size}, threshold {config.threshold:g}"
    )
