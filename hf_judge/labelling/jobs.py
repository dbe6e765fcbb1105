"""A labelling job: tasks in, rows of labelled responses out, shared over processes, resumable after a kill.

Knows nothing about models, nor how rows come about.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hf_judge.files.durable import Journal, check_writable
from hf_judge.files.jsonl import listed
from hf_judge.labelling.prompts import prompt_of
from hf_judge.labelling.responses import LabelledResponse, row_from_dict, write_jsonl
from hf_judge.upstream.devices import input_device

PATIENCE = timedelta(days=30)  # for processes that finish early; torch's own default is 10 or 30 minutes
NEAR_TIE = 1.0  # of what rounding may move, see `hf_judge.labelling.greedy.closeness`: another batch size may choose


@dataclass
class MiningReport:
    """What mining found."""

    n_tasks: int = 0
    n_rows: int = 0
    counts: Counter = field(default_factory=Counter)  # kept and undone swaps, skipped tasks with their reasons
    refused: list[tuple[str, str]] = field(default_factory=list)  # name of the task, and why nothing could be done

    def __str__(self) -> str:
        details = ", ".join(f"{name}: {n}" for name, n in sorted(self.counts.items()))
        text = f"{self.n_rows} rows from {self.n_tasks} prompts ({details})"
        if self.refused:
            text += f"\n{len(self.refused)} of {self.n_tasks} prompts refused:"
        return "\n".join([text, *listed(self.refused)])


def processes(model: PreTrainedModel | None = None) -> PartialState:
    """The processes that share a job's work: those of `accelerate launch` or `torchrun`, or this one alone.

    Args:
        model: does the work, in every process on its own; None: the accelerator does, if there is one.

    Raises:
        ValueError: the model is split over the processes, which then cannot work apart.
    """
    if model is not None and (model.tp_size or 1) > 1:
        raise ValueError(
            "this job gives every process work of its own, but the target is tensor parallel, one target in all of "
            'them: start one process and spread the target over its devices with device_map="auto"'
        )
    # accelerate must be told that processes on CPUs belong together
    on_cpu = not torch.cuda.is_available() if model is None else input_device(model).type == "cpu"
    return PartialState(cpu=on_cpu, timeout=PATIENCE)


class RefusedTask(ValueError):
    """A task that cannot be done, while others can: its prompt, or what a checker says of an answer."""


# what a user's function may raise about one task that is not as the others are
TASK_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def run_job(
    work: Callable,
    tasks: list[dict],
    output: str | os.PathLike,
    settings: dict,
    model: PreTrainedModel,
    *,
    names: Sequence[str] | None = None,
    strict: bool = False,
) -> MiningReport:
    """Work off this process's share of the tasks, and collect the rows of all processes in the order of the tasks.

    Args:
        work: takes the (key, task) pairs to do and yields (key, {"rows": ..., "counts": ...}) as they are finished; a
            record with "refused", a reason, is of a task that could not be done.
        tasks: all tasks of the job.
        output: JSONL of the rows; finished tasks are kept in `<output>.journal`.
        settings: that the rows depend on.
        model: that does the work.
        names: of the tasks in reports, as "prompts.jsonl, line 3"; None: "task 3".
        strict: stop at the first task that is refused.

    Returns:
        Counts over all tasks.

    Raises:
        RefusedTask: all tasks were refused, or, with `strict`, one.
    """
    check_writable(output)
    keys = _keys(tasks)
    names = [f"task {number}" for number in range(1, len(tasks) + 1)] if names is None else names
    named = dict(zip(keys, names, strict=True))
    state = processes(model)
    directory = Path(f"{os.fspath(output)}.journal")
    with Journal(directory, settings, process_index=state.process_index) as journal:
        finished = journal.finished()
        mine = [
            pair
            for i, pair in enumerate(zip(keys, tasks, strict=True))
            if i % state.num_processes == state.process_index
        ]
        # a refusal is cheap to repeat, and the reason may be gone
        todo = [(key, task) for key, task in mine if "refused" in finished.get(key, {"refused": ""})]
        bar = tqdm(
            total=len(mine),
            initial=len(mine) - len(todo),
            desc="Mining",
            unit="prompt",
            disable=not state.is_main_process,
        )
        with bar:
            for key, value in work(todo):
                if strict and "refused" in value:
                    raise RefusedTask(f"{named[key]}: {value['refused']}")
                journal.append(key, value)
                bar.update()
        state.wait_for_everyone()
        finished = journal.finished()
    report = MiningReport(n_tasks=len(tasks))
    rows = []
    for key in keys:
        report.counts.update(finished[key]["counts"])
        if "refused" in finished[key]:
            report.refused.append((named[key], finished[key]["refused"]))
        rows += [row_from_dict(values) for values in finished[key]["rows"]]
    report.n_rows = len(rows)
    if tasks and len(report.refused) == len(tasks):
        raise RefusedTask(f"all {len(tasks)} prompts were refused; {': '.join(report.refused[0])}")
    if state.is_main_process:
        write_jsonl(rows, output)
    state.wait_for_everyone()
    return report


def _keys(tasks: list[dict]) -> list[str]:
    """A name for every task that stays the same when others are added; equal tasks are numbered."""
    seen, keys = Counter(), []
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict) or not task.keys() & {"prompt", "messages"}:
            raise ValueError(f"task {number}: expected a dict with 'prompt', got {task!r:.80}")
        digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()[:16]
        keys.append(f"{digest}#{seen[digest]}")
        seen[digest] += 1
    return keys


def make_row(task: dict, text: str, ids: list[int], source: str, **labels) -> LabelledResponse:
    tie = True if labels.pop("near_tie") else None
    task_id = None if task.get("task_id") is None else str(task["task_id"])
    asked = prompt_of(task)
    labels["chat_template_kwargs"] = asked.arguments
    return LabelledResponse(
        asked.content, text, source=source, task_id=task_id, response_ids=tuple(ids), near_tie=tie, **labels
    )


def refusal(error: Exception) -> dict:
    """What is recorded of a task that could not be done."""
    return {"rows": [], "counts": {}, "refused": str(error) or type(error).__name__}


def decode_exactly(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
