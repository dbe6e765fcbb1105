"""Speed of a pair on this machine: which way of decoding is fastest, why, and what to set.

Speed alone: what a threshold costs in accuracy is for `hf_judge.evaluation` to say. Knows nothing about the terminal.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from hf_judge.evaluation import Pair
from hf_judge.speedup import predicted_speedup
from hf_judge.stats import JudgeStats
from hf_judge.tasks import Task
from hf_judge.verify import JudgeCandidateVerifier, StrictVerifier

logger = logging.getLogger(__name__)

SCHEDULES = ("constant", "heuristic_transient")
CONFIDENCES = (0.4, 0.0)  # upstream's default, and off
AS_FAST = 0.03  # a stricter threshold is preferred where it costs no more than this share of the speed


@dataclass
class BenchWay:
    """One way of decoding and what it measured."""

    name: str
    kwargs: dict  # of generate()
    verifier: StrictVerifier | JudgeCandidateVerifier | None = None
    num_assistant_tokens: int | None = None
    threshold: float | None = None
    upstream: tuple | None = None  # draft length, schedule, confidence: upstream reads them from the draft's config
    rates: list[float] = field(default_factory=list)  # tokens per second of every repeat
    seconds: list[float] = field(default_factory=list)  # per answer

    def repeat(self, pair: Pair, work: list[torch.Tensor], max_new_tokens: int) -> None:
        """Answer all of the work once."""
        n_new = 0
        with _upstream_settings(pair.draft, self.upstream):
            start = time.perf_counter()
            for ids in work:
                output = pair.target.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    **self.kwargs,
                )
                n_new += len(output[0].tolist()) - ids.shape[1]
            seconds = time.perf_counter() - start
        self.rates.append(n_new / seconds)
        self.seconds.append(seconds / len(work))

    def forget(self) -> None:
        """Start measuring: what warmed up does not count."""
        self.rates.clear()
        self.seconds.clear()
        if self.verifier is not None:
            self.verifier.stats = JudgeStats()

    def figures(self, plain: BenchWay, costs: dict) -> dict:
        """JSON values."""
        ratios = [rate / base for rate, base in zip(self.rates, plain.rates, strict=True)]
        times = [base / mine for mine, base in zip(self.seconds, plain.seconds, strict=True)]
        found = {
            "way": self.name,
            "num_assistant_tokens": self.num_assistant_tokens,
            "threshold": self.threshold,
            "tokens_per_second": statistics.median(self.rates),
            "tokens_per_second_spread": [min(self.rates), max(self.rates)],
            "ratio_to_plain": statistics.median(ratios),
            "ratio_spread": [min(ratios), max(ratios)],
            "seconds_per_answer": statistics.median(self.seconds),
            "answer_time_ratio": statistics.median(times),
        }
        if self.verifier is not None:
            stats, m = self.verifier.stats, self.num_assistant_tokens
            drafted = stats.drafted / max(stats.rounds, 1)
            found |= {
                "accepted_per_forward": stats.accepted_per_forward,
                "drafted_per_round": drafted,
                "predicted": predicted_speedup(stats.accepted_per_forward, drafted, costs["cost_ratio"]),
                "predicted_with_verify_cost": predicted_speedup(
                    stats.accepted_per_forward, drafted, costs["cost_ratio"], costs["verify_cost"][str(m)]
                ),
                "share_of_time": {
                    phase: getattr(stats, f"seconds_{phase}") / stats.seconds
                    for phase in ("drafting", "verifying", "judging", "rest")
                },
            }
        return found


def bench(
    pair: Pair,
    task: Task,
    *,
    lengths: tuple[int, ...] = (8, 16, 32),
    thresholds: tuple[float, ...] = (),
    repeats: int = 5,
    max_new_tokens: int = 256,
    quick: bool = False,
    on_step: Callable[[str], None] = lambda text: None,
) -> dict:
    """Measure every way on the same prompts, interleaved.

    Args:
        pair: the models; a head named "judge" is judged with, without one strict verification stands in.
        task: its prompts are the work.
        lengths: draft lengths M.
        thresholds: of the judge, beside the head's own.
        repeats: of the whole work for every way.
        max_new_tokens: per answer.
        quick: search fewer of upstream's settings.
        on_step: told what is about to be measured.

    Returns:
        {"ways": figures, "costs", "upstream_setting", "recommendation", "unsupported"}.

    Raises:
        ValueError: a length, threshold or number of repeats that cannot be.
    """
    if repeats < 1 or not lengths or min(lengths) < 1:
        raise ValueError(f"bench needs at least one repeat and draft lengths from 1 on, got {repeats} and {lengths}")
    work = [pair.encode(example.prompt) for example in task.examples]
    on_step("costs of single forwards")
    costs = measure_costs(pair, work[0], lengths)
    on_step("upstream's best setting")
    best = _best_upstream(pair, work[:2], lengths, max_new_tokens, quick)
    ways = [
        BenchWay("plain", {"judge": False}),
        BenchWay("plain, static cache", {"judge": False, "cache_implementation": "static"}),
        BenchWay("assisted", {"judge": False, "assistant_model": pair.draft}, None, best[0], None, best),
        *_judged_ways(pair, lengths, thresholds),
    ]
    unsupported = {}
    for way in list(ways):
        on_step(f"warming up: {way.name}")
        try:
            way.repeat(pair, work[:1], max_new_tokens)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            if way.name != "plain, static cache":
                raise
            unsupported[way.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            ways.remove(way)
            continue
        way.forget()
    for i in range(repeats):
        for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
            on_step(f"repeat {i + 1} of {repeats}: {way.name}")
            way.repeat(pair, work, max_new_tokens)
    rows = [way.figures(ways[0], costs) for way in ways]
    return {
        "ways": rows,
        "costs": costs,
        "upstream_setting": dict(zip(("num_assistant_tokens", "schedule", "confidence"), best, strict=True)),
        "recommendation": recommend(rows, pair),
        "unsupported": unsupported,
    }


@torch.no_grad()
def measure_costs(pair: Pair, prompt_ids: torch.LongTensor, lengths: tuple[int, ...], repeats: int = 15) -> dict:
    """Medians of single forwards behind the prompt: one token of either model, and M + 1 tokens of the target.

    Returns:
        target_seconds, draft_seconds, cost_ratio (draft over target), verify_cost (M -> a forward of M + 1 tokens over
        one of a single token).
    """
    sizes = sorted({1, *(m + 1 for m in lengths)})
    ways = {("target", n): _Forward(pair.target, prompt_ids, n) for n in sizes}
    ways[("draft", 1)] = _Forward(pair.draft, prompt_ids.to(pair.draft.device), 1)
    seconds = {key: [] for key in ways}
    for i in range(repeats + 2):
        for key, forward in ways.items():
            elapsed = forward()
            if i >= 2:  # warmed up
                seconds[key].append(elapsed)
    median = {key: statistics.median(found) for key, found in seconds.items()}
    one = median[("target", 1)]
    return {
        "target_seconds": one,
        "draft_seconds": median[("draft", 1)],
        "cost_ratio": median[("draft", 1)] / one,
        "verify_cost": {str(m): median[("target", m + 1)] / one for m in lengths},
    }


def recommend(rows: list[dict], pair: Pair) -> dict:
    """The draft length that is fastest at the head's own threshold; stricter thresholds that are as fast win.

    Returns:
        {"pays", "num_assistant_tokens", "threshold", "text"}.
    """
    others = [row for row in rows if not row["way"].startswith("judged")]
    baseline = max(others, key=lambda row: row["tokens_per_second"])
    judged = [row for row in rows if row["way"].startswith("judged")]
    if not judged:
        fastest = baseline["way"]
        return {
            "pays": fastest == "assisted",
            "num_assistant_tokens": None,
            "threshold": None,
            "text": f"No judge was given; fastest: {fastest}.",
        }
    own = pair.heads["judge"].config.threshold
    safe = [row for row in judged if row["threshold"] >= own]
    fastest = max(safe, key=lambda row: row["tokens_per_second"])
    as_fast = [row for row in safe if row["tokens_per_second"] >= (1 - AS_FAST) * fastest["tokens_per_second"]]
    chosen = max(as_fast, key=lambda row: (row["threshold"], row["tokens_per_second"]))
    ratio = chosen["tokens_per_second"] / baseline["tokens_per_second"]
    pays = ratio > 1
    setting = f"num_assistant_tokens={chosen['num_assistant_tokens']}, judge_threshold={chosen['threshold']:g}"
    text = f"{setting}: {chosen['ratio_to_plain']:.2f}x plain, {ratio:.2f}x the best way without a judge "
    text += f"({baseline['way']})."
    if not pays:
        text = (
            f"Judged decoding does not pay for this pair on this machine: at its best ({setting}) it reaches "
            f"{ratio:.2f}x of {baseline['way']}. Use that, a cheaper draft, or a bigger target."
        )
    elif max(judged, key=lambda row: row["tokens_per_second"])["threshold"] < own:
        text += " Thresholds below the head's own are faster still: ask `hf-judge evaluate` what they cost."
    return {
        "pays": pays,
        "num_assistant_tokens": chosen["num_assistant_tokens"],
        "threshold": chosen["threshold"],
        "text": text,
    }


class _Forward:
    """Times one forward of `n` tokens behind a prompt, again and again from the same cache."""

    def __init__(self, model: PreTrainedModel, prompt_ids: torch.LongTensor, n: int):
        self._model, self._n = model, n
        self._ids = prompt_ids[:, -1:].expand(1, n)
        self._cache = DynamicCache(config=model.config)
        model(input_ids=prompt_ids, past_key_values=self._cache, use_cache=True)
        self._prompt_length = prompt_ids.shape[1]

    def __call__(self) -> float:
        start = time.perf_counter()
        outputs = self._model(input_ids=self._ids, past_key_values=self._cache, use_cache=True)
        outputs.logits[0, -1].argmax().item()  # the one synchronisation that decoding has as well
        seconds = time.perf_counter() - start
        self._cache.crop(-self._n)
        return seconds


def _judged_ways(pair: Pair, lengths, thresholds) -> list[BenchWay]:
    head = pair.heads.get("judge")
    verifiers = [StrictVerifier] if head is None else []
    if head is not None:
        chosen = dict.fromkeys([head.config.threshold, *thresholds])
        verifiers = [lambda t=t: JudgeCandidateVerifier(head, t) for t in chosen]
    ways = []
    for m, make in itertools.product(lengths, verifiers):
        verifier = make()
        threshold = getattr(verifier, "threshold", None)
        name = f"strict, M={m}" if threshold is None else f"judged, M={m}, threshold={threshold:g}"
        kwargs = {
            "assistant_model": pair.draft,
            "judge": verifier,
            "num_assistant_tokens": m,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": 0.0,
        }
        ways.append(BenchWay(name, kwargs, verifier, m, threshold))
    return ways


def _best_upstream(pair: Pair, work, lengths, max_new_tokens: int, quick: bool) -> tuple:
    settings = list(itertools.product(sorted({5, *lengths}), SCHEDULES[: 1 if quick else 2], CONFIDENCES))
    ways = [BenchWay("", {"judge": False, "assistant_model": pair.draft}, upstream=setting) for setting in settings]
    for _ in range(1 if quick else 2):
        for way in ways:
            way.repeat(pair, work[:1] if quick else work, max_new_tokens)
    return max(ways, key=lambda way: max(way.rates)).upstream


@contextmanager
def _upstream_settings(draft: PreTrainedModel, setting: tuple | None):
    names = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
    config = draft.generation_config
    before = [getattr(config, name) for name in names]
    try:
        for name, value in zip(names, setting or before, strict=True):
            setattr(config, name, value)
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(config, name, value)
