"""Read rules from the words of a command line, and make their verifiers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from hf_judge.head.judge_head import JudgeHead
from hf_judge.rules.combine import CombinedVerifier
from hf_judge.rules.table import RULES, RuleSpec
from hf_judge.rules.thinking import ThinkingVerifier
from hf_judge.verify.round import CandidateVerifier

BASELINES = ("plain", "assisted")  # plain decoding, and transformers' own assisted generation
PHASE = re.compile(r"(thinking|answer)/(\d+)/(\d+)/")  # of the answer, with the ids of the tokens around thoughts
JOINTS = {"&": "all", "|": "any"}


@dataclass(frozen=True)
class Setting:
    """Names a rule at one value of its number.

    `rule` is a name in `BASELINES` or `RULES`; a further judge is "judge:NAME". Rules are joined by "&" (all accept)
    and "|" (any accepts), read from the left, each but the last with its value: "judge=0.5&fly". In front,
    "thinking/7/8/" limits them to thoughts between the tokens 7 and 8, and "answer/7/8/" to the rest.
    """

    rule: str
    value: float | None = None  # of the last rule; None: it has no number, or for a judge the head's own threshold

    @property
    def name(self) -> str:
        """Name of the setting, e.g. ``judge=0.9``."""
        return self.rule if self.value is None else f"{self.rule}={self.value:g}"

    @property
    def number(self) -> str:
        """Name of the number: "threshold", "k", ..."""
        return "" if self.rule in BASELINES else spec_of(self.heads[-1]).number

    @property
    def heads(self) -> list[str]:
        """Names of the rules in it, which are the names of their heads where they need one."""
        return [term.partition("=")[0] for term in re.split("[&|]", PHASE.sub("", self.rule, count=1))]


def spec_of(name: str) -> RuleSpec:
    """Return the description of a rule.

    Raises:
        ValueError: no such rule.
    """
    spec = RULES.get(name.partition(":")[0])
    if spec is None or (":" in name and not spec.needs_head):
        raise ValueError(f"no rule {name!r}: there are {', '.join([*BASELINES, *RULES])}")
    return spec


def needs_head(rule: str) -> bool:
    """Tell whether a rule of a setting reads a trained head."""
    return any(spec_of(name).needs_head for name in Setting(rule).heads)


def lenient_first(settings: list[Setting]) -> list[Setting]:
    """Order the settings of one rule from the most lenient value to the strictest."""
    lenient, *_, strict = spec_of(settings[0].heads[-1]).sweep
    return sorted(settings, key=lambda setting: setting.value, reverse=lenient > strict)


def parse_settings(texts: Iterable[str], heads: dict[str, JudgeHead], *, quick: bool = False) -> list[Setting]:
    """Read settings from words like ``judge=0.5,0.9``, ``top-k`` or ``judge=0.5&fly=0.1,0.2``.

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
        settings += _parse(text, heads, quick)
    for setting in settings:
        make_verifier(setting, heads)  # a value out of range is an error before any work is done
    return list(dict.fromkeys(settings))


def _parse(text: str, heads: dict[str, JudgeHead], quick: bool) -> list[Setting]:
    """Read one word, whose last rule may have several values."""
    joint = max(text.rfind(joint) for joint in JOINTS) + 1
    last, _, values = text[joint:].partition("=")
    rule = text[:joint] + last
    if rule in BASELINES:
        if values:
            raise ValueError(f"{rule} has no number to set, got {text!r}")
        return [Setting(rule)]
    names = Setting(rule).heads
    for name in names:
        if spec_of(name).needs_head and name not in heads:
            raise ValueError(f"rule {name!r} needs its head: pass --{name.partition(':')[0]} DIRECTORY")
    spec = spec_of(names[-1])
    if values and not spec.number:
        raise ValueError(f"{names[-1]} has no number to set, got {text!r}")
    chosen = _numbers(text, values) if values else (spec.quick if quick else spec.sweep)
    return [Setting(rule, value) for value in chosen] or [Setting(rule)]


def make_verifier(setting: Setting, heads: dict[str, JudgeHead]) -> CandidateVerifier | None:
    """Make the verifier of a setting, with stats of its own; None for the baselines.

    Raises:
        ValueError: the value is out of the rule's range, or the rules cannot be combined; the message names the rule.
    """
    if setting.rule in BASELINES:
        return None
    phase = PHASE.match(setting.rule)
    first, *rest = re.split("([&|])", setting.rule[phase.end() if phase else 0 :])
    terms = [first, *rest[1::2]]
    try:
        values = [None] * (len(terms) - 1) + [setting.value]
        verifiers = [_make(term, value, heads) for term, value in zip(terms, values, strict=True)]
        verifier = verifiers[0]
        for joint, other in zip(rest[::2], verifiers[1:], strict=True):
            verifier = CombinedVerifier((verifier, other), JOINTS[joint])
        if phase:
            verifier = ThinkingVerifier(verifier, int(phase[2]), int(phase[3]), inside=phase[1] == "thinking")
        return verifier
    except (ValueError, TypeError) as error:
        raise ValueError(f"{setting.name}: {error}") from None


def _make(term: str, value: float | None, heads: dict[str, JudgeHead]) -> CandidateVerifier:
    """Make the verifier of one rule; a value in the term itself counts, else `value`."""
    name, _, own = term.partition("=")
    spec = spec_of(name)
    if own:
        (value,) = _numbers(term, own)
    elif value is None and spec.number and not spec.needs_head:
        raise ValueError(f"{name} needs a value here, as in '{name}={spec.quick[0]:g}'")
    return spec.make(*([value] if spec.number else []), *([heads.get(name)] if spec.needs_head else []))


def _numbers(text: str, values: str) -> list[float]:
    try:
        return [float(value) for value in values.split(",")]
    except ValueError:
        raise ValueError(f"expected numbers after '=', separated by commas, got {text!r}") from None
