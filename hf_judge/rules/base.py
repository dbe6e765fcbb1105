"""Share what all rules need: adding to strict verification, scores of drafted tokens, checked settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats
from hf_judge.verify.strict import StrictChoice, strict_choice


@dataclass(eq=False)
class AddingRule:
    """Adds a rule to strict verification: "strict accepts OR the rule accepts".

    Args:
        rescue_stop_tokens: whether the rule may end the answer earlier than the target would.
        max_rescue_fraction: largest share of an answer that may come from rescues; None: any.
    """

    rescue_stop_tokens: bool = field(default=False, kw_only=True)
    max_rescue_fraction: float | None = field(default=None, kw_only=True)

    hidden_state = None  # no annotation: the state that `verify` needs is no setting

    def __post_init__(self):
        if self.max_rescue_fraction is not None:
            check("max_rescue_fraction", self.max_rescue_fraction, 0, 1)
        self.stats = JudgeStats()

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """See [`CandidateVerifier`]."""
        choice = strict_choice(candidates, outputs)
        return self._decide(candidates, outputs, choice, self.judged(candidates, outputs, choice))

    def judged(self, candidates: Candidates, outputs: TargetOutputs, choice: StrictChoice) -> torch.Tensor:
        """Return where the rule itself accepts, (batch, k) bool; a rule needs only this method.

        Args:
            candidates: the drafted tokens: `ids` (batch, k) long, and what is known about them.
            outputs: the target's outputs; see [`drafted`] for its scores of the drafted tokens.
            choice: the decisions of strict verification.
        """
        raise NotImplementedError

    def _decide(self, candidates, outputs, choice, judged, **how) -> Verdict:
        return decide(
            candidates,
            outputs,
            judged,
            choice=choice,
            rescue_stop_tokens=self.rescue_stop_tokens,
            max_rescue_fraction=self.max_rescue_fraction,
            **how,
        )


def drafted(outputs: TargetOutputs) -> torch.Tensor:
    """Return the target's scores (batch, k, V) at the positions that predict the drafted tokens."""
    return outputs.scores[:, :-1]


def draft_scores_of(candidates: Candidates, outputs: TargetOutputs, rule: str) -> torch.Tensor:
    """Return the draft's scores (batch, k, V) float32.

    Raises:
        ValueError: there are none, or they are over another vocabulary; the message names the rule.
    """
    if candidates.ids.shape[1] == 0:
        return drafted(outputs)
    if candidates.logits is None:
        raise ValueError(
            f"{rule} compares the target with the draft's distribution, and this source of drafts has none (prompt "
            "lookup and the like): pass assistant_model=, or a rule that needs the target alone"
        )
    if candidates.logits.shape[-1] != outputs.scores.shape[-1]:
        raise ValueError(
            f"{rule} needs draft and target over one vocabulary, got {candidates.logits.shape[-1]} and "
            f"{outputs.scores.shape[-1]} tokens"
        )
    return candidates.logits.to(outputs.scores.device, torch.float32)


def check(name: str, value: float, least: float = -math.inf, most: float = math.inf, kind: type = float) -> None:
    """Refuse a setting of another type or outside its range.

    Raises:
        TypeError, ValueError: the setting is refused; the message says what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r:.60}")
    if not math.isfinite(value) or not least <= value <= most:
        bounds = f"at least {least}" if most == math.inf else f"between {least} and {most}"
        raise ValueError(f"{name} must be {bounds}, got {value}")
