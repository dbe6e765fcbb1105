"""Run a labelling job: tasks in, labelled responses out, shared over processes, resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from hf_judge.files.durable import Journal, check_writable
from hf_judge.files.jsonl import listed
from hf_judge.head.fingerprint import fingerprint_of
from hf_judge.head.hub import public_name
from hf_judge.labelling.prompts import prompt_of
from hf_judge.labelling.responses import LabelledResponse, row_from_dict, write_jsonl
from hf_judge.upstream.forward import input_device

PATIENCE = timedelta(days=30)  # for processes that finish early; torch's own default is 10 or 30 minutes
# Up to this closeness, see `hf_judge.labelling.greedy.closeness`, another batch size may choose another token.
NEAR_TIE = 1.0
# What a user's function may raise about a task that differs from the others.
TASK_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, SystemExit, TypeError, ValueError)
# Yields (key, record) for (key, task) pairs: {"rows": ..., "counts": ...}, or a `refusal`.
Work = Callable[[list[tuple[str, dict]]], Iterator[tuple[str, dict]]]


@dataclass
class MiningReport:
    """Counts what mining found."""

    n_tasks: int = 0
    n_rows: int = 0
    counts: Counter = field(default_factory=Counter)  # kept and undone swaps, skipped tasks with their reasons
    refused: list[tuple[str, str]] = field(default_factory=list)  # name of the task, and why it was refused

    def __str__(self) -> str:
        details = ", ".join(f"{name}: {n}" for name, n in sorted(self.counts.items()))
        text = f"{self.n_rows} rows from {self.n_tasks} prompts ({details})"
        if self.refused:
            text += f"\n{len(self.refused)} of {self.n_tasks} prompts refused:"
        return "\n".join([text, *listed(self.refused)])


class RefusedTask(ValueError):
    """Says that a task cannot be done, while others can: because of its prompt, or of what a checker finds."""


def processes(model: PreTrainedModel | None = None) -> PartialState:
    """Return the processes that share a job: those of `accelerate launch` or `torchrun`, or this one alone.

    Args:
        model: the model that works in every process on its own; None: the accelerator is used if there is one.

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


def run_job(
    work: Work,
    tasks: list[dict],
    output: str | os.PathLike,
    settings: dict,
    model: PreTrainedModel,
    *,
    names: Sequence[str] | None = None,
    strict: bool = False,
    draft: PreTrainedModel | None = None,
) -> MiningReport:
    """Do this process's share of the tasks, and write the examples of all processes in the order of the tasks.

    Args:
        work: does tasks, see [`Work`].
        tasks: all tasks of the job.
        output: JSONL file of the examples; finished tasks are kept in `<output>.journal`.
        settings: what the examples depend on.
        model: the model that does the work.
        names: names of the tasks in reports, as "prompts.jsonl, line 3"; None: "task 3".
        strict: stop at the first task that is refused.
        draft: the model whose tokens are labelled, which every example then names.

    Returns:
        Counts over all tasks.

    Raises:
        RefusedTask: all tasks were refused, or, with `strict`, one.
    """
    check_writable(output)
    keys, state = _keys(tasks), processes(model)
    names = [f"task {number}" for number in range(1, len(tasks) + 1)] if names is None else names
    named = dict(zip(keys, names, strict=True))
    mine = list(zip(keys, tasks, strict=True))[state.process_index :: state.num_processes]
    with Journal(f"{os.fspath(output)}.journal", settings, process_index=state.process_index) as journal:
        for key, record in _unfinished(work, mine, journal, show_progress=state.is_main_process):
            if strict and "refused" in record:
                raise RefusedTask(f"{named[key]}: {record['refused']}")
            journal.append(key, record)
        state.wait_for_everyone()
        finished = journal.finished()
    report, rows = _collect(named, finished)
    if tasks and len(report.refused) == len(tasks):
        raise RefusedTask(f"all {len(tasks)} prompts were refused; {': '.join(report.refused[0])}")
    if state.is_main_process:
        writer = None if draft is None else draft_of(draft)
        write_jsonl((replace(row, draft=writer) for row in rows), output)
    state.wait_for_everyone()
    return report


def _unfinished(
    work: Work, mine: list[tuple[str, dict]], journal: Journal, *, show_progress: bool
) -> Iterator[tuple[str, dict]]:
    """Do the tasks that the journal lacks, with a progress bar, and yield their records."""
    finished = journal.finished()
    # a refusal is cheap to repeat, and its reason may be gone
    todo = [(key, task) for key, task in mine if "refused" in finished.get(key, {"refused": ""})]
    n_done = len(mine) - len(todo)
    with tqdm(total=len(mine), initial=n_done, desc="Mining", unit="prompt", disable=not show_progress) as bar:
        n_mistakes = sum(_count_mistakes(record) for record in finished.values())
        bar.set_postfix(mistakes=n_mistakes, refresh=False)
        for key, record in work(todo):
            yield key, record
            n_mistakes += _count_mistakes(record)
            bar.set_postfix(mistakes=n_mistakes, refresh=False)
            bar.update()


def _count_mistakes(record: dict) -> int:
    return sum(len(row.get("mistakes", ())) for row in record["rows"])


def _collect(named: dict[str, str], finished: dict[str, dict]) -> tuple[MiningReport, list[LabelledResponse]]:
    """Return the counts and the examples of finished tasks, in the order of their names by key."""
    report, rows = MiningReport(n_tasks=len(named)), []
    for key, name in named.items():
        record = finished[key]
        report.counts.update(record["counts"])
        if "refused" in record:
            report.refused.append((name, record["refused"]))
        rows += [row_from_dict(values) for values in record["rows"]]
    report.n_rows = len(rows)
    return report, rows


def _keys(tasks: list[dict]) -> list[str]:
    """Name every task so that its name stays when other tasks are added; equal tasks are numbered."""
    seen, keys = Counter(), []
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict) or not task.keys() & {"prompt", "messages"}:
            raise ValueError(f"task {number}: expected a dict with 'prompt', got {task!r:.80}")
        digest = hashlib.sha256(json.dumps(task, sort_keys=True, default=str).encode()).hexdigest()[:16]
        keys.append(f"{digest}#{seen[digest]}")
        seen[digest] += 1
    return keys


def make_row(task: dict, text: str, ids: list[int], source: str, *, near_tie: bool, **labels) -> LabelledResponse:
    """Make the example of a task and a response, which `ids` are the tokens of."""
    asked, task_id = prompt_of(task), task.get("task_id")
    return LabelledResponse(
        asked.content,
        text,
        source=source,
        task_id=None if task_id is None else str(task_id),
        response_ids=tuple(ids),
        near_tie=True if near_tie else None,
        chat_template_kwargs=asked.arguments,
        **labels,
    )


def draft_of(model: PreTrainedModel) -> dict:
    """Describe a draft as [`LabelledResponse`] does.

    Of a directory only the last part is kept: where a model lies on a disk is nothing about its labels.
    """
    name = public_name(model.config.name_or_path or type(model).__name__)
    return {"name": name, "fingerprint": fingerprint_of(model)}


def refusal(error: BaseException) -> dict:
    """Return the record of a task that could not be done."""
    why = f"the function called sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
    return {"rows": [], "counts": {}, "refused": why or type(error).__name__}


def name_of(function: Callable) -> str:
    """Name a checker or another function of the user in a job's settings."""
    return getattr(function, "name", getattr(function, "__qualname__", type(function).__name__))


def decode_exactly(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode ids with special tokens and all blanks."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
