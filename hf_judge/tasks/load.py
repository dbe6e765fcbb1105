"""Load a task by name, `NAME[@REVISION][:split][:n]`, with `datasets` from the Hub, or a task of a user's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from hf_judge.checking.correctness import make_checker
from hf_judge.tasks.own import is_own, load_own
from hf_judge.tasks.table import TASKS, TaskSpec


@dataclass(frozen=True)
class NamedTask:
    """Holds the rows of a task and how their answers are read."""

    name: str
    """For the record of a run: source, split and revision."""
    rows: list[dict]
    """Objects with `prompt` and what the checker compares with."""
    checker: Callable[[str, dict], object] | None
    """None: the task has no right answers and is for speed alone."""
    names: list[str]
    """Where each row stands, for reports: "gsm8k, test 3"."""


@dataclass(frozen=True)
class TaskName:
    """Holds the parts of `NAME[@REVISION][:split][:n]`."""

    name: str
    revision: str | None = None
    split: str | None = None
    n: int = 0
    """Number of rows; 0: all."""


def is_named(text: str) -> bool:
    """Tell whether a text names a task of the table or a file of a user's own task, not a file of prompts."""
    return not os.path.exists(text) and text.partition(":")[0].partition("@")[0] in TASKS or is_own(text)


def parse_name(text: str) -> TaskName:
    """Take `NAME[@REVISION][:split][:n]` apart.

    Raises:
        ValueError: there is no such task, or `n` is no number above 0.
    """
    head, *rest = text.split(":")
    name, _, revision = head.partition("@")
    if name not in TASKS:
        raise ValueError(f"no task {name!r}: known are {', '.join(TASKS)}, or a file (`hf-judge tasks` lists them)")
    n = 0
    if rest and rest[-1].isdecimal():
        n = int(rest.pop())
        if n < 1:
            raise ValueError(f"the number of problems must be at least 1, got '{text}'")
    if len(rest) > 1:
        raise ValueError(f"expected NAME[@REVISION][:split][:n], got '{text}'")
    return TaskName(name, revision or None, rest[0] if rest and rest[0] else None, n)


def load_named(text: str, n: int = 0, *, allow_code_execution: bool = False) -> NamedTask:
    """Load a task.

    Args:
        text: `NAME[@REVISION][:split][:n]`, or the path of a user's own task, see [`load_own`].
        n: number of rows where the text names none; 0: all.
        allow_code_execution: consent to run what a model wrote, which unit tests need.

    Raises:
        ValueError: there is no such task or split, or the dataset has other columns than the task is made of.
        ImportError: the `datasets` package, or the library of the checker, is missing.
        OSError: the Hub or the file cannot be reached.
    """
    if is_own(text):
        found, checker = load_own(text), None
        checker = make_checker(found.checker, allow_code_execution=allow_code_execution)
        rows = found.rows[: n or None]
        return NamedTask(f"{os.path.basename(text)}, checker {found.checker}", rows, checker, found.names[: len(rows)])
    asked = parse_name(text)
    spec = TASKS[asked.name]
    checker = None if spec.checker is None else make_checker(spec.checker, allow_code_execution=allow_code_execution)
    entries, split, revision = _entries(spec, asked)
    rows, names = [], []
    for number, entry in enumerate(entries):
        if len(rows) == (asked.n or n or -1):
            break
        rows.append(_row(spec, entry, f"{asked.name}, {split} {number}") | {"task_id": f"{asked.name}/{number}"})
        names.append(f"{asked.name}, {split} {number}")
    pinned = f" at {revision}" if revision else ""
    return NamedTask(f"{asked.name}:{split} of {spec.source}{pinned}", rows, checker, names)


def checker_of_named(text: str, *, allow_code_execution: bool = False) -> Callable[[str, dict], object]:
    """Make the checker of a task, see [`load_named`].

    Raises:
        ValueError: the task has no right answers, or the consent to run code is missing.
    """
    name = load_own(text).checker if is_own(text) else TASKS[parse_name(text).name].checker
    if name is None:
        raise ValueError(f"the task {text} has no right answers, it is for speed alone: use it with `hf-judge bench`")
    return make_checker(name, allow_code_execution=allow_code_execution)


def _entries(spec: TaskSpec, asked: TaskName) -> tuple[list[dict], str, str | None]:
    """Return the entries asked for, the name of their part, and the commit that they come from, if it is known."""
    datasets, kinds = _datasets(), dict(spec.kinds)
    split = spec.split if asked.split is None or asked.split in kinds else asked.split
    is_file = spec.dataset.startswith(("http://", "https://")) or os.path.exists(spec.dataset)
    revision = None if is_file else _commit(spec.dataset, asked.revision)
    try:
        if is_file or spec.data_files is not None:
            file = spec.dataset if is_file else f"hf://datasets/{spec.dataset}@{revision}/{spec.data_files}"
            dataset = datasets.load_dataset("json", data_files={spec.split: file}, split=split)
        else:
            dataset = datasets.load_dataset(spec.dataset, spec.config, split=split, revision=revision)
    except ValueError as error:
        raise ValueError(f"{spec.source} cannot be loaded: {' '.join(str(error).split()):.300}") from None
    missing = [name for name in spec.columns if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{spec.source} has other columns than the task {asked.name} is made of: expected {list(spec.columns)}, "
            f"got {dataset.column_names}; name an older commit with {asked.name}@COMMIT"
        )
    if asked.split not in kinds:
        return dataset, split, revision
    wanted = kinds[asked.split].split()
    return [entry for entry in dataset if entry["category"] in wanted], asked.split, revision


def _commit(dataset: str, revision: str | None) -> str:
    """Return the commit that a revision stands for, so that a run can be repeated on the same entries."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset, revision=revision).sha
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(
            f"the dataset {dataset} cannot be read from the Hub (for a gated one: `hf auth login`, and accept its "
            f"terms on its page): {reason:.200}"
        ) from None


def _row(spec: TaskSpec, entry: dict, where: str) -> dict:
    try:
        return spec.make(entry)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where} of {spec.source} is not of the layout that is known here: {error!r:.200}") from None


def _datasets():
    try:
        import datasets
    except ImportError:
        raise ImportError("tasks by name need the `datasets` package: pip install 'hf-judge[data]'") from None
    return datasets
