"""Label the draft's own answers by a function that finds the first mistake; the target repairs them.

A sampled answer is often wrong early, and what follows a mistake has no label. So the mistake is refused, as a perfect
judge would refuse it, the target writes one token in its place, and the draft goes on from there: the next piece is
labelled too. So drafted tokens are labelled in text that both models wrote, as in judged decoding.
"""

from __future__ import annotations

import functools
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.head.compatibility import check_pair, n_shared_tokens
from hf_judge.labelling.greedy import GumbelNoise, greedy, stop_tokens_of
from hf_judge.labelling.jobs import (
    NEAR_TIE,
    TASK_ERRORS,
    MiningReport,
    decode_exactly,
    make_row,
    name_of,
    refusal,
    run_job,
)
from hf_judge.labelling.prompts import encode_prompt, prompt_of
from hf_judge.labelling.tokens import UnlabelledRow, decoded_offsets

MistakeFinder = Callable[[str, dict], tuple[int, int] | None]


def label_drafts(
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[dict],
    locate: MistakeFinder,
    output: str | os.PathLike,
    *,
    target: PreTrainedModel | None = None,
    num_repairs: int = 0,
    num_samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    names: Sequence[str] | None = None,
    strict: bool = False,
    target_tokenizer: PreTrainedTokenizerBase | None = None,
) -> MiningReport:
    """Label the draft's answers to tasks.

    Args:
        draft: the model that writes the answers.
        tokenizer: the draft's tokenizer.
        tasks: dicts with `prompt` (text or chat messages), optionally `task_id`, and whatever `locate` reads.
        locate: `(response, task) -> (start, end)` of the first mistake in characters, or None.
        output: JSONL file of [`LabelledResponse`]; finished prompts are kept in `<output>.journal` for a rerun.
        target: the model that replaces mistaken tokens by its own.
        num_repairs: mistakes per answer to replace before giving up.
        num_samples: answers per prompt: the first is greedy, the others are sampled.
        temperature: sampling temperature of answers 2, 3, ...
        max_new_tokens: longest answer, in tokens.
        batch_size: answers at once; examples do not depend on it, except those marked `near_tie`.
        seed: seed of the samples.
        names: names of the tasks in the report, as "prompts.jsonl, line 3"; None: "task 3".
        strict: stop at a task that the models or `locate` refuse, instead of listing it in the report.
        target_tokenizer: the target's tokenizer, which must agree with the draft's; None: it is the draft's.

    Returns:
        Counts over all tasks, and the refused ones.

    Raises:
        ValueError: repairs without a target, or the tokenizers disagree.
    """
    if num_repairs and target is None:
        raise ValueError(f"num_repairs={num_repairs} needs a target, whose tokens replace the mistakes")
    if target is not None and target_tokenizer is not None:
        check_pair(target_tokenizer, tokenizer)
    drafting = _Drafting(draft, target, tokenizer, num_repairs, num_samples, temperature, max_new_tokens, seed)
    settings = drafting.settings() | {"source": "draft", "locate": name_of(locate)}

    def work(todo: list[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        n_prompts = max(1, batch_size // num_samples)
        for start in range(0, len(todo), n_prompts):
            yield from drafting.work(todo[start : start + n_prompts], locate)

    return run_job(work, list(tasks), output, settings, draft, names=names, strict=strict, draft=draft)


@dataclass(frozen=True)
class _Drafting:
    """Writes and repairs the answers to a few tasks at once; the fields are arguments of [`label_drafts`]."""

    draft: PreTrainedModel
    target: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    num_repairs: int
    num_samples: int
    temperature: float
    max_new_tokens: int
    seed: int

    def settings(self) -> dict:
        """Return what the answers depend on."""
        names = ("num_repairs", "num_samples", "temperature", "max_new_tokens", "seed")
        return {
            "target": self.target.config.name_or_path if self.num_repairs else None,
            "draft": self.draft.config.name_or_path,
            **{name: getattr(self, name) for name in names},
        }

    @functools.cached_property
    def n_tokens(self) -> int:
        """Number of ids that both models may write."""
        models = [model for model in (self.draft, self.target) if model is not None]
        return n_shared_tokens(self.tokenizer, *models)

    def work(self, todo: list[tuple[str, dict]], locate: MistakeFinder) -> Iterator[tuple[str, dict]]:
        """Answer tasks, label the answers, and yield (key, record), as [`run_job`] expects."""
        answers = {}
        for key, task in todo:
            seeds = [f"{self.seed}/{key}/{n}" if n else None for n in range(self.num_samples)]
            try:
                answers[key] = [_Answer(task, self.tokenizer, locate, seed) for seed in seeds]
            except TASK_ERRORS as error:
                yield key, refusal(error)
        every = [answer for own in answers.values() for answer in own]
        for turn in range(self.num_repairs + 1):
            self._continue(every, turn)
            if turn < self.num_repairs:
                self._repair(every)
        for key, own in answers.items():
            yield key, _record(own)

    def _continue(self, answers: list[_Answer], turn: int) -> None:
        """Let the draft finish every answer that is not done."""
        todo = self._todo(answers)
        if not todo:
            return
        noise = GumbelNoise([None if a.seed is None else f"{a.seed}/{turn}" for a in todo], self.temperature)
        limits = [self.max_new_tokens - len(a.prefix) for a in todo]
        prefixes = [a.prompt_ids + a.prefix for a in todo]
        results = greedy(self.draft, self.tokenizer, prefixes, limits, noise=noise, n_tokens=self.n_tokens)
        for answer, (ids, gap) in zip(todo, results, strict=True):
            answer.receive(ids, gap, stop_tokens_of(self.draft))

    def _repair(self, answers: list[_Answer]) -> None:
        """Let the target write one token in place of every refused one."""
        todo = self._todo(answers)
        if not todo:
            return
        prefixes, limits = [a.prompt_ids + a.prefix for a in todo], [1] * len(todo)
        results = greedy(self.target, self.tokenizer, prefixes, limits, n_tokens=self.n_tokens)
        for answer, (ids, gap) in zip(todo, results, strict=True):
            answer.replace(ids[0], gap, stop_tokens_of(self.target))

    def _todo(self, answers: list[_Answer]) -> list[_Answer]:
        return [a for a in answers if not a.done and len(a.prefix) < self.max_new_tokens]


class _Answer:
    """Labels one answer piece by piece."""

    def __init__(self, task: dict, tokenizer, locate: MistakeFinder, seed: str | None):
        self.task, self.seed = task, seed
        self.prompt_ids = encode_prompt(tokenizer, prompt_of(task))[1]
        self.prefix = []  # ids of the response: all that is right so far
        self.refused = None  # the token that the target is to replace
        self.refusal = None  # the record of a task that `locate` could not do
        self.gap = float("inf")  # smallest closeness of the two best logits at any choice
        self.done = False
        self.rows, self.counts = [], Counter()
        self._tokenizer, self._locate = tokenizer, locate

    def receive(self, ids: list[int], gap: float, stop_tokens: set[int]) -> None:
        """Label the draft's continuation of the prefix."""
        self.gap = min(self.gap, gap)
        n_before, ids = len(self.prefix), self.prefix + ids
        while ids and ids[-1] in stop_tokens:
            ids = ids[:-1]
        text = decode_exactly(self._tokenizer, ids)
        try:
            offsets = decoded_offsets(self._tokenizer, ids, text)
        except UnlabelledRow:
            self.done = True
            self.counts["skipped: tokens without text of their own"] += 1
            return
        try:
            start, end = _checked_span(self._locate(text, self.task), text)
        except TASK_ERRORS as error:
            self.done, self.refusal = True, refusal(error)
            return
        wrong = [i for i, (a, b) in enumerate(offsets) if start < end and a < end and b > start]
        at = wrong[0] if wrong else len(ids)
        self.done = at < n_before or len(ids) == n_before  # the target's own token is wrong, or nothing was added
        if self.done:
            return
        self.counts["answers or pieces with a mistake" if at < len(ids) else "answers or pieces without"] += 1
        labels = {
            "mistakes": ((start, end),) if start < end else (),
            "scope": _new_piece(offsets, n_before, text),
            "near_tie": self.gap <= NEAR_TIE,
        }
        self.rows.append(make_row(self.task, text, ids, "repaired" if n_before else "draft", **labels))
        self.done = at == len(ids)
        if not self.done:
            self.prefix, self.refused = ids[:at], ids[at]

    def replace(self, token: int, gap: float, stop_tokens: set[int]) -> None:
        """Take the target's token in place of the refused one."""
        self.gap = min(self.gap, gap)
        if token == self.refused or token in stop_tokens:
            self.done = True
        else:
            self.prefix = [*self.prefix, token]


def _checked_span(found: tuple[int, int] | None, text: str) -> tuple[int, int]:
    """Return the span of the first mistake, cut at the end of the text; where there is none, an empty one there.

    Raises:
        TypeError, ValueError: it is no pair of whole numbers in order.
    """
    if found is None:
        return len(text), len(text)
    start, end = map(operator.index, found)
    if not 0 <= start <= end:  # an empty one marks no token: something is missing there
        raise ValueError(f"expected the span (start, end) of a mistake with 0 <= start <= end, or None, got {found!r}")
    return min(start, len(text)), min(end, len(text))


def _new_piece(offsets: list[tuple[int, int]], n_before: int, text: str) -> tuple[tuple[int, int], ...] | None:
    """Return the span of the characters after the first `n_before` tokens; None where that is the whole text."""
    if not n_before:
        return None
    # tokens of single bytes share a character: none that began before this piece is labelled again
    first = max(offsets[n_before][0], offsets[n_before - 1][1])
    return ((first, len(text)),) if first < len(text) else ()


def _record(answers: list[_Answer]) -> dict:
    """Return the record of a task from its answers."""
    refusals = [answer.refusal for answer in answers if answer.refusal is not None]
    if refusals:
        return refusals[0]
    rows = [row.to_dict() for answer in answers for row in answer.rows]
    return {"rows": rows, "counts": sum((answer.counts for answer in answers), Counter())}
