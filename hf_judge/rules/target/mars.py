"""Accept the runner-up where the target hardly prefers its best token: MARS (2601.15498)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.rules.base import AddingRule


def mars_accepts(logits: torch.Tensor, ids: torch.Tensor, ratio: float) -> torch.Tensor:
    """Accept x where it is the target's second-best token and ``z_2 / z_1 > ratio``.

    MARS (2601.15498, section 3): z_1 and z_2 are the two largest logits. Their ratio changes when a constant is added
    to all logits, though no probability does; where z_1 is not positive it says nothing, and nothing is accepted.

    Args:
        logits: (batch, n, V) float, the target's logits at the positions that predict the drafted tokens.
        ids: (batch, n) long, the drafted tokens.
        ratio: bound on z_2 / z_1.

    Returns:
        (batch, n) bool.
    """
    best = logits.topk(min(2, logits.shape[-1]), dim=-1)
    first, second = best.values[..., 0], best.values[..., -1]
    return (best.indices[..., -1] == ids) & (first > 0) & (second > ratio * first)


@dataclass(eq=False)
class MarsVerifier(AddingRule):
    """Accepts the target's second-best token where its margin is small (MARS), see [`mars_accepts`].

    The paper describes greedy decoding. When sampling, the same rule adds to strict verification; the authors' code
    also rejects, where the margin is small, every token but the two best.

    Args:
        ratio: bound on z_2 / z_1, 0 to 1; 0.9 in the paper, 1 is strict verification.
    """

    ratio: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        check_number("ratio", self.ratio, 0, 1)

    def judged(self, candidates, outputs, choice):
        return mars_accepts(outputs.logits[:, :-1], candidates.ids, self.ratio)
