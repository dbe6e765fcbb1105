"""Accept at random: the control."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.rules.base import AddingRule


def random_accepts(ids: torch.Tensor, first_position: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Accept at a rate, whatever the token is: the control that every rule must beat.

    u is a hash (splitmix64) of seed, position in the answer and token, so that a call repeats itself.

    Args:
        ids: (batch, n) long, the drafted tokens.
        first_position: (batch,) long, position of the first drafted token in the answer.
        rate: share of tokens to accept, 0 to 1.
        seed: any integer.

    Returns:
        (batch, n) bool.
    """
    position = first_position.unsqueeze(1) + torch.arange(ids.shape[1], device=ids.device)
    state = _mix(_mix(position + 0x1234567 * (seed + 1)) + ids)
    return (state & ((1 << 53) - 1)).double() / (1 << 53) < rate


@dataclass(eq=False)
class RandomVerifier(AddingRule):
    """Accepts at random at a rate, see [`random_accepts`]: the control."""

    rate: float = 0.5
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_number("rate", self.rate, 0, 1)
        check_number("seed", self.seed, kind=int)

    def judged(self, candidates, outputs, choice):
        first = candidates.n_generated
        if first is None:
            first = candidates.ids.new_zeros(candidates.ids.shape[:1])
        return random_accepts(candidates.ids, first, self.rate, self.seed)


def _mix(state: torch.Tensor) -> torch.Tensor:
    """Apply splitmix64's finaliser to int64, whose overflow wraps around.

    ``>>`` copies the sign bit; a mask removes these copies, so that the shift becomes unsigned.
    """
    state = state + -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
    state = (state ^ (state >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return state ^ (state >> 31 & (1 << 33) - 1)
