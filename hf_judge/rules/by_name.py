"""Name the acceptance rules for the command line, with the number that each is swept over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hf_judge.head.config import check_threshold
from hf_judge.head.judge_head import JudgeHead
from hf_judge.rules.both.block import BlockVerifier
from hf_judge.rules.both.cactus import CactusVerifier
from hf_judge.rules.both.cascades import CascadeVerifier, TokenCascadeVerifier
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

BASELINES = ("plain", "assisted")  # plain decoding, and transformers' own assisted generation


@dataclass(frozen=True)
class RuleSpec:
    """Describes a rule on the command line."""

    number: str  # name of the number that is swept; "" for none
    sweep: tuple[float, ...]  # values from lenient to strict
    quick: tuple[float, ...]  # values of a short sweep
    make: Callable[[float, JudgeHead | None], CandidateVerifier]
    needs_head: bool = False


RULES = {
    "strict": RuleSpec("", (), (), lambda value, head: StrictVerifier()),
    "block": RuleSpec("", (), (), lambda value, head: BlockVerifier()),
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
    "kl": RuleSpec("threshold", (8.0, 4.0, 3.0, 2.0, 1.5, 1.0), (4.0, 1.5), lambda value, head: KLVerifier(value)),
    "typical": RuleSpec(
        "epsilon", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.09), (0.001, 0.01), lambda value, head: TypicalVerifier(value)
    ),
    "top-k": RuleSpec("k", (5, 3, 2), (3, 2), lambda value, head: TopKVerifier(_whole(value))),
    "relaxed": RuleSpec(
        "delta", (0.999, 0.99, 0.95, 0.9, 0.7, 0.5), (0.99, 0.5), lambda value, head: RelaxedVerifier(value)
    ),
    "ensemble": RuleSpec(
        "weight", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.3, 0.5), lambda value, head: EnsembleVerifier(value)
    ),
    "thresholds": RuleSpec(
        "single", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), (0.001, 0.01), lambda value, head: ThresholdsVerifier(value)
    ),
    "fly": RuleSpec(
        "threshold", (0.005, 0.02, 0.05, 0.1, 0.2, 0.3), (0.01, 0.1), lambda value, head: FlyVerifier(value)
    ),
    "vllm-fly": RuleSpec(
        "threshold", (0.01, 0.05, 0.1, 0.2, 0.3, 0.5), (0.05, 0.3), lambda value, head: VllmFlyVerifier(value)
    ),
    "mars": RuleSpec("ratio", (0.3, 0.5, 0.6, 0.7, 0.8, 0.9), (0.6, 0.9), lambda value, head: MarsVerifier(value)),
    "fsd": RuleSpec(
        "threshold", (0.69, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1), (0.5, 0.2), lambda value, head: FuzzyVerifier(value)
    ),
    "cactus": RuleSpec("delta", (4.0, 2.0, 1.0, 0.5, 0.25, 0.1), (1.0, 0.1), lambda value, head: CactusVerifier(value)),
    "mentored": RuleSpec(
        "divergence", (2.0, 1.0, 0.5, 0.2, 0.1, 0.05), (0.5, 0.1), lambda value, head: MentoredVerifier(value)
    ),
    "cascade-chow": RuleSpec(
        "alpha", (0.8, 0.5, 0.3, 0.1, 0.03, 0.01), (0.5, 0.1), lambda value, head: CascadeVerifier(value, "chow")
    ),
    "cascade-diff": RuleSpec(
        "alpha", (0.5, 0.3, 0.1, 0.0, -0.1, -0.3), (0.3, 0.0), lambda value, head: CascadeVerifier(value, "diff")
    ),
    "cascade-opt": RuleSpec(
        "alpha", (0.5, 0.3, 0.1, 0.0, -0.3, -1.0), (0.3, 0.0), lambda value, head: CascadeVerifier(value, "opt")
    ),
    "cascade-token": RuleSpec(
        "alpha", (0.999, 0.99, 0.97, 0.9, 0.7, 0.5), (0.99, 0.7), lambda value, head: TokenCascadeVerifier(value)
    ),
    "random": RuleSpec("rate", (0.7, 0.5, 0.3, 0.1), (0.5, 0.1), lambda value, head: RandomVerifier(value)),
}


@dataclass(frozen=True)
class Setting:
    """Names a rule at one value of its number."""

    rule: str  # a name in `BASELINES` or `RULES`; a further judge is "judge:NAME"
    value: float | None = None  # None: the rule has no number, or for a judge the head's own threshold

    @property
    def name(self) -> str:
        """Name of the setting, e.g. ``judge=0.9``."""
        return self.rule if self.value is None else f"{self.rule}={self.value:g}"

    @property
    def number(self) -> str:
        """Name of the number: "threshold", "k", ..."""
        return "" if self.rule in BASELINES else RULES[self.rule.partition(":")[0]].number


def parse_settings(texts: Iterable[str], heads: dict[str, JudgeHead], *, quick: bool = False) -> list[Setting]:
    """Read settings from words like ``judge=0.5,0.9`` or ``top-k``.

    Args:
        texts: the words; none, or "all": every rule that the heads at hand allow.
        heads: head by the name of its rule ("judge", "judge:NAME", "autojudge").
        quick: take two values of each rule instead of all.

    Returns:
        "plain" first, which everything is compared with; no setting twice.

    Raises:
        ValueError: a rule is unknown or lacks its head, or a value is out of the rule's range.
    """
    every = [*BASELINES, *(name for name, spec in RULES.items() if not spec.needs_head), *heads]
    settings = [Setting("plain")]
    for text in itertools.chain.from_iterable(every if text == "all" else [text] for text in list(texts) or every):
        name, _, values = text.partition("=")
        if name in BASELINES:
            if values:
                raise ValueError(f"{name} has no number to set, got {text!r}")
            settings.append(Setting(name))
            continue
        spec = RULES.get(name.partition(":")[0])
        if spec is None or (":" in name and not spec.needs_head):
            raise ValueError(f"no rule {name!r}: there are {', '.join([*BASELINES, *RULES])}")
        if spec.needs_head and name not in heads:
            raise ValueError(f"rule {name!r} needs its head: pass --{name.partition(':')[0]} DIRECTORY")
        if values and not spec.number:
            raise ValueError(f"{name} has no number to set, got {text!r}")
        chosen = _numbers(text, values) if values else (spec.quick if quick else spec.sweep)
        settings += [Setting(name, value) for value in chosen] or [Setting(name)]
    for setting in settings:
        make_verifier(setting, heads)  # a value out of range is an error before any work is done
    return list(dict.fromkeys(settings))


def make_verifier(setting: Setting, heads: dict[str, JudgeHead]) -> CandidateVerifier | None:
    """Make the verifier of a setting, with stats of its own; None for the baselines.

    Raises:
        ValueError: the value is out of the rule's range; the message names the rule.
    """
    if setting.rule in BASELINES:
        return None
    try:
        return RULES[setting.rule.partition(":")[0]].make(setting.value, heads.get(setting.rule))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{setting.name}: {error}") from None


def _numbers(text: str, values: str) -> list[float]:
    try:
        return [float(value) for value in values.split(",")]
    except ValueError:
        raise ValueError(f"expected numbers after '=', separated by commas, got {text!r}") from None


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
