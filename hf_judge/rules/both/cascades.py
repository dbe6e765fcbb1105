"""Follow the draft or defer to the target: speculative cascades (2405.19261).

The deferral rules look at the models' own distributions, before temperature and other processors, as in the authors'
code (google-research/speculative_cascades); what they then sample from are the processed ones, p and q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at
from hf_judge.rules.base import AddingRule, RelaxedSampler, raw_probabilities


def cascade_follows(target: torch.Tensor, draft: torch.Tensor, alpha: float, deferral: str) -> torch.Tensor:
    """Tell where a speculative cascade follows the draft; elsewhere it defers to the target.

    2405.19261: Chow's rule (equation 2) ``max q >= 1 - alpha``; Diff (equation 5) ``max q >= max p - alpha``; OPT
    (equation 10) ``max q >= max p - alpha TV(p, q)``, TV the total variation distance.

    Args:
        target: (batch, n, V) float, p.
        draft: (batch, n, V) float, q.
        alpha: leniency: above 1 the draft is always followed; Chow's rule is strict below 0, Diff below -1, and OPT
            becomes strict with a large negative number.
        deferral: "chow", "diff" or "opt".

    Returns:
        (batch, n) bool.
    """
    surest = draft.amax(dim=-1)
    if deferral == "chow":
        return surest >= 1.0 - alpha
    margin = alpha if deferral == "diff" else alpha * (draft - target).clamp(min=0).sum(dim=-1)
    return surest >= target.amax(dim=-1) - margin


@dataclass(eq=False)
class CascadeVerifier(AddingRule):
    """Accepts every token where the cascade follows the draft, and is strict elsewhere, see [`cascade_follows`].

    When sampling, this draws from q where the draft is followed, and from p elsewhere.

    Args:
        alpha: leniency, see [`cascade_follows`].
        deferral: "chow", "diff" or "opt".
    """

    alpha: float = 0.0
    deferral: str = "opt"

    reads_draft_logits = True

    def __post_init__(self):
        super().__post_init__()
        check_number("alpha", self.alpha)
        if self.deferral not in ("chow", "diff", "opt"):
            raise ValueError(f"deferral must be 'chow', 'diff' or 'opt', got {self.deferral!r}")

    def judged(self, candidates, outputs, choice):
        target, draft = raw_probabilities(candidates, outputs, "CascadeVerifier")
        return cascade_follows(target, draft, self.alpha, self.deferral)


def trusted_tokens(target: torch.Tensor, draft: torch.Tensor, alpha: float, version: int) -> torch.Tensor:
    """Return the set A of tokens for which a token-specific cascade trusts the draft.

    2405.19261, equations 13 to 15: version 1 ``q(v) >= max p - alpha``, 2 ``p(v) >= max p - alpha``, 3
    ``p(v) >= (1 - alpha) max p``.

    Args:
        target: (batch, n, V) float, p.
        draft: (batch, n, V) float, q.
        alpha: leniency: below 0 (version 1: -1) no token is trusted, at 1 all are.
        version: 1, 2 or 3.

    Returns:
        (batch, n, V) bool.
    """
    best = target.amax(dim=-1, keepdim=True)
    if version == 3:
        return target >= (1.0 - alpha) * best
    return (draft if version == 1 else target) >= best - alpha


@dataclass(eq=False)
class TokenCascadeVerifier(RelaxedSampler):
    """Trusts the draft for some tokens (token-specific cascade), see [`trusted_tokens`].

    Sampling is from ``pi(v) = [v in A] q(v) + p(v) (1 - q(A))``. In greedy decoding this accepts the drafted token
    where it is in A or the target's best.

    Args:
        alpha: leniency: below 0 (version 1: -1) strict verification; at 1 every token is accepted that the target does
            not rule out.
        version: 1, 2 or 3; 3 is the best in the paper.
    """

    alpha: float = 0.3
    version: int = 3

    reads_draft_logits = True

    def __post_init__(self):
        super().__post_init__()
        check_number("alpha", self.alpha, most=1)
        check_number("version", self.version, 1, 3, kind=int)

    def judged(self, candidates, outputs, choice):
        if outputs.do_sample:
            return super().judged(candidates, outputs, choice)
        return at(self._trusted(candidates, outputs), candidates.ids)

    def relaxed(self, candidates, outputs, target, draft):
        followed = draft * self._trusted(candidates, outputs)
        return followed + target * (1.0 - followed.sum(dim=-1, keepdim=True)).clamp(min=0)

    def _trusted(self, candidates, outputs):
        raw = raw_probabilities(candidates, outputs, "TokenCascadeVerifier")
        possible = outputs.scores[:, : candidates.ids.shape[1]] > torch.finfo(outputs.scores.dtype).min
        return trusted_tokens(*raw, self.alpha, self.version) & possible
