"""Measures the speed of a pair on this machine: the fastest method of decoding, why it is fastest, and what to set.

Speed alone: what a threshold costs in accuracy is measured by `hf_judge.evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import CompileConfig

from hf_judge.bench.forwards import Floor, measure_costs
from hf_judge.bench.methods import (
    TimedMethod,
    UpstreamSetting,
    Work,
    baselines,
    best_length,
    best_upstream,
    engine_methods,
    judged_methods,
)
from hf_judge.evaluation.evaluate import Pair
from hf_judge.head.config import check_threshold
from hf_judge.tasks.problems import Task

MIN_SECONDS = 2.0  # a repeat answers its work again until then: short times are at the mercy of a busy machine
AS_FAST = 0.03  # share of the speed that a stricter threshold may cost and still be recommended


@dataclass(frozen=True)
class BenchOptions:
    """How much is measured.

    Args:
        lengths: draft lengths M.
        thresholds: thresholds of the judge, beside the head's own.
        repeats: repeats of the whole work for every method.
        max_new_tokens: limit of every answer.
        compile_config: settings of compiling, for the ragged engine and plain decoding with a static cache; None:
            nothing is compiled.
        batch_size: prompts of the ragged engine's batch.
        quick: search fewer of upstream's settings, and answer short work once.

    Raises:
        ValueError: a length, threshold or number of repeats that cannot be.
    """

    lengths: tuple[int, ...] = (8, 16, 32)
    thresholds: tuple[float, ...] = ()
    repeats: int = 5
    max_new_tokens: int = 256
    compile_config: CompileConfig | None = None
    batch_size: int = 8
    quick: bool = False

    def __post_init__(self):
        if self.repeats < 1 or not self.lengths or min(self.lengths) < 1:
            raise ValueError(
                f"bench needs at least one repeat and draft lengths from 1 on, got {self.repeats} and {self.lengths}"
            )
        for threshold in self.thresholds:
            check_threshold(threshold)


def bench(
    pair: Pair,
    task: Task,
    options: BenchOptions = BenchOptions(),
    *,
    on_step: Callable[[str], None] = lambda text: None,
) -> dict:
    """Measure every method on the same prompts, interleaved.

    Args:
        pair: the models; a head named "judge" judges, without one strict verification takes its place.
        task: its prompts are the work.
        options: how much is measured.
        on_step: receives the name of each step before it is measured.

    Returns:
        {"ways": figures of all, "costs", "upstream_setting", "recommendation", "unsupported"}; the figures of plain,
        plain_static, assisted, judged_upstream, judged_ragged, strict_ragged and judged_ragged_batch8 by these names
        too; "floor": {M: what the forwards of a round take alone, beside the engine's own round}.

    Raises:
        ValueError: thresholds without a judge.
    """
    if options.thresholds and "judge" not in pair.heads:
        raise ValueError(
            f"thresholds {options.thresholds} are of a judge, and none is given: pass one, or leave them out"
        )
    run = _Run(pair, [(pair.encode(example.prompt), example) for example in task.examples], options, on_step)
    run.plan()
    run.warm_up()
    run.measure()
    return run.collect()


class _Run:
    """One run of the bench, step by step."""

    def __init__(self, pair: Pair, work: Work, options: BenchOptions, on_step: Callable[[str], None]):
        self.pair, self.work, self.options, self.on_step = pair, work, options, on_step
        self.methods: list[TimedMethod] = []  # plain first
        self.upstream: UpstreamSetting | None = None  # the fastest of assisted generation
        self.costs: dict = {}
        self.floors: dict[str, Floor] = {}  # by the key of the method
        self.unsupported: dict[str, str] = {}  # name of a method -> error

    def plan(self) -> None:
        """Search the best draft lengths, measure the costs of single forwards, and list the methods."""
        pair, options, first_two = self.pair, self.options, self.work[:2]
        self.on_step("upstream's best setting")
        self.upstream = best_upstream(pair, first_two, options.lengths, options.max_new_tokens, quick=options.quick)
        judged = judged_methods(pair, options.lengths, options.thresholds)
        self.on_step("the best draft length")
        m, strict_m = best_length(pair, judged, first_two, options.max_new_tokens), self.upstream.num_assistant_tokens
        self.on_step("costs of single forwards")
        self.costs = measure_costs(pair, self.work[0][0], tuple(sorted({*options.lengths, strict_m})))
        self.methods = [
            *baselines(pair, self.upstream, options.compile_config),
            *engine_methods(pair, m, strict_m, options.compile_config, options.batch_size),
            *judged,
        ]

    def warm_up(self) -> None:
        """Run every method twice, drop what a model does not support, and prepare the floors."""
        for method in list(self.methods):
            self.on_step(f"warming up: {method.name}")
            try:
                self._answer_a_batch(method)
            except (ValueError, NotImplementedError, RuntimeError) as error:
                if method.key != "plain_static":
                    raise
                self.unsupported[method.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                self.methods.remove(method)
        for method in self.methods:
            if method.key in ("judged_ragged", "strict_ragged", self._batch_key):
                self.on_step(f"the floor: {method.name}")
                self.floors[method.key] = Floor(
                    self.pair,
                    self.work[0][0],
                    method.num_assistant_tokens,
                    batch_size=method.batch_size,
                    compile_config=self.options.compile_config,
                )
        # again, now that all shapes were met; the largest batch first, so that caches do not have to grow later
        for method in sorted(self.methods, key=lambda method: -method.batch_size):
            self._answer_a_batch(method)
            method.forget()

    def measure(self) -> None:
        """Answer the work with every method in turn, as often as the options say; floors beside their methods."""
        options, methods = self.options, self.methods
        for i in range(options.repeats):
            turn = i % len(methods)
            for method in methods[turn:] + methods[:turn]:
                self.on_step(f"repeat {i + 1} of {options.repeats}: {method.name}")
                method.repeat(self.pair, self.work, options.max_new_tokens, 0.0 if options.quick else MIN_SECONDS)
                if method.key in self.floors:
                    self.floors[method.key].measure()

    def collect(self) -> dict:
        """Return the figures of all methods, the floors and the recommendation."""
        rows = [method.figures(self.pair, self.methods[0], self.costs) for method in self.methods]
        named = list(zip(self.methods, rows, strict=True))
        by_key = {method.key: row for method, row in named if method.key is not None}
        floors = {
            method.key: _with_rate(self.floors[method.key].compare_with(method.round_seconds), row)
            for method, row in named
            if method.key in self.floors
        }
        # where both have one length, the floor of judged_ragged, which comes first, replaces the other
        single = [method for method in reversed(self.methods) if method.key in ("judged_ragged", "strict_ragged")]
        return {
            **by_key,
            "floor": {str(method.num_assistant_tokens): floors[method.key] for method in single},
            "floor_batch8": floors[self._batch_key],
            "ways": rows,
            "costs": self.costs,
            "upstream_setting": self.upstream._asdict(),
            "recommendation": recommend([row for method, row in named if not method.compares_engines], self.pair),
            "unsupported": self.unsupported,
        }

    @property
    def _batch_key(self) -> str:
        return f"judged_ragged_batch{self.options.batch_size}"

    def _answer_a_batch(self, method: TimedMethod) -> None:
        method.repeat(self.pair, self.work[: method.batch_size], self.options.max_new_tokens)


def recommend(rows: list[dict], pair: Pair) -> dict:
    """Recommend the draft length that is fastest at the head's own threshold, and a stricter threshold if as fast.

    Args:
        rows: figures of the methods without a judge, and of those whose names start with "judged".
        pair: its head "judge" gives the threshold.

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
    text = f"{setting}: {chosen['ratio_to_plain']:.2f}x plain, {ratio:.2f}x the best method without a judge "
    text += f"({baseline['way']})."
    if not pays:
        text = (
            f"Judged decoding does not pay for this pair on this machine: at its best ({setting}) it reaches "
            f"{ratio:.2f}x of {baseline['way']}. Use that, a cheaper draft, or a bigger target."
        )
    elif max(judged, key=lambda row: row["tokens_per_second"])["threshold"] < own:
        text += " Thresholds below the head's own are faster still: `hf-judge evaluate` measures what they cost."
    return {
        "pays": pays,
        "num_assistant_tokens": chosen["num_assistant_tokens"],
        "threshold": chosen["threshold"],
        "text": text,
    }


def _with_rate(floor: dict, row: dict) -> dict:
    """Add to a floor the tokens per second that its rounds would bring."""
    tokens = (row["accepted_per_forward"] + 1) * row["batch_size"]
    return floor | {"tokens_per_second": tokens / floor["seconds_per_round"]}
