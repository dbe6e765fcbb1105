"""Says whether a judge can pay: the speed-up now, with a perfect judge, and what it takes to break even.

A perfect judge rejects nothing but mistakes. The swaps of the labelling tell what these are: every swapped token that
leaves the final answer as it was would be accepted (AutoJudge, arXiv 2504.20039, section 3).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hf_judge.bench.formula import break_even, predicted_speedup
from hf_judge.evaluation.evaluate import Pair
from hf_judge.head.compatibility import n_shared_tokens
from hf_judge.labelling.greedy import greedy_choices
from hf_judge.labelling.prompts import encode_prompt, prompt_of
from hf_judge.labelling.responses import LabelledResponse
from hf_judge.making.mining import label, planned
from hf_judge.making.preflight import CannotPay, Preflight, preflight
from hf_judge.making.problems import Parts
from hf_judge.making.settings import MakeSettings

MOST_PROMPTS = 50  # of the first look, where fewer show no mistake


@dataclass(frozen=True)
class Text:
    """A response of the target, and the positions where drafting stops in it."""

    n_tokens: int
    rejected: tuple[int, ...]
    """Positions of drafted tokens that a rule rejects; the target's own token stands there."""


@dataclass(frozen=True)
class Speed:
    """What a rule that rejects certain tokens would reach."""

    acceptance: float
    """Share of drafted tokens that are accepted, of all positions of the responses."""
    accepted_per_forward: float
    """Accepted drafted tokens per forward of the target, at the best draft length."""
    n_drafted: int
    """The best draft length."""
    speedup: float
    """Predicted tokens per second, over plain decoding's."""


@dataclass(frozen=True)
class Worth:
    """Whether a judge can pay, from measured costs and simulated rounds."""

    cost_ratio: float
    """c, one forward of the draft over one of the target."""
    verify_cost: dict[str, float]
    """v by draft length M: a forward of M + 1 tokens over one of a single token."""
    strict: Speed
    perfect: Speed
    break_even: dict[str, float | None]
    """Acceptance rate at which drafting is as fast as plain decoding, by draft length; None: never."""
    mistakes_per_prompt: float
    share_with_mistake: float
    """Share of the prompts in which a swap changed the answer."""
    n_prompts: int
    """Prompts that were looked at: the first of the fit part."""
    seconds: float
    """Estimate of the time of the whole run."""

    @property
    def pays(self) -> bool:
        """Whether a perfect judge would be faster than plain decoding, and than strict verification."""
        return self.perfect.speedup > 1 and self.perfect.speedup > 1.02 * self.strict.speedup

    def lines(self) -> list[str]:
        """Return the findings as lines of text."""
        rates = {m: rate for m, rate in self.break_even.items() if rate is not None}
        cheapest = min(rates, key=rates.get) if rates else None
        even = "never" if cheapest is None else f"at {rates[cheapest]:.0%} accepted tokens (drafts of {cheapest})"
        lengths = ", ".join(f"{v:.2f} (M={m})" for m, v in self.verify_cost.items())
        return [
            f"a draft token costs c = {self.cost_ratio:.2f} target forwards, verifying M + 1 tokens v = {lengths}",
            f"now (strict): {self.strict.acceptance:.1%} of drafted tokens accepted, {self.strict.speedup:.2f}x plain",
            f"with a perfect judge: {self.perfect.acceptance:.1%}, {self.perfect.accepted_per_forward:.1f} accepted "
            f"per forward, {self.perfect.speedup:.2f}x plain (drafts of {self.perfect.n_drafted})",
            f"break-even: {even}",
            f"mistakes: {self.mistakes_per_prompt:.2f} per prompt on {self.n_prompts} prompts",
            f"time left for the whole run: about {_duration(self.seconds)}",
        ]

    def why_not(self) -> str:
        """Say why a judge does not pay."""
        if self.perfect.speedup <= 1:
            return (
                f"drafting cannot pay with this pair on this machine: even a perfect judge gives "
                f"{self.perfect.speedup:.2f}x plain decoding. Take a cheaper draft or a bigger target"
            )
        return (
            f"a judge has nothing to add here: strict verification gives {self.strict.speedup:.2f}x plain decoding, a "
            f"perfect judge {self.perfect.speedup:.2f}x. Use generate(assistant_model=draft) without a judge"
        )


def look_first(pair: Pair, parts: Parts, settings: MakeSettings, say: Callable[[str], None]) -> Preflight:
    """Let both models answer the first prompts, and stop where they look swapped or the answers look wrong.

    Args:
        pair, parts, settings, say: see [`is_it_worth_it`].

    Raises:
        CannotPay: they do; with `settings.force` this is said only.
    """
    looked = preflight(
        pair.target,
        pair.draft,
        pair.tokenizer,
        parts.fit.first(settings.preflight_prompts),
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    for line in looked.lines():
        say(f"  {line}")
    for fault in looked.faults():
        _stop(fault, settings, say)
    return looked


def is_it_worth_it(
    pair: Pair,
    parts: Parts,
    settings: MakeSettings,
    looked: Preflight,
    costs: dict,
    labels: str | os.PathLike,
    say: Callable[[str], None],
) -> Worth:
    """Say whether a judge can pay, and what making it takes.

    Args:
        pair: the models.
        parts: all problems; the first of the fit part are labelled for good.
        settings: see [`MakeSettings`].
        looked: the answers to the first problems, see [`look_first`].
        costs: `c`, and `v` by draft length (as text), as the doctor measured them.
        labels: JSONL file of the labels.
        say: receives every line for the reader.

    Raises:
        CannotPay: it cannot; with `settings.force` this is said only.
    """
    best = max(predicted_speedup(int(m), int(m), costs["c"], v) for m, v in costs["v"].items())
    if best <= 1:
        reason = (
            f"drafting cannot pay with this pair on this machine: even a draft that is always accepted gives "
            f"{best:.2f}x plain decoding (a draft token costs {costs['c']:.2f} target forwards)"
        )
        _stop(reason, settings, say)
    rows, n, seconds = _first_labels(pair, parts, settings, labels)
    worth = weigh(costs, _strict_texts(pair, looked, parts), rows, looked, n, seconds, parts, settings)
    if not worth.mistakes_per_prompt:
        reason = (
            f"no swap changed the target's answer in {n} prompts: there is nothing to learn from. The draft may be as "
            "good as the target on these prompts, or they may be too easy; pass harder ones, or more of them "
            "(--preflight-prompts)"
        )
        _stop(reason, settings, say)
    for line in worth.lines():
        say(f"  {line}")
    if not worth.pays:
        _stop(worth.why_not(), settings, say)
    return worth


def _stop(reason: str, settings: MakeSettings, say: Callable[[str], None]) -> None:
    """Stop for a reason, or say it and go on, as `settings.force` says."""
    if not settings.force:
        raise CannotPay(f"{reason}{'' if reason.endswith('?') else '.'} --force goes on all the same")
    say(f"  warning: {reason}; going on, as --force says")


def _first_labels(
    pair: Pair, parts: Parts, settings: MakeSettings, labels
) -> tuple[list[LabelledResponse], int, float]:
    """Label the first prompts; more of them where no mistake was found.

    Returns:
        The examples, the number of prompts, and the seconds per prompt.
    """
    n, started = settings.preflight_prompts, time.monotonic()
    _, rows = label(pair, parts.fit.first(n), settings, labels)
    if not any(row.mistakes for row in rows) and n < MOST_PROMPTS:
        n = MOST_PROMPTS
        _, rows = label(pair, parts.fit.first(n), settings, labels)
    n = min(n, len(parts.fit))
    return rows, n, (time.monotonic() - started) / n


def _strict_texts(pair: Pair, looked: Preflight, parts: Parts) -> list[Text]:
    """Return the target's plain answers, with the tokens at which the draft would have written another one."""
    rows = parts.fit.rows[: len(looked.prompts)]
    texts = [
        (encode_prompt(pair.tokenizer, prompt_of(row))[1], ids)
        for row, ids in zip(rows, looked.target.tokens, strict=True)
    ]
    n_tokens = n_shared_tokens(pair.tokenizer, pair.target, pair.draft)
    chosen = [tokens for tokens, _ in greedy_choices(pair.draft, texts, n_tokens=n_tokens)]
    return [
        Text(len(ids), tuple(i for i, (a, b) in enumerate(zip(tokens, ids, strict=True)) if a != b))
        for tokens, (_, ids) in zip(chosen, texts, strict=True)
    ]


def weigh(
    costs: dict,
    strict: list[Text],
    rows: list[LabelledResponse],
    looked: Preflight,
    n_prompts: int,
    seconds_per_prompt: float,
    parts: Parts,
    settings: MakeSettings,
) -> Worth:
    """Predict the speed of strict verification and of a perfect judge, and the time of the whole run.

    Args:
        costs: see [`is_it_worth_it`].
        strict: the target's plain answers, with the tokens that strict verification rejects.
        rows: swapped examples of the first prompts.
        looked: the answers to them.
        n_prompts: how many prompts these are.
        seconds_per_prompt: time of labelling one.
        parts, settings: what is left to do.
    """
    lengths = {int(m): v for m, v in costs["v"].items()}
    mistaken = [row.prompt_hash for row in rows if row.mistakes]
    worth = Worth(
        cost_ratio=costs["c"],
        verify_cost=costs["v"],
        strict=_best(strict, costs["c"], lengths),
        perfect=_best(perfect_texts(rows), costs["c"], lengths),
        break_even={str(m): break_even(m, costs["c"], v) for m, v in lengths.items()},
        mistakes_per_prompt=len(mistaken) / n_prompts,
        share_with_mistake=len(set(mistaken)) / n_prompts,
        n_prompts=n_prompts,
        seconds=0.0,
    )
    plan = planned(parts, settings, worth.share_with_mistake, worth.mistakes_per_prompt)
    answer = looked.target.seconds / len(looked.prompts)  # in a batch
    alone = looked.target.mean_length * costs["target_seconds"]  # without one, as the last step measures
    n_measured = min(len(parts.held_out), settings.max_held_out)
    seconds = 1.1 * seconds_per_prompt * max(plan.n_prompts - n_prompts, 0) + 4 * answer * len(parts.calibrate)
    seconds += n_measured * alone * (1 + 1 / worth.strict.speedup + 2 / worth.perfect.speedup)
    return replace(worth, seconds=seconds)


def worth_from_json(values: dict) -> Worth:
    """Return what [`Worth`] was written as."""
    return Worth(**values | {name: Speed(**values[name]) for name in ("strict", "perfect")})


def _best(texts: list[Text], c: float, lengths: dict[int, float]) -> Speed:
    """Return the speed at the draft length that is fastest."""
    n_tokens = sum(text.n_tokens for text in texts)
    acceptance = 1 - sum(len(text.rejected) for text in texts) / max(n_tokens, 1)
    found = []
    for m, v in lengths.items():
        n_rounds = sum(count_rounds(text, m) for text in texts)
        accepted = (n_tokens - n_rounds) / max(n_rounds, 1)
        found.append(Speed(acceptance, accepted, m, predicted_speedup(accepted, m, c, v)))
    return max(found, key=lambda speed: speed.speedup)


def count_rounds(text: Text, n_drafted: int) -> int:
    """Return how many rounds a text takes: each accepts up to `n_drafted` tokens and adds one of the target's own.

    Args:
        text: the text, which is at the same time what the draft proposes, but for the rejected positions.
        n_drafted: M, drafted tokens per round.
    """
    rejected, at, n_rounds = sorted(text.rejected), 0, 0
    while at < text.n_tokens:
        stop = next((i for i in rejected if i >= at), text.n_tokens)
        at = min(stop, at + n_drafted) + 1  # the target's token stands at the rejected place, or behind the whole draft
        n_rounds += 1
    return n_rounds


def perfect_texts(rows: Iterable[LabelledResponse]) -> list[Text]:
    """Return what a perfect judge would accept, from swapped examples of some prompts.

    Args:
        rows: examples of `mine_swaps`: of every prompt one response with all harmless swaps, and one for each mistake,
            which ends in the mistaken token.
    """
    lengths, mistakes = {}, {}
    for row in rows:
        if row.mistakes:
            mistakes.setdefault(row.prompt_hash, set()).add(len(row.response_ids) - 1)
        else:
            lengths[row.prompt_hash] = len(row.response_ids)
    return [Text(n, tuple(sorted(mistakes.get(name, ())))) for name, n in lengths.items()]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
