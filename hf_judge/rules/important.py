"""AutoJudge (2504.20039): accept the mismatches that a classifier finds unimportant."""

from __future__ import annotations

import torch

from hf_judge.head.config import check_threshold
from hf_judge.head.judge_head import JudgeHead
from hf_judge.rules.base import AddingRule
from hf_judge.verify.rule import head_features, reads_draft_logits


def autojudge_accepts(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Accept where ``P(important) < threshold``, P(important) = 1 - sigmoid(logit).

    AutoJudge (2504.20039), whose classifier finds the mismatches that matter.

    Args:
        logits: (batch, n) float, of a head whose positive class is "acceptable", as all heads of this package.
        threshold: on P(important).

    Returns:
        (batch, n) bool, False where the logit is not a number.
    """
    return (-logits).sigmoid() < threshold


class AutoJudgeVerifier(AddingRule):
    """AutoJudge on target features (its "DT" form), see [`autojudge_accepts`].

    Args:
        head ([`JudgeHead`]): trained on mined mismatches; `hf_judge.integrations.autojudge` imports theirs.
        threshold: on P(important); accepted below it.
    """

    def __init__(
        self,
        head: JudgeHead,
        threshold: float = 0.5,
        *,
        rescue_stop_tokens: bool = False,
        max_rescue_fraction: float | None = None,
    ):
        super().__init__(rescue_stop_tokens=rescue_stop_tokens, max_rescue_fraction=max_rescue_fraction)
        if not isinstance(head, JudgeHead):
            raise TypeError(f"AutoJudgeVerifier expects a JudgeHead, got {type(head).__name__}")
        self.head = head
        self.threshold = check_threshold(threshold)

    @property
    def hidden_state(self) -> str:
        """The state that the head reads."""
        return self.head.config.hidden_state

    @property
    def reads_draft_logits(self) -> bool:
        """Whether the head reads numbers that need the draft's logits."""
        return reads_draft_logits(self.head)

    def judged(self, candidates, rows, choice):
        if self.head.config.hidden_size > rows.hidden.shape[-1]:
            raise ValueError(
                f"this AutoJudge head reads {self.head.config.hidden_size} features, the target's state has "
                f"{rows.hidden.shape[-1]}: it was trained on draft and target states (DD-DT), and the draft's are not "
                "at hand in generate(): train one on target states alone (DT)"
            )
        logits = self.head(head_features(self.head, candidates, rows))
        return autojudge_accepts(logits, self.threshold).to(candidates.ids.device)

    def __repr__(self) -> str:
        return f"AutoJudgeVerifier({self.head!r}, threshold={self.threshold})"
