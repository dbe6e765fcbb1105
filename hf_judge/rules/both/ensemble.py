"""Verify against a mixture of both models: the static ensemble of DIVERSE (2604.07622)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at
from hf_judge.rules.base import AddingRule, draft_scores_of, drafted
from hf_judge.verify.round import Candidates, TargetOutputs
from hf_judge.verify.strict import strict_choice


def ensemble_tokens(scores: torch.Tensor, draft_scores: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """Choose the best token of the mixture: ``argmax(w p + (1 - w) q)``.

    Greedy static ensemble of DIVERSE (2604.07622); tokens that the target rules out (-inf) stay out.

    Args:
        scores: (batch, n, V) float, the target's scores.
        draft_scores: (batch, n, V) float, the draft's scores.
        weight: w, 0 to 1; or (batch, n) float, one for each token.

    Returns:
        (batch, n) long.
    """
    weight = weight.unsqueeze(-1) if isinstance(weight, torch.Tensor) else weight
    mixture = weight * scores.softmax(dim=-1) + (1.0 - weight) * draft_scores.softmax(dim=-1)
    return mixture.masked_fill(scores <= torch.finfo(scores.dtype).min, -1.0).argmax(dim=-1)


def ensemble_accepts(
    scores: torch.Tensor,
    draft_scores: torch.Tensor,
    ids: torch.Tensor,
    draws: torch.Tensor,
    weight: float | torch.Tensor,
) -> torch.Tensor:
    """Accept x where ``u <= 1 - w + w p(x) / q(x)``.

    Sampling with DIVERSE's static ensemble (2604.07622): speculative sampling from v = w p + (1 - w) q. Its residual
    norm(max(v - q, 0)) is that of p, so the next token is drawn as strict verification draws it.

    Args:
        scores: (batch, n, V) float, the target's scores.
        draft_scores: (batch, n, V) float, the draft's scores.
        ids: (batch, n) long, the drafted tokens.
        draws: (batch, n) float in [0, 1), u.
        weight: w, 0 to 1; or (batch, n) float, one for each token.

    Returns:
        (batch, n) bool.
    """
    target, draft = (at(s.softmax(dim=-1), ids) for s in (scores, draft_scores))
    return draws * draft <= (1.0 - weight) * draft + weight * target


@dataclass(eq=False)
class EnsembleVerifier(AddingRule):
    """Verifies against the mixture ``w p + (1 - w) q``; the same tokens as upstream's `assistant_ensemble_weight`.

    The mixture is a distribution of its own: in greedy decoding, its best token replaces a rejected one, and it may end
    the answer, so `rescue_stop_tokens` is on.

    Args:
        weight: w, between 0 (accept everything) and 1 (strict verification).
    """

    weight: float = 0.5
    rescue_stop_tokens: bool = field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_number("weight", self.weight, 0, 1)

    def weights(self, candidates: Candidates, outputs: TargetOutputs) -> float | torch.Tensor:
        """Return w, for all drafted tokens or, (batch, k) float, for each."""
        return self.weight

    def verify(self, candidates, outputs):
        """See [`CandidateVerifier`]."""
        choice = strict_choice(candidates, outputs)
        ids, k = candidates.ids, candidates.ids.shape[1]
        draft_scores = draft_scores_of(candidates, outputs, type(self).__name__)
        if outputs.do_sample:
            judged = self.judged(candidates, outputs, choice) if k else None
            return self._decide(candidates, outputs, choice, judged)
        tokens = choice.tokens.clone()
        tokens[:, :k] = ensemble_tokens(drafted(outputs), draft_scores, self.weights(candidates, outputs))
        if candidates.lengths is not None:  # after a whole draft there is no q: the target's own token
            whole = torch.arange(k + 1, device=ids.device) >= candidates.lengths.unsqueeze(1)
            tokens = torch.where(whole, choice.tokens, tokens)
        return self._decide(candidates, outputs, choice, tokens[:, :k] == ids, replaces_strict=True, tokens=tokens)

    def judged(self, candidates, outputs, choice):
        draft_scores = draft_scores_of(candidates, outputs, type(self).__name__)
        weight = self.weights(candidates, outputs)
        if outputs.do_sample:
            return ensemble_accepts(drafted(outputs), draft_scores, candidates.ids, choice.draws, weight)
        return ensemble_tokens(drafted(outputs), draft_scores, weight) == candidates.ids
