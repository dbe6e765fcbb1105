"""Accept by rank: the target's k best tokens, or its n best within delta."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at
from hf_judge.rules.base import AddingRule, drafted


def top_k_accepts(scores: torch.Tensor, ids: torch.Tensor, k: int) -> torch.Tensor:
    """Accept x where fewer than k tokens are more probable: ``#{v: p(v) > p(x)} < k``.

    The baseline of Judge Decoding (2501.19309) and AutoJudge (2504.20039).

    Args:
        scores: (batch, n, V) float, the target's scores at the positions that predict the drafted tokens.
        ids: (batch, n) long, the drafted tokens.
        k: number of the target's best tokens that pass.

    Returns:
        (batch, n) bool.
    """
    return (scores > at(scores, ids).unsqueeze(-1)).sum(dim=-1) < k


@dataclass(eq=False)
class TopKVerifier(AddingRule):
    """Accepts the target's k best tokens, see [`top_k_accepts`]. Strict verification is k = 1.

    Args:
        k: number of tokens that pass.
    """

    k: int = 2

    def __post_init__(self):
        super().__post_init__()
        check_number("k", self.k, 1, kind=int)

    def judged(self, candidates, outputs, choice):
        return top_k_accepts(drafted(outputs), candidates.ids, self.k)


def relaxed_accepts(scores: torch.Tensor, ids: torch.Tensor, n: int, delta: float) -> torch.Tensor:
    """Accept x where it is among the target's n best and ``p(x) > max p - delta``.

    Relaxed acceptance of TensorRT-LLM (`use_relaxed_acceptance_for_thinking`), there limited to the thinking phase.

    Args:
        scores: (batch, n, V) float, the target's scores at the positions that predict the drafted tokens.
        ids: (batch, n) long, the drafted tokens.
        n: number of the target's best tokens that pass.
        delta: largest distance from the best token's probability.

    Returns:
        (batch, n) bool.
    """
    probabilities = scores.softmax(dim=-1)
    return top_k_accepts(scores, ids, n) & (at(probabilities, ids) > probabilities.amax(dim=-1) - delta)


@dataclass(eq=False)
class RelaxedVerifier(AddingRule):
    """Accepts the target's n best tokens within delta of the best one, see [`relaxed_accepts`].

    Args:
        delta: largest distance from the best token's probability, 0 to 1.
        n: number of tokens that pass.
    """

    delta: float = 0.5
    n: int = 15

    def __post_init__(self):
        super().__post_init__()
        check_number("delta", self.delta, 0, 1)
        check_number("n", self.n, 1, kind=int)

    def judged(self, candidates, outputs, choice):
        return relaxed_accepts(drafted(outputs), candidates.ids, self.n, self.delta)
