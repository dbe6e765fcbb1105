"""Labels without people, from the models themselves and a way to compare answers.

Swaps (AutoJudge, arXiv 2504.20039, section 3): where the draft would have written another token than the target, write
it, let the target finish, and compare the final answers. A swap that does not change the answer is acceptable and
stays; one that does is a mistake and is undone; go on to the right. Drafts: the draft's own answers, where a checker
can find the first mistake. Knows nothing about heads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hf_judge.checkers import Checker
from hf_judge.data import LabelledResponse, row_from_dict, write_jsonl
from hf_judge.greedy import GumbelNoise, greedy, greedy_choices, stop_tokens_of
from hf_judge.journal import Journal
from hf_judge.labelling import UnlabelledRow, decoded_offsets, encode_prompt

NEAR_TIE = 1e-4  # logits this close may change places with the batch size

Locate = Callable[[str, dict], tuple[int, int] | None]


@dataclass
class MiningReport:
    """What mining found."""

    n_tasks: int = 0
    n_rows: int = 0
    counts: Counter = field(default_factory=Counter)  # kept and undone swaps, skipped tasks with their reasons

    def __str__(self) -> str:
        details = ", ".join(f"{name}: {n}" for name, n in sorted(self.counts.items()))
        return f"{self.n_rows} rows from {self.n_tasks} prompts ({details})"


def mine_swaps(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[dict],
    checker: Checker,
    output: str | os.PathLike,
    *,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    label_matched: bool = False,
) -> MiningReport:
    """Label swapped tokens by whether they change the target's final answer.

    Args:
        target, draft: greedy answers of both are used; they share the tokenizer.
        tokenizer: of both.
        tasks: dicts with `prompt` (text or chat messages), optionally `task_id`, and whatever the checker reads.
        checker: `(response, task) -> answer`; answers are compared with the one of the target's own response.
        output: JSONL of [`LabelledResponse`]; finished prompts are kept in `<output>.journal`, and a rerun goes on.
        max_new_tokens: of a response.
        batch_size: prompts in work at once. Rows do not depend on it, but for prompts marked `near_tie`.
        label_matched: also label the tokens of the kept response that both models chose as acceptable.

    Returns:
        Counts over all tasks.
    """
    settings = {
        "source": "swap",
        "target": target.config.name_or_path,
        "draft": draft.config.name_or_path,
        "checker": getattr(checker, "name", getattr(checker, "__qualname__", type(checker).__name__)),
        "max_new_tokens": max_new_tokens,
        "label_matched": label_matched,
    }

    def work(todo: list[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        waiting = [_SwapWork(key, task, tokenizer, checker, label_matched) for key, task in reversed(todo)]
        active = []
        while waiting or active:
            while waiting and len(active) < batch_size:
                active.append(waiting.pop())
            prefixes = [work.prompt_ids + work.prefix for work in active]
            limits = [max_new_tokens - len(work.prefix) for work in active]
            answers = greedy(target, tokenizer, prefixes, limits)
            changed = [work for work, (ids, gap) in zip(active, answers, strict=True) if work.receive(ids, gap)]
            choices = greedy_choices(draft, [(work.prompt_ids, work.response) for work in changed])
            for work, (tokens, gaps) in zip(changed, choices, strict=True):
                work.look_for_swaps(tokens, gaps, stop_tokens=stop_tokens_of(target))
            for work in active:
                work.next_swap(max_new_tokens)
            for work in active:
                if work.done:
                    yield work.key, work.record()
            active = [work for work in active if not work.done]

    return _run(work, list(tasks), output, settings, target.device)


def label_drafts(
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[dict],
    locate: Locate,
    output: str | os.PathLike,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    seed: int = 0,
) -> MiningReport:
    """Label the draft's own answers with a checker that finds the first mistake.

    Args:
        draft: writes the answers.
        tokenizer: of the draft and the target.
        tasks: see [`mine_swaps`].
        locate: `(response, task) -> (start, end)` of the first mistake in characters, or None.
        output: see [`mine_swaps`].
        num_samples: answers per prompt: the first is greedy, the others are sampled.
        temperature: of the sampled ones.
        max_new_tokens, batch_size: see [`mine_swaps`]; sampling does not depend on the batch either.
        seed: of the samples.

    Returns:
        Counts over all tasks.
    """
    settings = {
        "source": "draft",
        "draft": draft.config.name_or_path,
        "locate": getattr(locate, "name", getattr(locate, "__qualname__", type(locate).__name__)),
        "num_samples": num_samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }

    def work(todo: list[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        n_prompts = max(1, batch_size // num_samples)
        for start in range(0, len(todo), n_prompts):
            batch = todo[start : start + n_prompts]
            prompts = [encode_prompt(tokenizer, task["prompt"])[1] for _, task in batch for _ in range(num_samples)]
            seeds = [f"{seed}/{key}/{n}" if n else None for key, _ in batch for n in range(num_samples)]
            noise = GumbelNoise(seeds, temperature)
            answers = greedy(draft, tokenizer, prompts, [max_new_tokens] * len(prompts), noise=noise)
            for i, (key, task) in enumerate(batch):
                rows, counts = [], Counter()
                for ids, gap in answers[i * num_samples : (i + 1) * num_samples]:
                    ids = _without_stop(ids, stop_tokens_of(draft))
                    text = _decode(tokenizer, ids)
                    span = locate(text, task)
                    start_, end = span or (0, 0)
                    end = min(end, len(text))
                    mistakes = ((start_, end),) if start_ < end else ()
                    counts["answers with a mistake" if mistakes else "answers without"] += 1
                    rows.append(_row(task, text, ids, "draft", mistakes=mistakes, near_tie=gap <= NEAR_TIE))
                yield key, {"rows": [row.to_dict() for row in rows if row.response], "counts": counts}

    return _run(work, list(tasks), output, settings, draft.device)


class _SwapWork:
    """One prompt on its way through the swaps."""

    def __init__(self, key: str, task: dict, tokenizer, checker: Checker, label_matched: bool):
        self.key, self.task = key, task
        self.prompt_ids = encode_prompt(tokenizer, task["prompt"])[1]
        self.prefix = []  # of the response: what the target is to continue
        self.response = None  # ids of the response with all kept swaps
        self.done = False
        self._tokenizer, self._checker, self._label_matched = tokenizer, checker, label_matched
        self._answer = None
        self._swaps = []  # (position, draft's token) still to be tried in `response`, the leftmost last
        self.left = 0  # positions before this one are settled
        self._kept, self._undone = [], []  # positions; whole prefixes that end in the swapped token
        self._gap = float("inf")
        self._counts = Counter()

    def receive(self, ids: list[int], gap: float) -> bool:
        """Take the target's continuation; True when the response is now another one."""
        self._gap = min(self._gap, gap)
        response = self.prefix + ids
        answer = self._checker(self._tokenizer.decode(response, skip_special_tokens=True), self.task)
        if self.response is None:
            self.response, self._answer = response, answer
            if answer is None:
                self.done = True
                self._counts["skipped: no answer in the target's own response"] += 1
            return not self.done
        if answer == self._answer:
            self._kept.append(len(self.prefix) - 1)
            self.response = response
            return True
        self._undone.append(self.prefix)
        return False

    def look_for_swaps(self, tokens: list[int], gaps: list[float], *, stop_tokens: set[int]) -> None:
        """Take the draft's choice at every position of the response."""
        self._gap = min([self._gap, *gaps[self.left :]])
        self._swaps = [
            (i, token)
            for i, token in enumerate(tokens)
            # a stop token is never rescued, so nothing is learned about it
            if i >= self.left and token != self.response[i] and token not in stop_tokens
        ][::-1]

    def next_swap(self, max_new_tokens: int) -> None:
        """Choose the leftmost swap that is left, or be done."""
        if self.done:
            return
        if self._swaps and self._swaps[-1][0] + 1 < max_new_tokens:
            position, token = self._swaps.pop()
            self.prefix, self.left = [*self.response[:position], token], position + 1
        else:
            self.done = True

    def record(self) -> dict:
        """The rows and counts of a finished prompt."""
        rows, tie = [], self._gap <= NEAR_TIE
        if self.response is not None and not self._counts:
            self._counts.update({"swaps kept": len(self._kept), "swaps undone": len(self._undone)})
            # a kept swap may have led the target to its end: nothing after it is settled by a later one
            rows.append(self._labelled(self.response, self._kept, mistaken=False, tie=tie))
            rows += [self._labelled(ids, [len(ids) - 1], mistaken=True, tie=tie) for ids in self._undone]
        if tie:
            self._counts["prompts with a near-tie"] += 1
        return {"rows": [row.to_dict() for row in rows if row is not None], "counts": self._counts}

    def _labelled(self, ids: list[int], positions: list[int], *, mistaken: bool, tie: bool) -> LabelledResponse | None:
        while ids and ids[-1] in self._tokenizer.all_special_ids:
            ids = ids[:-1]
        text = _decode(self._tokenizer, ids)
        try:
            offsets = decoded_offsets(self._tokenizer, ids, text)
        except UnlabelledRow:
            self._counts["skipped: tokens without text of their own"] += 1
            return None
        spans = tuple(offsets[i] for i in positions if i < len(offsets) and _stands_alone(offsets, i))
        if len(spans) < len(positions):  # bytes that only together make a character
            self._counts["skipped: tokens without text of their own"] += len(positions) - len(spans)
        if not spans and (mistaken or not self._label_matched):
            return None
        scope = None if self._label_matched and not mistaken else spans
        return _row(self.task, text, ids, "swap", mistakes=spans if mistaken else (), scope=scope, near_tie=tie)


def _run(
    work: Callable, tasks: list[dict], output: str | os.PathLike, settings: dict, device: torch.device
) -> MiningReport:
    """Work off this process's share of the tasks, and collect the rows of all processes in the order of the tasks."""
    keys = _keys(tasks)
    # accelerate must be told that processes on CPUs belong together
    state = PartialState(cpu=device.type == "cpu")
    directory = Path(f"{os.fspath(output)}.journal")
    with Journal(directory, settings, process_index=state.process_index) as journal:
        finished = journal.finished()
        mine = [
            pair
            for i, pair in enumerate(zip(keys, tasks, strict=True))
            if i % state.num_processes == state.process_index
        ]
        todo = [(key, task) for key, task in mine if key not in finished]
        bar = tqdm(
            total=len(mine),
            initial=len(mine) - len(todo),
            desc="Mining",
            unit="prompt",
            disable=not state.is_main_process,
        )
        with bar:
            for key, value in work(todo):
                journal.append(key, value)
                bar.update()
        state.wait_for_everyone()
        finished = journal.finished()
    report = MiningReport(n_tasks=len(tasks))
    rows = []
    for key in keys:
        report.counts.update(finished[key]["counts"])
        rows += [row_from_dict(values) for values in finished[key]["rows"]]
    report.n_rows = len(rows)
    if state.is_main_process:
        write_jsonl(rows, output)
    state.wait_for_everyone()
    return report


def _keys(tasks: list[dict]) -> list[str]:
    """A name for every task that stays the same when others are added; equal tasks are numbered."""
    seen, keys = Counter(), []
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict) or "prompt" not in task:
            raise ValueError(f"task {number}: expected a dict with 'prompt', got {task!r:.80}")
        digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()[:16]
        keys.append(f"{digest}#{seen[digest]}")
        seen[digest] += 1
    return keys


def _row(task: dict, text: str, ids: list[int], source: str, **labels) -> LabelledResponse:
    tie = True if labels.pop("near_tie") else None
    task_id = None if task.get("task_id") is None else str(task["task_id"])
    return LabelledResponse(
        task["prompt"], text, source=source, task_id=task_id, response_ids=tuple(ids), near_tie=tie, **labels
    )


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _stands_alone(offsets: list[tuple[int, int]], position: int) -> bool:
    """Whether a token has characters, and shares none with its neighbours (tokens of single bytes do)."""
    start, end = offsets[position]
    return start < end and not any(a < end and b > start for a, b in [*offsets[:position], *offsets[position + 1 :]])


def _without_stop(ids: list[int], stop: set[int]) -> list[int]:
    return ids[:-1] if ids and ids[-1] in stop else ids
