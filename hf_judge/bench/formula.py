"""Predicts the speed-up that a draft brings, by the paper's formula."""

from __future__ import annotations

import functools


def predicted_speedup(accepted: float, n_drafted: float, cost_ratio: float, verify_cost: float = 1.0) -> float:
    """Return (m + 1) / (M c + v): the tokens of a round over its cost in target forwards of one token.

    2501.19309, section 2, with v = 1: verifying M + 1 tokens costs as much as decoding one.

    Args:
        accepted: m, accepted drafted tokens per target forward.
        n_drafted: M, drafted tokens per round.
        cost_ratio: c, one forward of the draft over one of the target.
        verify_cost: v, a forward of M + 1 tokens over one of a single token.
    """
    return (accepted + 1) / (n_drafted * cost_ratio + verify_cost)


def expected_accepted(rate: float, n_drafted: int) -> float:
    """Return m for an acceptance rate a, the same for every token: a + a^2 + ... + a^M (2211.17192, section 3.1)."""
    return float(n_drafted) if rate >= 1 else rate * (1 - rate**n_drafted) / (1 - rate)


def break_even(n_drafted: int, cost_ratio: float, verify_cost: float) -> float | None:
    """Return the acceptance rate at which drafting is as fast as plain decoding; None: drafting is always slower.

    Args:
        n_drafted: M, drafted tokens per round.
        cost_ratio: c, one forward of the draft over one of the target.
        verify_cost: v, a forward of M + 1 tokens over one of a single token.
    """
    speed = functools.partial(predicted_speedup, n_drafted=n_drafted, cost_ratio=cost_ratio, verify_cost=verify_cost)
    if speed(n_drafted) <= 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if speed(expected_accepted(middle, n_drafted)) < 1 else (low, middle)
    return high
