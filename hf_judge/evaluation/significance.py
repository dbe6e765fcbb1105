"""Intervals and tests for shares and ratios. Knows nothing about what they are shares and ratios of."""

from __future__ import annotations

import math
import random


def wilson_interval(n_right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Wilson 1927; unlike p -+ z sqrt(p(1-p)/n) it stays inside [0, 1] and holds for small n and shares near 0 and 1.

    Args:
        n_right: successes.
        n: trials.
        z: 1.96 for 95%.

    Returns:
        (low, high); (0, 1) without trials.
    """
    if n == 0:
        return 0.0, 1.0
    share, square = n_right / n, z * z / n
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def mcnemar_p(n_gained: int, n_lost: int) -> float:
    """The exact two-sided McNemar test: how likely so uneven a split of the changed answers is by chance alone.

    min(1, 2 P[Binomial(gained + lost, 1/2) <= min(gained, lost)]) (McNemar 1947, exact form).

    Args:
        n_gained: wrong before, right now.
        n_lost: right before, wrong now.
    """
    n = n_gained + n_lost
    tail = sum(math.comb(n, i) for i in range(min(n_gained, n_lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def ratio_interval(
    numerators: list[float], denominators: list[float], *, n_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A 95% interval of sum(numerators) / sum(denominators) over pairs: percentile bootstrap.

    Args:
        numerators, denominators: measured on the same items, in the same order.
        n_draws: bootstrap samples.
        seed: of the draws.

    Returns:
        (low, high); the ratio itself twice for a single pair.
    """
    draw, n = random.Random(seed), len(numerators)
    ratios = []
    for _ in range(n_draws):
        chosen = draw.choices(range(n), k=n)
        ratios.append(sum(numerators[i] for i in chosen) / sum(denominators[i] for i in chosen))
    ratios.sort()
    return ratios[int(0.025 * n_draws)], ratios[min(n_draws - 1, int(0.975 * n_draws))]
