"""Combine rules: a token stands where all of them accept it, or where any does."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from hf_judge.head.judge_head import JudgeHead
from hf_judge.rules.base import AddingRule
from hf_judge.rules.both.diversed import DiversedVerifier
from hf_judge.rules.thinking import ThinkingVerifier
from hf_judge.verify.judge import JudgeCandidateVerifier, head_features
from hf_judge.verify.round import Candidates, CandidateVerifier, TargetOutputs
from hf_judge.verify.strict import StrictChoice

OPERATIONS = {"all": torch.logical_and, "any": torch.logical_or}


@dataclass(eq=False)
class CombinedVerifier(AddingRule):
    """Adds to strict verification the tokens that all rules accept ("all"), or that any rule accepts ("any").

    The judge and a window: ``CombinedVerifier((judge, FlyVerifier(0.0, window=4)))``. The judge and an entropy gate:
    ``CombinedVerifier((judge, FlyVerifier(0.1, window=1)))``.

    A rule that samples from a distribution of its own gives only where it accepts: what replaces a rejected token is
    strict verification's.

    Args:
        rules: two or more judges or rules of this package; strict and block verification accept nothing of their own.
        how: "all" (AND) or "any" (OR).

    Raises:
        ValueError: there are fewer than two rules, `how` is unknown, or two rules read different hidden states.
        TypeError: a rule cannot be combined.
    """

    rules: tuple[CandidateVerifier, ...] = ()
    how: str = "all"

    def __post_init__(self):
        super().__post_init__()
        self.rules = tuple(self.rules)
        if self.how not in OPERATIONS:
            raise ValueError(f"how must be 'all' or 'any', got {self.how!r}")
        if len(self.rules) < 2:
            raise ValueError(f"CombinedVerifier combines two or more rules, got {len(self.rules)}")
        for rule in self.rules:
            _check_adds(rule)
        states = {rule.hidden_state for rule in self.rules} - {None}
        if len(states) > 1:
            raise ValueError(f"the rules read different hidden states, {' and '.join(sorted(states))}: use one of them")
        self.hidden_state = states.pop() if states else None

    @property
    def reads_draft_logits(self) -> bool:
        """Whether a rule reads the draft's logits before its processors."""
        return any(getattr(rule, "reads_draft_logits", False) for rule in self.rules)

    def judged(self, candidates, outputs, choice):
        found = (_judged(rule, candidates, outputs, choice) for rule in self.rules)
        return functools.reduce(OPERATIONS[self.how], found)


def _check_adds(rule: CandidateVerifier) -> None:
    """Refuse a rule that cannot say where it accepts apart from strict verification."""
    says = isinstance(rule, AddingRule) and type(rule).judged is not AddingRule.judged
    if not says and not isinstance(rule, JudgeCandidateVerifier):
        raise TypeError(
            f"{type(rule).__name__} cannot be combined: expected a judge or a rule whose `judged` says where it accepts"
        )


def _judged(
    rule: CandidateVerifier, candidates: Candidates, outputs: TargetOutputs, choice: StrictChoice
) -> torch.Tensor:
    if isinstance(rule, JudgeCandidateVerifier):
        return rule.judged(head_features(rule.head, candidates, outputs)).to(choice.accepted.device)
    return rule.judged(candidates, outputs, choice)


def heads_of(verifier: CandidateVerifier) -> list[JudgeHead]:
    """Return the heads that a verifier reads, those of the rules inside it included."""
    if isinstance(verifier, (JudgeCandidateVerifier, DiversedVerifier)):
        return [verifier.head]
    if isinstance(verifier, ThinkingVerifier):
        return heads_of(verifier.rule)
    rules = verifier.rules if isinstance(verifier, CombinedVerifier) else ()
    return [head for rule in rules for head in heads_of(rule)]
