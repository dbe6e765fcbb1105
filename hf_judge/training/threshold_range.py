"""Finds the range of thresholds in which an answer stays the same, so that it is decoded once for all of them."""

from __future__ import annotations

import math

import torch

from hf_judge.head.judge_head import JudgeHead
from hf_judge.verify.decide import decide
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import Candidates, TargetOutputs, Verdict
from hf_judge.verify.stats import VerdictCode


class ThresholdRangeVerifier(JudgeCandidateVerifier):
    """Judges at one threshold, and finds for which other thresholds every decision would have been the same.

    The judge rescues where ``score > threshold``. So an answer stays the same from the largest score that was rejected,
    inclusive, up to the smallest score that was rescued, exclusive.

    The decoding must be greedy.

    Args:
        head: the judge.
        threshold: the threshold.
        n_prompts: size of the batch.
    """

    def __init__(self, head: JudgeHead, threshold: float, n_prompts: int):
        super().__init__(head, threshold)
        self._lowest = torch.full((n_prompts,), -math.inf)
        self._highest = torch.full((n_prompts,), math.inf)
        self._scores: torch.Tensor | None = None  # of the running round

    def judged(self, features: torch.Tensor) -> torch.Tensor:
        """See [`JudgeCandidateVerifier`]; keeps the scores."""
        self._scores = self.head(features).sigmoid()
        return self._scores > self.threshold

    def verify(self, candidates: Candidates, outputs: TargetOutputs) -> Verdict:
        """See [`CandidateVerifier`]."""
        verdict, k = super().verify(candidates, outputs), candidates.ids.shape[1]
        if k:
            scores = self._scores.float()
            # which rescues are undone depends on the scores of them all: the range is that of the decisions before it
            judged = scores > self.threshold
            decided = decide(candidates, outputs, judged) if self.rescue_window else verdict
            rescued = (decided.codes[:, :k] == VerdictCode.RESCUED).to(scores.device)
            at = decided.n_accepted.clamp(max=k - 1).unsqueeze(1).to(scores.device)
            first_rejected = scores.gather(1, at).squeeze(1)
            # a token that a constraint rejected in spite of its score depends on no threshold
            is_rejected = (decided.codes == VerdictCode.CORRECTED).any(dim=1).to(scores.device)
            is_rejected &= first_rejected <= self.threshold
            places = torch.arange(len(scores)) if candidates.places is None else candidates.places.cpu()
            lowest = first_rejected.masked_fill(~is_rejected, -math.inf).cpu()
            highest = scores.masked_fill(~rescued, math.inf).amin(dim=1).cpu()
            self._lowest[places] = torch.maximum(self._lowest[places], lowest)
            self._highest[places] = torch.minimum(self._highest[places], highest)
        return verdict

    def range_of(self, place: int) -> tuple[float, float]:
        """Return the thresholds (lowest, highest) from which on, and below which, an answer stays as it is.

        Where there is no limit, they are -1 and 2: thresholds are between 0 and 1.

        Args:
            place: place of the prompt in the batch.
        """
        return max(self._lowest[place].item(), -1.0), min(self._highest[place].item(), 2.0)


def holds_at(threshold: float, lowest: float, highest: float) -> bool:
    """Tell whether a range of [`ThresholdRangeVerifier.range_of`] holds a threshold."""
    rounded = torch.tensor(threshold, dtype=torch.float32).item()  # as scores are compared
    return lowest <= rounded < highest
