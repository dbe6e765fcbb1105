"""The demo's measurement: the same held-out problems answered plainly, by upstream's assisted generation, and judged.

Knows nothing about the terminal: progress goes to a callback, figures come back as a dict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hf_judge.decoding.loop import VerdictStreamer
from hf_judge.labelling.prompts import encode_prompt
from hf_judge.tiny.pair import TinyPair
from hf_judge.tiny.world import Problem, check_answer
from hf_judge.verify.stats import JudgeStats

WAYS = ("plain", "assisted", "judged")
MAX_NEW_TOKENS = 256


@dataclass
class Tally:
    """What one way of generating did over the problems so far."""

    problems: int = 0
    right: int = 0
    new_tokens: int = 0
    target_forwards: int = 0
    seconds: float = 0.0

    def figures(self, plain: Tally) -> dict[str, float]:
        """The figures of `--json`; `ratio_to_plain` compares tokens per second."""
        speed, plain_speed = (t.new_tokens / t.seconds for t in (self, plain))
        figures = {
            "accuracy": self.right / self.problems,
            "tokens_per_forward": self.new_tokens / self.target_forwards,
            "tokens_per_second": speed,
            "ratio_to_plain": speed / plain_speed,
        }
        if self is not plain:
            # every forward of the target adds one token of its own to the drafted ones that it accepts
            figures["accepted_per_forward"] = (self.new_tokens - self.target_forwards) / self.target_forwards
        return figures


def prompt_ids(pair: TinyPair, problem: Problem) -> torch.LongTensor:
    """The chat prompt of a problem, (1, n) long."""
    return torch.tensor([encode_prompt(pair.tokenizer, [{"role": "user", "content": problem.question}])[1]])


def way_kwargs(way: str, pair: TinyPair, num_assistant_tokens: int) -> dict:
    """The arguments of `generate` that make one of the three ways."""
    if way == "plain":
        return {}
    if way == "assisted":  # upstream takes the draft length from the draft's generation_config alone
        return {"assistant_model": pair.draft}
    return {
        "assistant_model": pair.draft,
        "judge": pair.judge,
        "num_assistant_tokens": num_assistant_tokens,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }


def stream_problem(
    pair: TinyPair, problem: Problem, streamer: VerdictStreamer, num_assistant_tokens: int
) -> JudgeStats:
    """Answer one problem judged, token by token into `streamer`."""
    output = pair.target.generate(
        prompt_ids(pair, problem),
        streamer=streamer,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        **way_kwargs("judged", pair, num_assistant_tokens),
    )
    return output.judge_stats


def compare(
    pair: TinyPair,
    problems: list[Problem],
    *,
    num_assistant_tokens: int,
    on_answer: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Answer every problem in three ways, interleaved in one process, and compare.

    Upstream's assisted generation gets the same draft length with its own defaults for the rest (it shortens drafts of
    which the draft is not confident); the judge drafts `num_assistant_tokens` every round.

    Args:
        pair: the embedded pair.
        problems: held-out problems.
        num_assistant_tokens: drafted tokens per round.
        on_answer: called after each of the `3 * len(problems)` answers.

    Returns:
        {"plain": figures, "assisted": figures, "judged": figures}, see [`Tally.figures`].
    """
    tallies = {way: Tally() for way in WAYS}
    with draft_length(pair.draft, num_assistant_tokens), count_forwards(pair.target) as forwards:
        for number, problem in enumerate(problems):
            ids = prompt_ids(pair, problem)
            # the first answer of a process pays for warming up: rotate who goes first
            for way in WAYS[number % 3 :] + WAYS[: number % 3]:
                before, start = forwards.count, time.perf_counter()
                output = pair.target.generate(
                    ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **way_kwargs(way, pair, num_assistant_tokens)
                )
                tally = tallies[way]
                tally.seconds += time.perf_counter() - start
                tally.target_forwards += forwards.count - before
                answer = output[0, ids.shape[1] :]
                tally.new_tokens += len(answer)
                tally.right += check_answer(problem, pair.tokenizer.decode(answer, skip_special_tokens=True))
                tally.problems += 1
                on_answer()
    return {way: tally.figures(tallies["plain"]) for way, tally in tallies.items()}


class _Forwards:
    count = 0


@contextmanager
def count_forwards(model: torch.nn.Module) -> Iterator[_Forwards]:
    """Counts the forward passes of `model`, whoever drives them."""
    forwards = _Forwards()

    def add(*_):
        forwards.count += 1

    handle = model.register_forward_pre_hook(add)
    try:
        yield forwards
    finally:
        handle.remove()


@contextmanager
def draft_length(draft, num_assistant_tokens: int) -> Iterator[None]:
    config = draft.generation_config
    before = config.num_assistant_tokens, config.num_assistant_tokens_schedule
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = num_assistant_tokens, "heuristic_transient"
    try:
        yield
    finally:
        config.num_assistant_tokens, config.num_assistant_tokens_schedule = before
