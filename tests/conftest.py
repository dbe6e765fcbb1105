"""Fixtures of all tests. What builds the tiny models is in fixtures/tiny_models.py."""

from __future__ import annotations

import pytest
from tiny_models import noisy_copy, tiny_model
from transformers import PreTrainedModel

from hf_judge import judged


@pytest.fixture(scope="session")
def target() -> PreTrainedModel:
    """The Judge class over a stock tiny Llama."""
    return judged(tiny_model())


@pytest.fixture(scope="session")
def draft() -> PreTrainedModel:
    """A stock model that agrees with `target` about half of the time."""
    return noisy_copy(tiny_model())
