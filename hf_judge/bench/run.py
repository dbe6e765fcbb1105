"""Speed of a pair on this machine: which way of decoding is fastest, why, and what to set.

Speed alone: what a threshold costs in accuracy is measured by `hf_judge.evaluation`.
"""

from __future__ import annotations

import copy
import itertools
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from transformers import CompileConfig, DynamicCache, PreTrainedModel

from hf_judge.bench.formula import predicted_speedup
from hf_judge.bench.forwards import Floor, interleaved_medians
from hf_judge.evaluation.answers import Pair, left_padded, up_to_end
from hf_judge.evaluation.demo import count_forwards
from hf_judge.evaluation.tasks import Example, Task
from hf_judge.head.config import check_threshold
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.upstream.forward import compiling_everywhere, with_cache
from hf_judge.verify.rule import JudgeCandidateVerifier, StrictVerifier
from hf_judge.verify.stats import JudgeStats

logger = logging.getLogger(__name__)

SCHEDULES = ("constant", "heuristic_transient")
CONFIDENCES = (0.4, 0.0)  # upstream's default, and off
MIN_SECONDS = 2.0  # a repeat answers its work again until then: what is short is at the mercy of a busy machine
AS_FAST = 0.03  # a stricter threshold is preferred where it costs no more than this share of the speed


Work = list[tuple[torch.LongTensor, Example]]  # prompt ids, (1, n) long, and how the answer is checked


@dataclass
class BenchWay:
    """One way of decoding and what it measured."""

    name: str
    kwargs: dict  # of generate()
    verifier: StrictVerifier | JudgeCandidateVerifier | None = None
    num_assistant_tokens: int | None = None
    threshold: float | None = None
    upstream: tuple | None = None  # draft length, schedule, confidence: upstream reads them from the draft's config
    key: str | None = None  # under which it stands in the JSON of its own
    batch_size: int = 1
    rates: list[float] = field(default_factory=list)  # tokens per second of every repeat
    seconds: list[float] = field(default_factory=list)  # per answer
    round_seconds: list[float] = field(default_factory=list)  # of the engine
    answers: list[tuple[Example, list[int]]] = field(default_factory=list)  # new tokens, of the last repeat
    forwards: float = 0.0  # of the target, for all of the work, where upstream tells nothing of acceptance

    @property
    def compares_engines(self) -> bool:
        """Whether it is about an engine, not about a setting to choose."""
        return "judge_engine" in self.kwargs

    def repeat(self, pair: Pair, work: Work, max_new_tokens: int, min_seconds: float = 0.0) -> None:
        """Answer all of the work, once or until some time has passed."""
        batches = [work[i : i + self.batch_size] for i in range(0, len(work), self.batch_size)]
        prompts = [left_padded([ids[0] for ids, _ in batch]) for batch in batches]
        before = None if self.verifier is None else self.verifier.stats
        # a hook on a compiled model would compile it again
        counting = nullcontext() if self.upstream is None else count_forwards(pair.target)
        times, seconds = 0, 0.0
        with _upstream_settings(pair.draft, self.upstream), counting as forwards:
            start = time.perf_counter()
            while not times or seconds < min_seconds:
                outputs = [
                    pair.target.generate(
                        ids,
                        attention_mask=mask,
                        max_new_tokens=max_new_tokens,
                        do_sample=False,
                        **ANSWER_ALONE,
                        **self.kwargs,
                    ).tolist()
                    for ids, mask in prompts
                ]
                times, seconds = times + 1, time.perf_counter() - start
        self.forwards = 0.0 if forwards is None else forwards.count / times
        self.answers = [
            (example, up_to_end(row[ids.shape[1] :], pair.stop_ids))
            for (ids, _), batch, rows in zip(prompts, batches, outputs, strict=True)
            for (_, example), row in zip(batch, rows, strict=True)
        ]
        self.rates.append(times * sum(len(tokens) for _, tokens in self.answers) / seconds)
        self.seconds.append(seconds / (times * len(work)))
        if self.verifier is not None:
            stats = self.verifier.stats
            self.round_seconds.append((stats.seconds - before.seconds) / (stats.rounds - before.rounds))

    def accuracy(self, pair: Pair) -> float:
        """Share of right answers in the last repeat."""
        rights = [e.is_right(pair.tokenizer.decode(ids, skip_special_tokens=True)) for e, ids in self.answers]
        return sum(rights) / len(rights)

    def accepted_per_forward(self) -> float:
        """Accepted drafted tokens per row of a forward of the target; of upstream's loop, its tokens per forward less
        one."""
        if self.verifier is not None:
            return self.verifier.stats.accepted_per_forward
        return sum(len(tokens) for _, tokens in self.answers) / self.forwards - 1 if self.forwards else 0.0

    def forget(self) -> None:
        """Start measuring: what warmed up does not count."""
        self.rates.clear()
        self.seconds.clear()
        self.round_seconds.clear()
        if self.verifier is not None:
            self.verifier.stats = JudgeStats()

    def figures(self, pair: Pair, plain: BenchWay, costs: dict) -> dict:
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
            "accuracy": self.accuracy(pair),
            "accepted_per_forward": self.accepted_per_forward(),
            "batch_size": self.batch_size,
        }
        if self.verifier is not None:
            stats = self.verifier.stats
            drafted = stats.drafted / max(stats.row_forwards, 1)
            verify_cost = costs["verify_cost"][str(self.num_assistant_tokens)]
            accepted = stats.accepted_per_forward
            found |= {
                "drafted_per_round": drafted,
                "seconds_per_round": stats.seconds / max(stats.rounds, 1),
                "predicted": predicted_speedup(accepted, drafted, costs["cost_ratio"]),
                "predicted_with_verify_cost": predicted_speedup(accepted, drafted, costs["cost_ratio"], verify_cost),
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
    compile_config: CompileConfig | None = None,
    batch_size: int = 8,
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
        compile_config: the engine's ways and plain decoding with a static cache are compiled; None: nothing is.
        batch_size: rows of the engine's batch.
        quick: search fewer of upstream's settings.
        on_step: told what is about to be measured.

    Returns:
        {"ways": figures of all, "costs", "upstream_setting", "recommendation", "unsupported"}; the figures of plain,
        plain_static, assisted, judged_upstream, judged_ragged, strict_ragged and judged_ragged_batch8 by these names
        too; "floor": {M: what the forwards of a round take alone, the engine's own round beside it}.

    Raises:
        ValueError: a length, threshold or number of repeats that cannot be.
    """
    if repeats < 1 or not lengths or min(lengths) < 1:
        raise ValueError(f"bench needs at least one repeat and draft lengths from 1 on, got {repeats} and {lengths}")
    for threshold in thresholds:
        check_threshold(threshold)
    if thresholds and "judge" not in pair.heads:
        raise ValueError(f"thresholds {thresholds} are of a judge, and none is given: pass one, or leave them out")
    work = [(pair.encode(example.prompt), example) for example in task.examples]
    on_step("upstream's best setting")
    best = _best_upstream(pair, work[:2], lengths, max_new_tokens, quick)
    judged = _judged_ways(pair, lengths, thresholds)
    on_step("the best draft length")
    m = _best_length(pair, judged, work[:2], max_new_tokens)
    strict_m = best[0]
    on_step("costs of single forwards")
    costs = measure_costs(pair, work[0][0], tuple(sorted({*lengths, strict_m})))
    plain_static = {"judge": False, "cache_implementation": "static"}
    if compile_config is not None:
        plain_static["compile_config"] = compiling_everywhere(copy.copy(compile_config))
    ways = [
        BenchWay("plain", {"judge": False}, key="plain"),
        BenchWay("plain, static cache", plain_static, key="plain_static"),
        BenchWay(
            "assisted",
            _assisted(pair),
            None,
            best[0],
            None,
            best,
            "assisted",
        ),
        *_engine_ways(pair, m, strict_m, compile_config, batch_size),
        *judged,
    ]
    unsupported = {}
    for way in list(ways):
        on_step(f"warming up: {way.name}")
        try:
            way.repeat(pair, work[: way.batch_size], max_new_tokens)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            if way.key != "plain_static":
                raise
            unsupported[way.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            ways.remove(way)
    floors = {}
    for way in ways:
        if way.key in ("judged_ragged", "strict_ragged", f"judged_ragged_batch{batch_size}"):
            on_step(f"the floor: {way.name}")
            floors[way.key] = Floor(
                pair,
                work[0][0],
                way.num_assistant_tokens,
                n_rows=way.batch_size,
                compile_config=compile_config,
            )
    # once more: all shapes are there now. Largest batch first: caches are not moved to more room afterwards
    for way in sorted(ways, key=lambda way: -way.batch_size):
        way.repeat(pair, work[: way.batch_size], max_new_tokens)
        way.forget()
    for i in range(repeats):
        for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
            on_step(f"repeat {i + 1} of {repeats}: {way.name}")
            way.repeat(pair, work, max_new_tokens, 0.0 if quick else MIN_SECONDS)
            if way.key in floors:
                floors[way.key].measure()
    rows = [way.figures(pair, ways[0], costs) for way in ways]
    by_key = {way.key: row for way, row in zip(ways, rows, strict=True) if way.key is not None}
    single = ("judged_ragged", "strict_ragged")  # where both have one length, judged's floor stands
    beside = {
        way.key: _with_rate(floors[way.key].beside(way.round_seconds), by_key[way.key])
        for way in ways
        if way.key in floors
    }
    return {
        **by_key,
        "floor": {str(way.num_assistant_tokens): beside[way.key] for way in reversed(ways) if way.key in single},
        "floor_batch8": beside[f"judged_ragged_batch{batch_size}"],
        "ways": rows,
        "costs": costs,
        "upstream_setting": dict(zip(("num_assistant_tokens", "schedule", "confidence"), best, strict=True)),
        "recommendation": recommend(
            [row for way, row in zip(ways, rows, strict=True) if not way.compares_engines], pair
        ),
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
    median = interleaved_medians(ways, repeats)
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
        model(input_ids=prompt_ids, use_cache=True, **with_cache(self._cache))
        self._prompt_length = prompt_ids.shape[1]

    def __call__(self) -> float:
        start = time.perf_counter()
        outputs = self._model(input_ids=self._ids, use_cache=True, **with_cache(self._cache))
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
        kwargs = _drafting(pair, verifier, m)
        ways.append(BenchWay(name, kwargs, verifier, m, threshold))
    return ways


def _engine_ways(pair: Pair, m: int, strict_m: int, compile_config, batch_size: int) -> list[BenchWay]:
    """Both engines at one draft length, the ragged one strict and for a batch too."""
    head = pair.heads.get("judge")
    threshold = None if head is None else head.config.threshold

    def way(key: str, engine: str, length: int, *, judged: bool = True, n_rows: int = 1) -> BenchWay:
        verifier = JudgeCandidateVerifier(head) if judged and head is not None else StrictVerifier()
        kwargs = _drafting(pair, verifier, length) | {"judge_engine": engine}
        if engine == "ragged" and compile_config is not None:
            kwargs["compile_config"] = compile_config
        words = [key.replace("_", " "), f"M={length}", *(["compiled"] if "compile_config" in kwargs else [])]
        own = threshold if judged else None
        return BenchWay(", ".join(words), kwargs, verifier, length, own, key=key, batch_size=n_rows)

    return [
        way("judged_upstream", "upstream", m),
        way("judged_ragged", "ragged", m),
        way("strict_ragged", "ragged", strict_m, judged=False),
        way(f"judged_ragged_batch{batch_size}", "ragged", m, n_rows=batch_size),
    ]


def _assisted(pair: Pair) -> dict:
    return {"judge": False, "assistant_model": pair.draft} | pair.tokenizers


def _drafting(pair: Pair, verifier, length: int) -> dict:
    return {
        "assistant_model": pair.draft,
        **pair.tokenizers,
        "judge": verifier,
        "num_assistant_tokens": length,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }


def _best_upstream(pair: Pair, work: Work, lengths, max_new_tokens: int, quick: bool) -> tuple:
    settings = list(itertools.product(sorted({5, 10, *lengths}), SCHEDULES[: 1 if quick else 2], CONFIDENCES))
    ways = [BenchWay("", _assisted(pair), upstream=setting) for setting in settings]
    for _ in range(1 if quick else 2):
        for way in ways:
            way.repeat(pair, work[:1] if quick else work, max_new_tokens)
    return max(ways, key=lambda way: max(way.rates)).upstream


def _best_length(pair: Pair, judged: list[BenchWay], work: Work, max_new_tokens: int) -> int:
    """The draft length of the fastest judged way, at the head's own threshold, at a first look."""
    own = judged[0].threshold
    ways = [way for way in judged if way.threshold == own]
    for way in ways:
        way.repeat(pair, work, max_new_tokens)
    return max(ways, key=lambda way: max(way.rates)).num_assistant_tokens


def _with_rate(floor: dict, row: dict) -> dict:
    """A floor, and the tokens per second that its rounds would bring."""
    tokens = (row["accepted_per_forward"] + 1) * row["batch_size"]
    return floor | {"tokens_per_second": tokens / floor["seconds_per_round"]}


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
