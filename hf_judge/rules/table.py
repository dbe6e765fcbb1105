"""List the acceptance rules by name, with the number that each is swept over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hf_judge.head.config import check_threshold
from hf_judge.rules.both.block import BlockVerifier
from hf_judge.rules.both.cactus import CactusVerifier
from hf_judge.rules.both.cascades import CascadeVerifier, TokenCascadeVerifier
from hf_judge.rules.both.diversed import DiversedVerifier
from hf_judge.rules.both.ensemble import EnsembleVerifier
from hf_judge.rules.both.fuzzy import FuzzyVerifier
from hf_judge.rules.both.kl import KLVerifier
from hf_judge.rules.both.mentored import MentoredVerifier
from hf_judge.rules.control import RandomVerifier
from hf_judge.rules.target.fly import FlyVerifier, VllmFlyVerifier
from hf_judge.rules.target.mars import MarsVerifier
from hf_judge.rules.target.thresholds import ThresholdsVerifier
from hf_judge.rules.target.top_k import RelaxedVerifier, TopKVerifier
from hf_judge.rules.target.typical import TypicalVerifier
from hf_judge.verify.decide import StrictVerifier
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import CandidateVerifier


@dataclass(frozen=True)
class RuleSpec:
    """Describes a rule on the command line."""

    number: str  # name of the number that is swept; "" for none
    sweep: tuple[float, ...]  # values from lenient to strict
    quick: tuple[float, ...]  # values of a short sweep
    make: Callable[..., CandidateVerifier]  # takes the number if there is one, then the head if it needs one
    needs_head: bool = False


RULES = {
    "strict": RuleSpec("", (), (), StrictVerifier),
    "block": RuleSpec("", (), (), BlockVerifier),
    "judge": RuleSpec(
        "threshold",
        (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98),
        (0.5, 0.9),
        lambda value, head: JudgeCandidateVerifier(head, value),
        needs_head=True,
    ),
    "autojudge": RuleSpec(
        "threshold",
        (0.99, 0.9, 0.7, 0.5, 0.3, 0.1, 0.02),
        (0.5, 0.1),
        # it accepts where P(important) = 1 - sigmoid(logit) is below the threshold (2504.20039)
        lambda value, head: JudgeCandidateVerifier(head, 1 - check_threshold(value)),
        needs_head=True,
    ),
    "kl": RuleSpec("threshold", (8.0, 4.0, 3.0, 2.0, 1.5, 1.0), (4.0, 1.5), KLVerifier),
    "typical": RuleSpec("epsilon", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.09), (0.001, 0.01), TypicalVerifier),
    "top-k": RuleSpec("k", (5, 3, 2), (3, 2), lambda value: TopKVerifier(_whole(value))),
    "relaxed": RuleSpec("delta", (0.999, 0.99, 0.95, 0.9, 0.7, 0.5), (0.99, 0.5), RelaxedVerifier),
    "ensemble": RuleSpec("weight", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.3, 0.5), EnsembleVerifier),
    "thresholds": RuleSpec("single", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), (0.001, 0.01), ThresholdsVerifier),
    "fly": RuleSpec("threshold", (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3), (0.01, 0.1), FlyVerifier),
    "diversed": RuleSpec(
        "bias",
        (4.0, 2.0, 1.0, 0.0, -1.0, -2.0, -4.0),
        (0.0, -2.0),
        lambda value, head: DiversedVerifier(head=head, bias=value or 0.0),
        needs_head=True,
    ),
    "vllm-fly": RuleSpec("threshold", (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5), (0.05, 0.3), VllmFlyVerifier),
    "mars": RuleSpec("ratio", (0.3, 0.5, 0.6, 0.7, 0.8, 0.9), (0.6, 0.9), MarsVerifier),
    "fsd": RuleSpec("threshold", (0.69, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1), (0.5, 0.2), FuzzyVerifier),
    "cactus": RuleSpec("delta", (4.0, 2.0, 1.0, 0.5, 0.25, 0.1), (1.0, 0.1), CactusVerifier),
    "mentored": RuleSpec("divergence", (2.0, 1.0, 0.5, 0.2, 0.1, 0.05), (0.5, 0.1), MentoredVerifier),
    "cascade-chow": RuleSpec(
        "alpha", (0.8, 0.5, 0.3, 0.1, 0.03, 0.01), (0.5, 0.1), lambda value: CascadeVerifier(value, "chow")
    ),
    "cascade-diff": RuleSpec(
        "alpha", (0.5, 0.3, 0.1, 0.0, -0.1, -0.3), (0.3, 0.0), lambda value: CascadeVerifier(value, "diff")
    ),
    "cascade-opt": RuleSpec(
        "alpha", (0.5, 0.3, 0.1, 0.0, -0.3, -1.0), (0.3, 0.0), lambda value: CascadeVerifier(value, "opt")
    ),
    "cascade-token": RuleSpec("alpha", (0.999, 0.99, 0.97, 0.9, 0.7, 0.5), (0.99, 0.7), TokenCascadeVerifier),
    "random": RuleSpec("rate", (0.7, 0.5, 0.3, 0.1), (0.5, 0.1), RandomVerifier),
}


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
