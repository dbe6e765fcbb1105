"""Counts what a judged generation did: tokens, forwards, seconds per phase, and a code for every new token."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import IntEnum


class VerdictCode(IntEnum):
    """How a new token came about; the values of the int8 `verdicts` tensor."""

    MATCHED = 0  # drafted, and the strict rule accepts it
    RESCUED = 1  # drafted, the strict rule rejects it, the judge accepts it
    CORRECTED = 2  # the target's own token in place of a rejected one
    BONUS = 3  # the target's own token after a whole draft was accepted, or without a draft
    PADDING = 4  # no token: the row had finished


@dataclass(repr=False)
class JudgeStats:
    """Counts and seconds of one or more judged generations; adds up with ``+`` and ``sum``.

    Invariants: ``accepted == matched + rescued`` and ``new_tokens == matched + rescued + corrected + bonus``.
    """

    target_forwards: int = 0  # forward passes of the target, idle ones under synced_gpus included
    row_forwards: int = 0  # rows of the batch that those passes verified: target_forwards for a single prompt
    rounds: int = 0  # propose-verify-commit rounds
    drafted: int = 0  # tokens that the draft proposed and the target verified
    accepted: int = 0  # drafted tokens that stand in the answer
    matched: int = 0
    rescued: int = 0
    corrected: int = 0
    bonus: int = 0
    refused_by_constraint: int = 0  # the judge would have rescued, a hard constraint or a stop token forbade it
    non_finite: int = 0  # verified tokens whose hidden state or score was NaN or infinite: never rescued
    seconds_drafting: float = 0.0
    seconds_verifying: float = 0.0  # the target's forward passes and the logits processors
    seconds_judging: float = 0.0  # the rule, the head included
    seconds_rest: float = 0.0  # bookkeeping, streaming, stopping criteria

    @property
    def new_tokens(self) -> int:
        """Tokens in the answers."""
        return self.matched + self.rescued + self.corrected + self.bonus

    @property
    def seconds(self) -> float:
        """Wall time of the decoding loops."""
        return self.seconds_drafting + self.seconds_verifying + self.seconds_judging + self.seconds_rest

    @property
    def tokens_per_forward(self) -> float:
        """New tokens per forward pass of the target (1.0 for plain decoding of one prompt)."""
        return self.new_tokens / max(self.target_forwards, 1)

    @property
    def accepted_per_forward(self) -> float:
        """Accepted drafted tokens per forward pass of the target over a row of the batch: the paper's m*."""
        return self.accepted / max(self.row_forwards or self.target_forwards, 1)

    @property
    def rescued_fraction(self) -> float:
        """Share of the new tokens that only the judge accepted."""
        return self.rescued / max(self.new_tokens, 1)

    def to_dict(self) -> dict[str, int | float]:
        """Return all counts and seconds, and the ratios derived from them."""
        derived = ("new_tokens", "seconds", "tokens_per_forward", "accepted_per_forward", "rescued_fraction")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def __add__(self, other: JudgeStats) -> JudgeStats:
        if not isinstance(other, JudgeStats):
            return NotImplemented
        return JudgeStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __radd__(self, other: int | JudgeStats) -> JudgeStats:
        # sum() starts with 0
        return self if other == 0 else NotImplemented

    def __repr__(self) -> str:
        return (
            f"JudgeStats(new_tokens={self.new_tokens}, target_forwards={self.target_forwards}, "
            f"drafted={self.drafted}, matched={self.matched}, rescued={self.rescued}, corrected={self.corrected}, "
            f"bonus={self.bonus}, tokens_per_forward={self.tokens_per_forward:.2f}, seconds={self.seconds:.3f})"
        )
