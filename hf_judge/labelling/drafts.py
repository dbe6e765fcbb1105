"""The draft's own answers, labelled by a checker that finds the first mistake, and repaired by the target.

A sampled answer is often wrong early, and what follows a mistake has no label. So the mistake is refused, as a perfect
judge would refuse it, the target writes one token in its place, and the draft goes on from there: the next piece is
labelled too. Drafts are then met where decoding meets them, in texts of both models. Knows nothing about heads.
"""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.head.compatibility import check_pair, n_shared_tokens
from hf_judge.labelling.greedy import GumbelNoise, greedy, stop_tokens_of
from hf_judge.labelling.jobs import NEAR_TIE, TASK_ERRORS, MiningReport, decode_exactly, make_row, refusal, run_job
from hf_judge.labelling.prompts import encode_prompt, prompt_of
from hf_judge.labelling.tokens import UnlabelledRow, decoded_offsets

Locate = Callable[[str, dict], tuple[int, int] | None]


def label_drafts(
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[dict],
    locate: Locate,
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
        draft: writes the answers.
        tokenizer: of the draft.
        tasks: dicts with `prompt` (text or chat messages), optionally `task_id`, and whatever `locate` reads.
        locate: `(response, task) -> (start, end)` of the first mistake in characters, or None.
        output: JSONL of [`LabelledResponse`]; finished prompts are kept in `<output>.journal`, and a rerun goes on.
        target: replaces mistaken tokens by its own.
        num_repairs: mistakes per answer to replace before giving up.
        num_samples: answers per prompt: the first is greedy, the others are sampled.
        temperature: of the sampled ones.
        max_new_tokens: of an answer.
        batch_size: answers at once. Rows do not depend on it, but for those marked `near_tie`.
        seed: of the samples.
        names: of the tasks in the report, as "prompts.jsonl, line 3"; None: "task 3".
        strict: stop at a task that the models or `locate` refuse, instead of listing it in the report.
        target_tokenizer: of the target, to compare; None: the draft's.

    Returns:
        Counts over all tasks, and the refused ones.

    Raises:
        ValueError: repairs without a target, or the tokenizers disagree.
    """
    if num_repairs and target is None:
        raise ValueError(f"num_repairs={num_repairs} needs a target, whose tokens replace the mistakes")
    if target is not None and target_tokenizer is not None:
        check_pair(target_tokenizer, tokenizer)
    n_tokens = n_shared_tokens(tokenizer, *(model for model in (draft, target) if model is not None))
    settings = {
        "source": "draft",
        "target": target.config.name_or_path if num_repairs else None,
        "draft": draft.config.name_or_path,
        "locate": getattr(locate, "name", getattr(locate, "__qualname__", type(locate).__name__)),
        "num_repairs": num_repairs,
        "num_samples": num_samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }

    def work(todo: list[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        n_prompts = max(1, batch_size // num_samples)
        for start in range(0, len(todo), n_prompts):
            batch, answers = [], []
            for key, task in todo[start : start + n_prompts]:
                seeds = [f"{seed}/{key}/{n}" if n else None for n in range(num_samples)]
                try:
                    answers += [_Answer(task, tokenizer, locate, seed) for seed in seeds]
                except TASK_ERRORS as error:
                    yield key, refusal(error)
                else:
                    batch.append((key, task))
            for turn in range(num_repairs + 1):
                _continue(draft, tokenizer, answers, turn, temperature, max_new_tokens, n_tokens)
                if turn < num_repairs:
                    _repair(target, tokenizer, answers, max_new_tokens, n_tokens)
            for i, (key, _) in enumerate(batch):
                mine = answers[i * num_samples : (i + 1) * num_samples]
                refusals = [answer.refusal for answer in mine if answer.refusal is not None]
                if refusals:
                    yield key, refusals[0]
                    continue
                counts = sum((answer.counts for answer in mine), Counter())
                yield key, {"rows": [row.to_dict() for answer in mine for row in answer.rows], "counts": counts}

    return run_job(work, list(tasks), output, settings, draft, names=names, strict=strict)


class _Answer:
    """One answer, piece by piece."""

    def __init__(self, task: dict, tokenizer, locate: Locate, seed: str | None):
        self.task, self.seed = task, seed
        self.prompt_ids = encode_prompt(tokenizer, prompt_of(task))[1]
        self.prefix = []  # of the response: all that is right so far
        self.refused = None  # the token that the target is to replace
        self.refusal = None  # what `locate` could not do with this task
        self.gap = float("inf")  # smallest gap between the two best logits that any token was chosen by
        self.done = False
        self.rows, self.counts = [], Counter()
        self._tokenizer, self._locate = tokenizer, locate

    def receive(self, ids: list[int], gap: float, stop: set[int]) -> None:
        """Label the draft's continuation of the prefix."""
        self.gap = min(self.gap, gap)
        n_before, ids = len(self.prefix), self.prefix + ids
        while ids and ids[-1] in stop:
            ids = ids[:-1]
        text = decode_exactly(self._tokenizer, ids)
        try:
            offsets = decoded_offsets(self._tokenizer, ids, text)
        except UnlabelledRow:
            self.done = True
            self.counts["skipped: tokens without text of their own"] += 1
            return
        try:
            start, end = self._locate(text, self.task) or (len(text), len(text))
            start, end = operator.index(start), min(operator.index(end), len(text))
        except TASK_ERRORS as error:
            self.done, self.refusal = True, refusal(error)
            return
        wrong = [i for i, (a, b) in enumerate(offsets) if start < end and a < end and b > start]
        at = wrong[0] if wrong else len(ids)
        self.done = at < n_before or len(ids) == n_before  # the target's own token is wrong, or nothing was added
        if self.done:
            return
        self.counts["answers or pieces with a mistake" if at < len(ids) else "answers or pieces without"] += 1
        scope = None
        if n_before:
            # tokens of single bytes share a character: none that began before this piece is labelled again
            first = max(offsets[n_before][0], offsets[n_before - 1][1])
            scope = ((first, len(text)),) if first < len(text) else ()
        self.rows.append(
            make_row(
                self.task,
                text,
                ids,
                "draft" if n_before == 0 else "repaired",
                mistakes=((start, end),) if start < end else (),
                scope=scope,
                near_tie=self.gap <= NEAR_TIE,
            )
        )
        self.done = at == len(ids)
        if not self.done:
            self.prefix, self.refused = ids[:at], ids[at]

    def replace(self, token: int, gap: float, stop: set[int]) -> None:
        """Take the target's token in place of the refused one."""
        self.gap = min(self.gap, gap)
        if token == self.refused or token in stop:
            self.done = True
        else:
            self.prefix = [*self.prefix, token]


def _continue(
    draft, tokenizer, answers: list[_Answer], turn: int, temperature: float, max_new_tokens: int, n_tokens: int
) -> None:
    todo = [a for a in answers if not a.done and len(a.prefix) < max_new_tokens]
    if not todo:
        return
    noise = GumbelNoise([None if a.seed is None else f"{a.seed}/{turn}" for a in todo], temperature)
    limits = [max_new_tokens - len(a.prefix) for a in todo]
    results = greedy(draft, tokenizer, [a.prompt_ids + a.prefix for a in todo], limits, noise=noise, n_tokens=n_tokens)
    for answer, (ids, gap) in zip(todo, results, strict=True):
        answer.receive(ids, gap, stop_tokens_of(draft))


def _repair(target, tokenizer, answers: list[_Answer], max_new_tokens: int, n_tokens: int) -> None:
    todo = [a for a in answers if not a.done and len(a.prefix) < max_new_tokens]
    if not todo:
        return
    results = greedy(target, tokenizer, [a.prompt_ids + a.prefix for a in todo], [1] * len(todo), n_tokens=n_tokens)
    for answer, (ids, gap) in zip(todo, results, strict=True):
        answer.replace(ids[0], gap, stop_tokens_of(target))
