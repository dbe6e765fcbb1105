"""Collects what the doctor finds: one sentence per check, and a remedy where something is wrong."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: one word or two.
        status: "ok", "warning" (usable, but) or "problem" (not usable).
        message: one sentence.
        remedy: what to do about it; None: nothing has to be done.
    """

    name: str
    status: str
    message: str
    remedy: str | None = None


@dataclass
class Diagnosis:
    """Everything that the doctor found."""

    checks: list[Check] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    engine: str | None = None  # "ragged" or "upstream": what serves a batch of prompts with this pair
    engine_reason: str | None = None  # why the ragged engine cannot
    self_check: dict[str, dict] = field(default_factory=dict)  # by engine
    costs: dict = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether no check found a problem."""
        return all(check.status != PROBLEM for check in self.checks)

    def json(self) -> dict:
        """Return all fields and `usable` as JSON values."""
        return dataclasses.asdict(self) | {"usable": self.usable}

    def ok(self, name: str, message: str) -> None:
        """Add a check that found nothing wrong."""
        self.checks.append(Check(name, OK, message))

    def warn(self, name: str, message: str, remedy: str | None = None) -> None:
        """Add a check that found something to improve."""
        self.checks.append(Check(name, WARNING, message, remedy))

    def problem(self, name: str, message: str, remedy: str | None = None) -> None:
        """Add a check that found judged generation unusable."""
        self.checks.append(Check(name, PROBLEM, message, remedy))
