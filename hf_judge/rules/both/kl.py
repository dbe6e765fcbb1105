"""Accept where both models are close: the KL gate of "Revisiting Judge Decoding" (2601.04766)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import kl_divergence, over_shared_tokens
from hf_judge.rules.base import AddingRule, draft_scores_of, drafted


def kl_accepts(
    scores: torch.Tensor, draft_scores: torch.Tensor, threshold: float, max_confidence: float
) -> torch.Tensor:
    """Accept where ``KL(p || q) < threshold`` and ``max p <= max_confidence``.

    The KL gate of "Revisiting Judge Decoding" (2601.04766), with p before q: the target's distribution weighs the
    differences. The drafted token does not matter.

    Args:
        scores: (batch, n, V) float, the target's scores.
        draft_scores: (batch, n, V) float, the draft's scores.
        threshold: bound on the divergence, in nats.
        max_confidence: probability above which the target counts as sure, and verification is strict.

    Returns:
        (batch, n) bool.
    """
    return (kl_divergence(scores, draft_scores) < threshold) & (scores.softmax(dim=-1).amax(dim=-1) <= max_confidence)


@dataclass(eq=False)
class KLVerifier(AddingRule):
    """Accepts where draft and target are close, see [`kl_accepts`].

    Args:
        threshold: bound on the divergence, in nats.
        max_confidence: probability above which verification is strict; 0.9 in the paper.
    """

    threshold: float = 0.5
    max_confidence: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        check_number("threshold", self.threshold, 0)
        check_number("max_confidence", self.max_confidence, 0, 1)

    def judged(self, candidates, outputs, choice):
        draft_scores = draft_scores_of(candidates, outputs, "KLVerifier")
        scores, draft_scores = over_shared_tokens(drafted(outputs), draft_scores, candidates.raw_logits)
        return kl_accepts(scores, draft_scores, self.threshold, self.max_confidence)
