"""Accepts a drafted token where the head's score passes the threshold, or strict verification accepts: the judge.

Source: Judge Decoding, Bachmann et al. 2501.19309, section 3.
"""

from __future__ import annotations

import torch

from hf_judge.head.config import check_number, check_threshold
from hf_judge.head.distributions import DRAFT_FEATURES, extra_features
from hf_judge.head.judge_head import JudgeHead
from hf_judge.verify.decide import decide
from hf_judge.verify.round import Candidates, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats


class JudgeCandidateVerifier:
    """Judge Decoding: accept where ``sigmoid(head(h)) > threshold`` or strict verification accepts.

    h is the target's hidden state at the drafted token itself, which holds the target's reaction to that token
    (2501.19309, section 3).

    A few rescued tokens may leave a text that neither model would have written, and from which the target goes on
    worse than from its own. The sign of it is a correction soon after a rescue: with a `rescue_window`, such a rescue
    is undone and the target's own token stands in its place. docs/thresholds.md has the figures.

    Args:
        head ([`JudgeHead`]): the judge.
        threshold (`float`, *optional*): between 0 (every token is accepted) and 1 (strict verification); default: the
            head's own.
        rescue_stop_tokens (`bool`): whether the judge may end the answer earlier than the target would.
        max_rescue_fraction (`float`, *optional*): largest share of an answer that may come from rescues.
        rescue_window (`int`, *optional*): a rescue is undone where one of the next `rescue_window` tokens of the same
            draft is corrected; 0: rescues stand; default: the head's own.

    Raises:
        TypeError: `head` is no JudgeHead, or a number is none.
        ValueError: a number is outside [0, 1], or `rescue_window` is negative.
    """

    def __init__(
        self,
        head: JudgeHead,
        threshold: float | None = None,
        *,
        rescue_stop_tokens: bool = False,
        max_rescue_fraction: float | None = None,
        rescue_window: int | None = None,
    ):
        if not isinstance(head, JudgeHead):
            raise TypeError(
                f"JudgeCandidateVerifier expects a JudgeHead, got {type(head).__name__}: "
                "load one with JudgeHead.from_pretrained(...)"
            )
        if head.config.state_of == "before":
            raise ValueError(
                "a judge reads the state at a token, and this head was trained on the states before the tokens: pass "
                "it to DiversedVerifier, or make the features without --state before"
            )
        self.head = head
        self.threshold = check_threshold(head.config.threshold if threshold is None else threshold)
        self.rescue_stop_tokens = rescue_stop_tokens
        if max_rescue_fraction is not None:
            check_number("max_rescue_fraction", max_rescue_fraction, 0, 1)
        self.max_rescue_fraction = max_rescue_fraction
        self.rescue_window = head.config.rescue_window if rescue_window is None else rescue_window
        check_number("rescue_window", self.rescue_window, 0, kind=int)
        self.stats = JudgeStats()

    @property
    def hidden_state(self) -> str:
        """Name of the hidden state that the head reads."""
        return self.head.config.hidden_state

    @property
    def reads_draft_logits(self) -> bool:
        """Whether the head reads numbers that need the draft's logits."""
        return reads_draft_logits(self.head)

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """See [`CandidateVerifier`]."""
        return decide(
            candidates,
            outputs,
            self.judged(head_features(self.head, candidates, outputs)),
            rescue_stop_tokens=self.rescue_stop_tokens,
            max_rescue_fraction=self.max_rescue_fraction,
            rescue_window=self.rescue_window,
        )

    def judged(self, features: torch.Tensor) -> torch.Tensor:
        """Return where the judge accepts: ``sigmoid(head(features)) > threshold``.

        Args:
            features: (..., F), see [`head_features`].

        Returns:
            (...) bool, False where the logit is not a number.
        """
        return self.head(features).sigmoid() > self.threshold

    def with_threshold(self, threshold: float) -> JudgeCandidateVerifier:
        """Return the same judge at another threshold, with statistics of its own."""
        return JudgeCandidateVerifier(
            self.head,
            threshold,
            rescue_stop_tokens=self.rescue_stop_tokens,
            max_rescue_fraction=self.max_rescue_fraction,
            rescue_window=self.rescue_window,
        )

    def __repr__(self) -> str:
        return f"JudgeCandidateVerifier({self.head!r}, threshold={self.threshold})"


def head_features(head: JudgeHead, candidates: Candidates, outputs: TargetOutputs) -> torch.Tensor:
    """Return what a head reads at each drafted token: the state after it, then the extra features of its config.

    Drafted token j takes the hidden state of position j+1, and extra features of the logits at position j.

    Returns:
        (batch, k, F), on the device of `outputs.hidden`.

    Raises:
        ValueError: the head reads the draft's logits, and there are none.
    """
    hidden, names, k = outputs.hidden[:, 1:], head.config.extra_features, candidates.ids.shape[1]
    if not names:
        return hidden
    if k == 0:
        return hidden.new_zeros(*hidden.shape[:2], head.config.n_features)
    extra = extra_features(names, outputs.logits[:, :k], candidates.ids, candidates.raw_logits)
    return torch.cat([hidden.float(), extra.to(hidden.device)], dim=-1)


def reads_draft_logits(head: JudgeHead) -> bool:
    """Tell whether a head reads numbers that need the draft's logits."""
    return any(name in DRAFT_FEATURES for name in head.config.extra_features)
