"""Chooses how many tokens to draft: a constant, upstream's heuristic, or what promises most tokens per second."""

from __future__ import annotations

import statistics
from collections import deque

ADAPTIVE = "adaptive"
LENGTHS = (2, 4, 8, 16, 24, 32, 48, 64)  # lengths that an adaptive draft may have
MAX_LENGTH = 32  # the longest adaptive draft, unless the caller gives another
PROBE_BUDGET = 0.01  # share of plain decoding's time that may be lost on finding out whether drafting pays
DECAY = 0.9  # weight of a round's acceptance after each later round
RETIME_AFTER = 100  # rounds after which plain decoding is timed again
RETIME_BELOW = 2.0  # expected speed-up below which plain decoding is timed three times before a decision


class ConstantLength:
    """Drafts the same number of tokens in every round."""

    compiled_lengths_round_up = False  # few lengths, each of which can be compiled for

    def __init__(self, n_tokens: int):
        self.n_tokens = n_tokens

    def next(self) -> int:
        """Return the number of tokens to draft in the coming round."""
        return self.n_tokens

    def observe(self, drafted: list[int], accepted: list[int], seconds: float) -> None:
        """Take note of a round: drafted and accepted tokens of each prompt, and the seconds it took."""


class HeuristicLength(ConstantLength):
    """Follows upstream's heuristic: two tokens more after a wholly accepted draft, one fewer otherwise."""

    compiled_lengths_round_up = True  # any length may come

    def observe(self, drafted: list[int], accepted: list[int], seconds: float) -> None:
        """See [`ConstantLength`]."""
        whole = all(n == n_drafted for n, n_drafted in zip(accepted, drafted, strict=True))
        self.n_tokens = max(1, self.n_tokens + (2 if whole else -1))


class AdaptiveLength:
    """Drafts the length that promises most tokens per second, from measured acceptance and measured time.

    A draft of M tokens gives ``a (1 - a^M) / (1 - a) + 1`` tokens in t(M) seconds, where a is the share of the decided
    drafted tokens that were accepted (2211.17192, section 3.1). t is measured for lengths that were tried, and
    interpolated for the others. M = 0 is plain decoding. Where nothing pays, drafting stops. It is tried again
    when the expected loss of one try, plus earlier losses that were not won back, is at most 1% of the time that plain
    decoding would have taken so far.

    Args:
        max_length: the longest draft.
    """

    compiled_lengths_round_up = False

    def __init__(self, max_length: int = MAX_LENGTH):
        self._lengths = [0, *(n for n in LENGTHS if n < max_length), max_length]
        self._times = {}  # length -> seconds of the last rounds with it
        self._accepted, self._decided = 1.4, 2.0  # a = 0.7 before the first round
        self._lost = 0.0  # seconds lost against plain decoding and not yet won back
        self._plain_seconds = 0.0  # seconds that plain decoding would have taken
        self._since_plain = 0  # rounds since the last one without a draft
        self._chosen = 0

    def next(self) -> int:
        """Return the number of tokens to draft in the coming round."""
        self._chosen = self._choose()
        return self._chosen

    def observe(self, drafted: list[int], accepted: list[int], seconds: float) -> None:
        """Take note of a round: drafted and accepted tokens of each prompt, and the seconds it took."""
        n = self._chosen if any(drafted) else 0
        rejections = sum(a < d for d, a in zip(drafted, accepted, strict=True))
        if n:
            self._accepted = DECAY * self._accepted + sum(accepted)
            self._decided = DECAY * self._decided + sum(accepted) + rejections
        self._times.setdefault(n, deque(maxlen=5)).append(seconds)
        self._since_plain = self._since_plain + 1 if n else 0
        if 0 in self._times:
            plain = self._seconds(0) * (1 + sum(accepted) / max(len(accepted), 1))
            self._plain_seconds += plain
            self._lost = max(0.0, self._lost + seconds - plain)

    @property
    def acceptance_rate(self) -> float:
        """Share of the decided drafted tokens that were accepted; recent rounds count more."""
        return min(self._accepted / self._decided, 0.999)

    def _choose(self) -> int:
        tried = [n for n in self._times if n]
        if not tried:
            return min(4, self._lengths[-1])  # the cost is still unknown: a wrong guess should be cheap
        if 0 not in self._times or self._since_plain >= RETIME_AFTER:
            return 0
        best = max(self._lengths, key=self._rate)
        if best and len(self._times[0]) < 3 and self._rate(best) < RETIME_BELOW * self._rate(0):
            return 0
        if best:
            return best
        probe = min(tried)
        affordable = PROBE_BUDGET * self._plain_seconds - self._lost
        return probe if self._seconds(probe) - self._seconds(0) <= affordable else 0

    def _rate(self, n: int) -> float:
        """Return the expected tokens per second."""
        a = self.acceptance_rate
        return (a * (1 - a**n) / (1 - a) + 1) / self._seconds(n)

    def _seconds(self, n: int) -> float:
        if n in self._times:
            return statistics.median(self._times[n])
        points = [(m, statistics.median(times)) for m, times in self._times.items()]
        # at least two points: the line between plain decoding and the nearest length that was tried
        (m0, t0), (m1, t1) = min(points), min((p for p in points if p[0]), key=lambda p: abs(p[0] - n))
        return max(t0 + (t1 - t0) / (m1 - m0) * (n - m0), 1e-9)


def length_schedule(n_tokens: int, schedule: str, *, is_maximum: bool):
    """Return the schedule of a call.

    Args:
        n_tokens: the draft length; for an adaptive schedule the longest one, if `is_maximum`.
        schedule: "constant", "heuristic", "heuristic_transient" or "adaptive".
        is_maximum: whether the caller gave `n_tokens`.
    """
    if schedule == ADAPTIVE:
        return AdaptiveLength(n_tokens if is_maximum else MAX_LENGTH)
    return HeuristicLength(n_tokens) if schedule.startswith("heuristic") else ConstantLength(n_tokens)
