"""Raise the drafted token's probability as far as a bound on the divergence allows: Cactus (2604.04987)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at
from hf_judge.rules.base import RelaxedSampler


def cactus_distribution(target: torch.Tensor, ids: torch.Tensor, delta: float) -> torch.Tensor:
    """Return Cactus's distribution for a drafted token x: x gets ``min(p(x) + sqrt(2 delta p(x) (1 - p(x))), 1)``.

    All other probabilities shrink by one factor. Source: Cactus (2604.04987, section 2); 2607.08690, equations 6 and 7.
    delta is the divergence from p up to second order. Exactly, the chi-square divergence from p is at most 2 delta, so
    that KL(pi || p) is at most log(1 + 2 delta).

    Args:
        target: (batch, n, V) float, p.
        ids: (batch, n) long, the drafted tokens x.
        delta: bound on the divergence, in nats, 0 or more.

    Returns:
        (batch, n, V) float, another distribution for each x.
    """
    chosen = at(target, ids)
    raised = (chosen + (2.0 * delta * chosen * (1.0 - chosen)).clamp(min=0).sqrt()).clamp(max=1.0)
    rest = (1.0 - chosen).clamp(min=torch.finfo(target.dtype).tiny)
    factor = ((1.0 - raised) / rest).clamp(0, 1)
    return (target * factor.unsqueeze(-1)).scatter(-1, ids.unsqueeze(-1), raised.unsqueeze(-1))


@dataclass(eq=False)
class CactusVerifier(RelaxedSampler):
    """Samples from a distribution near the target's that favours the drafted token, see [`cactus_distribution`].

    In greedy decoding p is a point mass, p(x) (1 - p(x)) is 0, and the rule is strict verification.

    Args:
        delta: bound on the divergence, in nats; 0 is strict verification.
    """

    delta: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        check_number("delta", self.delta, 0)

    def relaxed(self, candidates, outputs, target, draft):
        return cactus_distribution(target, candidates.ids, self.delta)
