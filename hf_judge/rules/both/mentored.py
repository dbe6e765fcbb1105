"""Accept as often as a bound on the divergence from the target allows: mentored decoding (Tran-Thien)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.rules.base import RelaxedSampler

N_HALVINGS = 40  # of the interval [0, 1] of alpha: below the spacing of floats


def mentored_distribution(target: torch.Tensor, draft: torch.Tensor, divergence: float) -> torch.Tensor:
    """Return the distribution pi that accepts the draft most often among those with ``KL(p || pi) <= divergence``.

    Mentored decoding (V. Tran-Thien, "An optimal lossy variant of speculative decoding", 2023). Accept x with
    probability ``min(1, p(x) / (alpha q(x)))``, and else draw from ``norm(max(p / beta - q, 0))``. What results is
    ``pi = max(min(q, p / alpha), p / beta)`` with alpha <= 1 <= beta. For a given alpha, beta follows from sum pi = 1;
    the smallest alpha is chosen that keeps the bound. alpha = 1 is strict verification.

    Args:
        target: (batch, n, V) float, p.
        draft: (batch, n, V) float, q.
        divergence: bound D on KL(p || pi), in nats, 0 or more.

    Returns:
        (batch, n, V) float64.
    """
    target, draft = target.double(), draft.double()
    ratio = torch.where(target > 0, draft / target, torch.inf)
    order = ratio.argsort(dim=-1)
    ratio, target_mass, draft_mass = ratio.gather(-1, order), *(x.gather(-1, order).cumsum(-1) for x in (target, draft))
    # missing[j]: mass that pi has to add to q where its factor 1 / beta is ratio[j]; grows with j
    missing = torch.where(ratio.isfinite(), ratio * target_mass - draft_mass, torch.inf)

    def distribution(alpha: torch.Tensor) -> torch.Tensor:
        capped = torch.minimum(draft, target / alpha)
        freed = (draft - capped).sum(dim=-1, keepdim=True)
        last = (torch.searchsorted(missing, freed, right=True) - 1).clamp(0, ratio.shape[-1] - 1)
        lowest = (freed + draft_mass.gather(-1, last)) / target_mass.gather(-1, last)  # 1 / beta
        return torch.maximum(capped, target * lowest)

    low, high = torch.zeros_like(target[..., :1]), torch.ones_like(target[..., :1])
    for _ in range(N_HALVINGS):
        alpha = (low + high) / 2
        terms = torch.where(target > 0, target * (target / distribution(alpha)).log(), 0.0)
        fits = terms.sum(dim=-1, keepdim=True) <= divergence
        low, high = torch.where(fits, low, alpha), torch.where(fits, alpha, high)
    return distribution(high)


@dataclass(eq=False)
class MentoredVerifier(RelaxedSampler):
    """Samples from the distribution within a KL bound that accepts most, see [`mentored_distribution`].

    In greedy decoding p is a point mass, and the rule is strict verification.

    Args:
        divergence: bound on KL(p || pi), in nats, for every token; 0 is strict verification.
    """

    divergence: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        check_number("divergence", self.divergence, 0)

    def relaxed(self, candidates, outputs, target, draft):
        return mentored_distribution(target, draft, self.divergence).to(target.dtype)
