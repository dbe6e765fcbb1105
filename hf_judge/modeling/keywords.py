"""Holds the keywords of `generate()` by which every measurement drafts and judges alike."""

from __future__ import annotations

from transformers import PreTrainedModel


def constant_drafts(draft: PreTrainedModel, judge: object, num_assistant_tokens: int, **tokenizers) -> dict:
    """Return the keywords of a judged call that drafts equally many tokens in every round.

    Args:
        draft: the draft model; its own settings of the draft length do not count.
        judge: everything that `generate(judge=)` takes.
        num_assistant_tokens: drafted tokens per round.
        **tokenizers: see [`hf_judge.upstream.generation.tokenizer_arguments`].
    """
    return {
        "assistant_model": draft,
        "judge": judge,
        "num_assistant_tokens": num_assistant_tokens,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
        **tokenizers,
    }
