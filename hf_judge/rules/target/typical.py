"""Accept what is typical of the target: typical acceptance of Medusa (2401.10774)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_judge.head.config import check_number
from hf_judge.head.distributions import at, entropy
from hf_judge.rules.base import AddingRule, drafted
from hf_judge.verify.strict import strict_choice


def typical_accepts(scores: torch.Tensor, ids: torch.Tensor, epsilon: float, delta: float) -> torch.Tensor:
    """Accept x where ``p(x) > min(epsilon, delta * exp(-H(p)))``, H the entropy in nats.

    Typical acceptance, Medusa (2401.10774, section 2.3.1).

    Args:
        scores: (batch, n, V) float, the target's scores at the positions that predict the drafted tokens.
        ids: (batch, n) long, the drafted tokens.
        epsilon: the hard threshold.
        delta: factor of the threshold that depends on the entropy.

    Returns:
        (batch, n) bool.
    """
    probabilities = scores.softmax(dim=-1)
    return at(probabilities, ids) > (delta * torch.exp(-entropy(scores))).clamp(max=epsilon)


@dataclass(eq=False)
class TypicalVerifier(AddingRule):
    """Accepts what is typical of the target, see [`typical_accepts`].

    When sampling, the token after a rejection is drawn from p, as in Medusa. In greedy decoding, p is the distribution
    at temperature 1 (Medusa's own greedy mode is strict verification). Medusa accepts the first token of a round
    unconditionally; here every round ends with the target's own token instead.

    Args:
        epsilon: the hard threshold; 0.09 in Medusa.
        delta: factor of the other threshold; 0.3 in Medusa; None: sqrt(epsilon), the paper's advice.
    """

    epsilon: float = 0.09
    delta: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_number("epsilon", self.epsilon, 0, 1)
        if self.delta is None:
            self.delta = math.sqrt(self.epsilon)
        check_number("delta", self.delta, 0)

    def verify(self, candidates, outputs):
        """See [`CandidateVerifier`]."""
        candidates = candidates._replace(logits=None)  # q plays no part, not even in the next token
        choice = strict_choice(candidates, outputs)
        judged = self.judged(candidates, outputs, choice)
        return self._decide(candidates, outputs, choice, judged, replaces_strict=outputs.do_sample)

    def judged(self, candidates, outputs, choice):
        return typical_accepts(drafted(outputs), candidates.ids, self.epsilon, self.delta)
