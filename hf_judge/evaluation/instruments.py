"""Tools of a measurement: a counter of forwards, and settings of a draft that are put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


class Forwards:
    """Counts the forwards of a model."""

    count = 0


@contextmanager
def count_forwards(model: torch.nn.Module) -> Iterator[Forwards]:
    """Count the forwards of a model inside the block, whatever calls them."""
    forwards = Forwards()

    def add(*_):
        forwards.count += 1

    handle = model.register_forward_pre_hook(add)
    try:
        yield forwards
    finally:
        handle.remove()


@contextmanager
def draft_settings(
    draft: PreTrainedModel,
    num_assistant_tokens: int,
    schedule: str = "heuristic_transient",
    confidence: float | None = None,
) -> Iterator[None]:
    """Set inside the block what upstream's assisted generation reads from the draft's config alone.

    Args:
        draft: the draft model.
        num_assistant_tokens: drafted tokens of the first round.
        schedule: "heuristic_transient" changes the draft length from round to round, "constant" does not.
        confidence: probability below which a draft stops; None: the draft's own.
    """
    config = draft.generation_config
    values = {"num_assistant_tokens": num_assistant_tokens, "num_assistant_tokens_schedule": schedule}
    if confidence is not None:
        values["assistant_confidence_threshold"] = confidence
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
