"""Times methods of decoding on some prompts: plain, upstream's assisted generation, both engines."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import CompileConfig

from hf_judge.bench.formula import predicted_speedup
from hf_judge.evaluation.evaluate import Pair, left_padded, up_to_end
from hf_judge.evaluation.instruments import count_forwards, draft_settings
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.modeling.keywords import constant_drafts
from hf_judge.tasks.problems import Example
from hf_judge.upstream.forward import compiling_everywhere
from hf_judge.verify.decide import StrictVerifier
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.stats import JudgeStats

SCHEDULES = ("constant", "heuristic_transient")
CONFIDENCES = (0.4, 0.0)  # upstream's default, and off

Work = list[tuple[torch.LongTensor, Example]]  # prompt ids, (1, n) long, and how the answer is checked


class UpstreamSetting(NamedTuple):
    """What upstream's assisted generation reads from the draft's config alone."""

    num_assistant_tokens: int
    schedule: str
    confidence: float


@dataclass
class TimedMethod:
    """One method of decoding and what it measured."""

    name: str
    kwargs: dict  # keywords of generate()
    verifier: StrictVerifier | JudgeCandidateVerifier | None = None
    num_assistant_tokens: int | None = None
    threshold: float | None = None
    upstream: UpstreamSetting | None = None
    key: str | None = None  # its own key in the JSON
    batch_size: int = 1
    rates: list[float] = field(default_factory=list)  # tokens per second of every repeat
    seconds: list[float] = field(default_factory=list)  # per answer
    round_seconds: list[float] = field(default_factory=list)  # per round of the engine
    answers: list[tuple[Example, list[int]]] = field(default_factory=list)  # new tokens of the last repeat
    forwards: float = 0.0  # target forwards for all of the work; counted where upstream reports no acceptance

    @property
    def compares_engines(self) -> bool:
        """Whether the method compares engines; such a method is no setting to recommend."""
        return "judge_engine" in self.kwargs

    def repeat(self, pair: Pair, work: Work, max_new_tokens: int, min_seconds: float = 0.0) -> None:
        """Answer all of the work, once or until some time has passed, and add the measurements.

        Args:
            pair: the models.
            work: the prompts.
            max_new_tokens: limit of every answer.
            min_seconds: time that must pass.
        """
        batches = [work[i : i + self.batch_size] for i in range(0, len(work), self.batch_size)]
        prompts = [left_padded([ids[0] for ids, _ in batch]) for batch in batches]
        before = None if self.verifier is None else self.verifier.stats
        keywords = ANSWER_ALONE | {"max_new_tokens": max_new_tokens, "do_sample": False} | self.kwargs
        # only here: the hook that counts would make a compiled model compile again
        counting = nullcontext() if self.upstream is None else count_forwards(pair.target)
        setting = nullcontext() if self.upstream is None else draft_settings(pair.draft, *self.upstream)
        times, seconds = 0, 0.0
        with setting, counting as forwards:
            start = time.perf_counter()
            while not times or seconds < min_seconds:
                outputs = [pair.target.generate(ids, attention_mask=mask, **keywords).tolist() for ids, mask in prompts]
                times, seconds = times + 1, time.perf_counter() - start
        self.forwards = 0.0 if forwards is None else forwards.count / times
        self.answers = [
            (example, up_to_end(sequence[ids.shape[1] :], pair.stop_tokens))
            for (ids, _), batch, sequences in zip(prompts, batches, outputs, strict=True)
            for (_, example), sequence in zip(batch, sequences, strict=True)
        ]
        self.rates.append(times * sum(len(tokens) for _, tokens in self.answers) / seconds)
        self.seconds.append(seconds / (times * len(work)))
        if self.verifier is not None:
            stats = self.verifier.stats
            self.round_seconds.append((stats.seconds - before.seconds) / (stats.rounds - before.rounds))

    def forget(self) -> None:
        """Drop all measurements, which were for warming up."""
        self.rates.clear()
        self.seconds.clear()
        self.round_seconds.clear()
        if self.verifier is not None:
            self.verifier.stats = JudgeStats()

    def accuracy(self, pair: Pair) -> float | None:
        """Return the share of right answers in the last repeat; None where the task has no right answers."""
        if any(example.is_right is None for example, _ in self.answers):
            return None
        return sum(example.is_right(pair.text(tokens)) for example, tokens in self.answers) / len(self.answers)

    def accepted_per_forward(self) -> float:
        """Return accepted drafted tokens per target forward; for upstream's loop, its tokens per forward minus one."""
        if self.verifier is not None:
            return self.verifier.stats.accepted_per_forward
        return sum(len(tokens) for _, tokens in self.answers) / self.forwards - 1 if self.forwards else 0.0

    def figures(self, pair: Pair, plain: TimedMethod, costs: dict) -> dict:
        """Return the method's figures as JSON values.

        Args:
            pair: the models.
            plain: plain decoding, measured in the same repeats.
            costs: see [`hf_judge.bench.forwards.measure_costs`].
        """
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
        return found if self.verifier is None else found | self._round_figures(costs)

    def _round_figures(self, costs: dict) -> dict:
        """Return the figures of our own loop: what a round holds, takes, and should bring by the paper's formula."""
        stats, c = self.verifier.stats, costs["cost_ratio"]
        drafted, accepted = stats.drafted / max(stats.row_forwards, 1), stats.accepted_per_forward
        v = costs["verify_cost"][str(self.num_assistant_tokens)]
        return {
            "drafted_per_round": drafted,
            "seconds_per_round": stats.seconds / max(stats.rounds, 1),
            "predicted": predicted_speedup(accepted, drafted, c),
            "predicted_with_verify_cost": predicted_speedup(accepted, drafted, c, v),
            "share_of_time": {
                phase: getattr(stats, f"seconds_{phase}") / stats.seconds
                for phase in ("drafting", "verifying", "judging", "rest")
            },
        }


def baselines(pair: Pair, setting: UpstreamSetting, compile_config: CompileConfig | None) -> list[TimedMethod]:
    """Return the methods without a judge: plain, plain with a static cache, and assisted generation.

    Args:
        pair: the models.
        setting: settings of assisted generation.
        compile_config: settings of compiling, for the static cache; None: nothing is compiled.
    """
    static = {"judge": False, "cache_implementation": "static"}
    if compile_config is not None:
        static["compile_config"] = compiling_everywhere(copy.copy(compile_config))
    m = setting.num_assistant_tokens
    return [
        TimedMethod("plain", {"judge": False}, key="plain"),
        TimedMethod("plain, static cache", static, key="plain_static"),
        TimedMethod("assisted", _assisted(pair), num_assistant_tokens=m, upstream=setting, key="assisted"),
    ]


def _assisted(pair: Pair) -> dict:
    return {"judge": False, "assistant_model": pair.draft, **pair.tokenizers}


def judged_methods(pair: Pair, lengths: tuple[int, ...], thresholds: tuple[float, ...]) -> list[TimedMethod]:
    """Return judged decoding at every draft length and threshold, the head's own threshold first.

    Args:
        pair: the models; without a head named "judge", strict verification takes its place.
        lengths: draft lengths M.
        thresholds: thresholds beside the head's own.
    """
    head, methods = pair.heads.get("judge"), []
    chosen = [None] if head is None else dict.fromkeys([head.config.threshold, *thresholds])
    for m, threshold in itertools.product(lengths, chosen):
        if threshold is None:
            name, verifier = f"strict, M={m}", StrictVerifier()
        else:
            name, verifier = f"judged, M={m}, threshold={threshold:g}", JudgeCandidateVerifier(head, threshold)
        kwargs = constant_drafts(pair.draft, verifier, m, **pair.tokenizers)
        methods.append(TimedMethod(name, kwargs, verifier, m, threshold))
    return methods


def engine_methods(
    pair: Pair, m: int, strict_m: int, compile_config: CompileConfig | None, batch_size: int
) -> list[TimedMethod]:
    """Return both engines at one draft length; the ragged one also strict, and for a batch.

    Args:
        pair: the models.
        m: draft length.
        strict_m: draft length of strict verification.
        compile_config: settings of compiling, for the ragged engine; None: nothing is compiled.
        batch_size: prompts of the batch.
    """
    head = pair.heads.get("judge")

    def method(key: str, engine: str, length: int, *, judged: bool = True, batch_size: int = 1) -> TimedMethod:
        verifier = JudgeCandidateVerifier(head) if judged and head is not None else StrictVerifier()
        kwargs = constant_drafts(pair.draft, verifier, length, **pair.tokenizers) | {"judge_engine": engine}
        if engine == "ragged" and compile_config is not None:
            kwargs["compile_config"] = compile_config
        words = [key.replace("_", " "), f"M={length}", *(["compiled"] if "compile_config" in kwargs else [])]
        threshold = head.config.threshold if judged and head is not None else None
        return TimedMethod(", ".join(words), kwargs, verifier, length, threshold, key=key, batch_size=batch_size)

    return [
        method("judged_upstream", "upstream", m),
        method("judged_ragged", "ragged", m),
        method("strict_ragged", "ragged", strict_m, judged=False),
        method(f"judged_ragged_batch{batch_size}", "ragged", m, batch_size=batch_size),
    ]


def best_upstream(
    pair: Pair, work: Work, lengths: tuple[int, ...], max_new_tokens: int, *, quick: bool
) -> UpstreamSetting:
    """Search the fastest setting of upstream's assisted generation.

    Args:
        pair: the models.
        work: prompts to answer.
        lengths: draft lengths to try, beside 5 and 10.
        max_new_tokens: limit of every answer.
        quick: try fewer settings, on one prompt, once.
    """
    settings = itertools.product(sorted({5, 10, *lengths}), SCHEDULES[: 1 if quick else 2], CONFIDENCES)
    methods = [TimedMethod("", _assisted(pair), upstream=UpstreamSetting(*setting)) for setting in settings]
    for _ in range(1 if quick else 2):
        for method in methods:
            method.repeat(pair, work[:1] if quick else work, max_new_tokens)
    return max(methods, key=lambda method: max(method.rates)).upstream


def best_length(pair: Pair, judged: list[TimedMethod], work: Work, max_new_tokens: int) -> int:
    """Return the draft length of the method that is fastest at the head's own threshold, at a first look."""
    own = judged[0].threshold
    methods = [method for method in judged if method.threshold == own]
    for method in methods:
        method.repeat(pair, work, max_new_tokens)
    return max(methods, key=lambda method: max(method.rates)).num_assistant_tokens
