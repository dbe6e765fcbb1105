"""The paper's formula for the speed-up of a draft: predictions for any costs, and the paper's own figures beside it.

Knows nothing about models.
"""

from __future__ import annotations

# 2501.19309, section 5 and table 1: an 8B draft for a 405B target
PAPER = {
    "strict": {"m": 6.3},
    "judged, Hugging Face": {"m": 19.7, "speedup": 9.7},
    "judged, gpt-fast": {"m": 19.7, "speedup": 3.9},
}
PAPER_SIZES = (8, 405)


def predicted_speedup(accepted: float, n_drafted: float, cost_ratio: float, verify_cost: float = 1.0) -> float:
    """(m + 1) / (M c + v): tokens of a round over its cost, in target forwards of one token.

    2501.19309, section 2, with v = 1: verifying M + 1 tokens costs as much as decoding one.

    Args:
        accepted: m, accepted drafted tokens per target forward.
        n_drafted: M, drafted tokens per round.
        cost_ratio: c, one forward of the draft over one of the target.
        verify_cost: v, a forward of M + 1 tokens over one of a single token.
    """
    return (accepted + 1) / (n_drafted * cost_ratio + verify_cost)


def implied_cost_ratio(speedup: float, accepted: float, n_drafted: float) -> float:
    """The c at which the formula gives a measured speed-up: ((m + 1) / speedup - 1) / M."""
    return ((accepted + 1) / speedup - 1) / n_drafted


def acceptance_rate(accepted: float, n_drafted: int) -> float:
    """The a with a + a^2 + ... + a^M = m: every token stands with the same probability (2211.17192, section 3.1)."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_accepted(middle, n_drafted) < accepted else (low, middle)
    return (low + high) / 2


def expected_accepted(rate: float, n_drafted: int) -> float:
    """m for an acceptance rate: a + a^2 + ... + a^M."""
    return float(n_drafted) if rate >= 1 else rate * (1 - rate**n_drafted) / (1 - rate)


def simulate(accepted: float, n_drafted: int, cost_ratio: float, verify_cost: float = 1.0) -> dict:
    """Predicted speed-up for given costs, and the draft length that the same acceptance rate would do best with.

    Raises:
        ValueError: a number that cannot be: m above M, a cost that is not positive.
    """
    if not 0 <= accepted <= n_drafted:
        raise ValueError(f"m, the accepted tokens, must be between 0 and M = {n_drafted}, got {accepted}")
    if not cost_ratio > 0 or not verify_cost > 0:
        raise ValueError(f"costs must be above 0, got c = {cost_ratio} and v = {verify_cost}")
    rate = acceptance_rate(accepted, n_drafted)
    best = max(range(1, 129), key=lambda m: predicted_speedup(expected_accepted(rate, m), m, cost_ratio, verify_cost))
    return {
        "m": accepted,
        "M": n_drafted,
        "c": cost_ratio,
        "v": verify_cost,
        "speedup": predicted_speedup(accepted, n_drafted, cost_ratio, verify_cost),
        "acceptance_rate": rate,
        "best_M": best,
        "best_speedup": predicted_speedup(expected_accepted(rate, best), best, cost_ratio, verify_cost),
    }


def paper_check(lengths: tuple[int, ...] = (20, 25, 32)) -> list[dict]:
    """The paper's published speed-ups beside its formula.

    c by parameters is 8/405. The paper's M for these figures is not known to us, so several are shown; `implied_c` is
    the cost ratio at which the formula would give the published figure.
    """
    c = PAPER_SIZES[0] / PAPER_SIZES[1]
    return [
        {
            "figure": name,
            "m": figures["m"],
            "M": length,
            "published": figures["speedup"],
            "predicted": predicted_speedup(figures["m"], length, c),
            "implied_c": implied_cost_ratio(figures["speedup"], figures["m"], length),
        }
        for name, figures in PAPER.items()
        if "speedup" in figures
        for length in lengths
    ]
