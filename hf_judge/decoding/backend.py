"""Defines what a backend is: it supplies drafts and target forwards to the decoding loop."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from hf_judge.upstream.private_names import ModelOutput


class Draft(NamedTuple):
    """Drafted tokens for every unfinished prompt."""

    ids: torch.Tensor  # (batch, k) long, padded on the right
    lengths: torch.Tensor  # (batch,) long, drafted tokens of each prompt
    logits: torch.Tensor | None  # (batch, k, V), the scores the ids were drawn from; None: no random draw
    raw_logits: torch.Tensor | None = None  # (batch, k, V), the draft's before its processors; None: unknown


class Forward(NamedTuple):
    """What one forward of the target gave for a draft."""

    logits: torch.Tensor  # (batch, k+1, V) float32, before the logits processors
    hidden: torch.Tensor | None  # (batch, k+1, D), the state that the verifier reads
    outputs: ModelOutput | None  # the model's own output, for attentions and hidden states


class Backend(Protocol):
    """Drafts, runs the target, and keeps the caches of the unfinished prompts.

    `texts` holds each unfinished prompt with its answer so far, (1, n) long, padding included.
    """

    def propose(self, texts: list[torch.LongTensor], budgets: list[int]) -> Draft:
        """Draft at most `budgets[i]` tokens after text i."""

    def forward(self, texts: list[torch.LongTensor], draft: Draft) -> Forward:
        """Run the target over the last token and the draft of every text."""

    def commit(self, texts: list[torch.LongTensor], growth: list[tuple[int, int]], scores: torch.Tensor) -> None:
        """Roll back what was rejected.

        Args:
            texts: the texts with their new tokens.
            growth: the number of new tokens of each text, and how many of them were drafted.
            scores: (batch, k+1, V), the target's processed scores of the round.
        """

    def keep(self, kept: list[int]) -> None:
        """Drop the prompts that have finished: go on with those at the places `kept`."""

    def idle(self) -> None:
        """Run a dummy forward, so that other processes can finish their collective operations."""

    def cache(self):
        """Return the target's cache for the caller; None for a batch."""

    def close(self, *, failed: bool = False) -> None:
        """Free the memory of the call. After a failure nothing is kept for the next call either."""
