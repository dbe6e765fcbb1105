"""Accept by the target's probability: SGLang's acceptance thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at
from hf_judge.rules.base import AddingRule, drafted
from hf_judge.verify.strict import strict_choice


def thresholds_accept(
    scores: torch.Tensor, ids: torch.Tensor, draws: torch.Tensor | None, single: float, accumulated: float
) -> torch.Tensor:
    """Accept x where ``p(x) >= single`` or ``u <= p(x) / accumulated``.

    SGLang's `speculative_accept_threshold_single` and `_acc`, its target-only sampling for one candidate per position.

    Args:
        scores: (batch, n, V) float, the target's scores at the positions that predict the drafted tokens.
        ids: (batch, n) long, the drafted tokens.
        draws: (batch, n) float in [0, 1), u; None: no random part.
        single: bound on p(x); a value above 1 accepts nothing.
        accumulated: divisor of p(x); 1 is lossless.

    Returns:
        (batch, n) bool.
    """
    target = at(scores.softmax(dim=-1), ids)
    accepted = target >= single
    return accepted if draws is None else accepted | (draws * max(accumulated, 1e-9) <= target)


@dataclass(eq=False)
class ThresholdsVerifier(AddingRule):
    """Accepts by SGLang's thresholds, see [`thresholds_accept`]; 1 and 1 are lossless.

    When sampling, a draw from p without the rejected token replaces it. In greedy decoding SGLang ignores both
    thresholds; here `single` holds, and `accumulated`, which is about a random draw, does not.

    Args:
        single: bound on p(x), 0 to 1.
        accumulated: divisor of p(x), 0 to 1.
    """

    single: float = 0.3
    accumulated: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_number("single", self.single, 0, 1)
        check_number("accumulated", self.accumulated, 0, 1)

    def verify(self, candidates, outputs):
        """See [`CandidateVerifier`]."""
        candidates = candidates._replace(logits=None)  # target-only sampling: q plays no part
        choice = strict_choice(candidates, outputs)
        single = self.single if self.single < 1 else math.inf  # p(x) = 1 is accepted by strict verification
        target = at(drafted(outputs).softmax(dim=-1), candidates.ids)
        draws = None
        if outputs.do_sample:
            # Strict verification draws y from p and accepts x if y = x, that is with probability p(x). A second random
            # number u raises the total acceptance probability to min(1, p(x) / accumulated). If x is still rejected,
            # then y != x, so y is a valid draw from p without x.
            wanted = (target / max(self.accumulated, 1e-9)).clamp(max=1)
            draws = torch.rand_like(target) * (1 - target) + target
            draws = torch.where(wanted > target, draws, math.inf)
        judged = thresholds_accept(drafted(outputs), candidates.ids, draws, single, self.accumulated)
        return self._decide(candidates, outputs, choice, judged)

    def judged(self, candidates, outputs, choice):
        """Return where `single` accepts, for combinations: `accumulated` needs a random draw of its own."""
        single = self.single if self.single < 1 else math.inf
        return thresholds_accept(drafted(outputs), candidates.ids, None, single, self.accumulated)
