"""Says how sure counts are: exact bounds, intervals and paired tests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import torch


def binomial_upper_bound(n_events: int, n: int, error: float) -> float:
    """Return the exact (Clopper-Pearson) upper bound on a probability.

    The p at which P(Binomial(n, p) <= k) = error: had the probability been higher, so few events would have had a
    chance below `error`.

    Args:
        n_events: k, the events that were seen.
        n: independent trials.
        error: chance of a bound that is too low, between 0 and 1.
    """
    if n_events >= n:
        return 1.0
    if n_events == 0:
        return -math.expm1(math.log(error) / n)  # (1 - p)^n = error
    k = torch.arange(n_events + 1, dtype=torch.float64)
    trials = torch.tensor(float(n), dtype=torch.float64)
    ways = torch.lgamma(trials + 1) - torch.lgamma(k + 1) - torch.lgamma(trials - k + 1)
    low, high = n_events / n, 1.0
    # bisection: the tail falls with p; 60 halvings are below the spacing of doubles
    for _ in range(60):
        p = (low + high) / 2
        tail = torch.logsumexp(ways + k * math.log(p) + (trials - k) * math.log1p(-p), dim=0).item() if p < 1 else -1e9
        low, high = (p, high) if tail > math.log(error) else (low, p)
    return high


def mistakes_needed(rate: float, risk: float, error: float) -> int | None:
    """Return the number of mistakes at which a share `rate` of accepted ones is certified to be under `risk`.

    Returns:
        The smallest such number, up to rounding of the events; None above a million.
    """
    if rate >= risk:
        return None
    n = math.ceil(math.log(error) / math.log1p(-risk))
    while n <= 1_000_000:
        if binomial_upper_bound(math.ceil(rate * n), n, error) <= risk:
            return n
        n = math.ceil(n * 1.05)
    return None


def wilson_interval(n_right: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95% score interval of a share, (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Wilson 1927; unlike p -+ z sqrt(p(1-p)/n) it stays inside [0, 1] and holds for small n and shares near 0 and 1.

    Args:
        n_right: successes.
        n: trials.

    Returns:
        (low, high); (0, 1) without trials.
    """
    if n == 0:
        return 0.0, 1.0
    z = 1.96
    share, square = n_right / n, z * z / n
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def changes(before: Iterable[bool | None], after: Iterable[bool | None]) -> tuple[int, int]:
    """Count the answers that became right, and those that became wrong, from one way of answering to another.

    Args:
        before, after: whether each answer is right, to the same questions in the same order.

    Returns:
        (gained, lost).
    """
    pairs = [(bool(a), bool(b)) for a, b in zip(before, after, strict=True)]
    return pairs.count((False, True)), pairs.count((True, False))


def mcnemar_p(n_gained: int, n_lost: int) -> float:
    """Return the p-value of the exact two-sided McNemar test.

    It is the probability that chance alone splits the changed answers at least so unevenly:
    min(1, 2 P[Binomial(gained + lost, 1/2) <= min(gained, lost)]) (McNemar 1947, exact form).

    Args:
        n_gained: wrong before, right now.
        n_lost: right before, wrong now.
    """
    n = n_gained + n_lost
    tail = sum(math.comb(n, i) for i in range(min(n_gained, n_lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def ratio_interval(numerators: list[float], denominators: list[float]) -> tuple[float, float]:
    """Return a 95% interval of sum(numerators) / sum(denominators), by percentile bootstrap over pairs.

    Args:
        numerators, denominators: figures of the same items, in the same order.

    Returns:
        (low, high); for a single pair both are its ratio.
    """
    draw, n, n_draws = random.Random(0), len(numerators), 1000
    ratios = []
    for _ in range(n_draws):
        chosen = draw.choices(range(n), k=n)
        ratios.append(sum(numerators[i] for i in chosen) / sum(denominators[i] for i in chosen))
    ratios.sort()
    return ratios[int(0.025 * n_draws)], ratios[min(n_draws - 1, int(0.975 * n_draws))]
