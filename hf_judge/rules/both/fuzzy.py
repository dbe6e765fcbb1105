"""Accept where draft and target are close by a divergence of one's choice: fuzzy speculative decoding (2502.20704)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import kl_divergence, over_shared_tokens
from hf_judge.rules.base import AddingRule, draft_scores_of
from hf_judge.verify.strict import strict_choice


def js_divergence(scores: torch.Tensor, draft_scores: torch.Tensor) -> torch.Tensor:
    """Return the Jensen-Shannon divergence ``KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``, in nats."""
    middle = (scores.softmax(dim=-1) + draft_scores.softmax(dim=-1)).div(2).log()
    return (kl_divergence(scores, middle) + kl_divergence(draft_scores, middle)) / 2


def total_variation(scores: torch.Tensor, draft_scores: torch.Tensor) -> torch.Tensor:
    """Return the total variation distance ``sum |p - q| / 2``, 0 to 1."""
    return (scores.softmax(dim=-1) - draft_scores.softmax(dim=-1)).abs().sum(dim=-1) / 2


DIVERGENCES = {
    "js": js_divergence,
    "kl_target_draft": kl_divergence,
    "kl_draft_target": lambda scores, draft_scores: kl_divergence(draft_scores, scores),
    "tv": total_variation,
}


def fuzzy_accepts(
    scores: torch.Tensor, draft_scores: torch.Tensor, threshold: float, divergence: str = "js"
) -> torch.Tensor:
    """Accept where ``Div(p, q) < threshold``, whatever the drafted token is.

    Fuzzy speculative decoding (2502.20704, algorithm 1). The authors' code computes its Jensen-Shannon divergence with
    the arguments of both KL terms exchanged; here it is the usual one, as in the paper.

    Args:
        scores: (batch, n, V) float, the target's scores.
        draft_scores: (batch, n, V) float, the draft's scores.
        threshold: bound on the divergence, in nats ("tv": 0 to 1).
        divergence: a name in `DIVERGENCES`.

    Returns:
        (batch, n) bool.
    """
    return DIVERGENCES[divergence](scores, draft_scores) < threshold


@dataclass(eq=False)
class FuzzyVerifier(AddingRule):
    """Accepts where draft and target are close (FSD), see [`fuzzy_accepts`]; else strict verification decides.

    The divergence is that of the models' own logits, before temperature and other processors, as in the authors' code.

    Args:
        threshold: bound on the divergence; 0 is strict verification.
        divergence: "js" (Jensen-Shannon), "kl_target_draft" (KL(p || q)), "kl_draft_target" (KL(q || p)), or "tv".
        reduced: whether strict verification is asked about tokens that the divergence rejects, which accepts more of
            the same distribution. False is the paper's algorithm 1: such a token is replaced by a draw from p.
    """

    threshold: float = 0.4
    divergence: str = "js"
    reduced: bool = True

    reads_draft_logits = True

    def __post_init__(self):
        super().__post_init__()
        check_number("threshold", self.threshold, 0)
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {self.divergence!r}")

    def verify(self, candidates, outputs):
        """See [`CandidateVerifier`]."""
        # without draft logits, strict verification draws its token from p, and that is what replaces a rejected one
        choice = strict_choice(candidates if self.reduced else candidates._replace(logits=None), outputs)
        judged = self.judged(candidates, outputs, choice)
        return self._decide(candidates, outputs, choice, judged, replaces_strict=not self.reduced)

    def judged(self, candidates, outputs, choice):
        draft_scores = draft_scores_of(candidates, outputs, "FuzzyVerifier")
        raw = draft_scores if candidates.raw_logits is None else candidates.raw_logits.to(draft_scores)
        logits, raw = over_shared_tokens(outputs.logits[:, : candidates.ids.shape[1]], raw)
        return fuzzy_accepts(logits, raw, self.threshold, self.divergence)
