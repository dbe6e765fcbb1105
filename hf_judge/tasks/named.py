"""Find a task by name, `NAME[@REVISION][:split][:n]`, and load it with `datasets` from the Hub; or a user's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

from hf_judge.checking.correctness import make_checker
from hf_judge.files.datasets import import_datasets
from hf_judge.tasks.own import OwnTask, is_own, load_own
from hf_judge.tasks.problems import Problems
from hf_judge.tasks.table import TASKS, TaskSpec


@dataclass(frozen=True)
class NamedTask:
    """Holds what is known of a task before its rows are loaded."""

    text: str
    """As the user named it."""
    checker: str | None
    """Name of its checker; None: the task has no right answers and is for speed alone."""
    _load: Callable[[int], tuple[str, list[dict], list[str]]]

    def make_checker(
        self, allow_code_execution: bool = False, *, needs_answers: bool = True
    ) -> Callable[[str, dict], object] | None:
        """Make the task's own checker; None without `needs_answers` where there are no right answers.

        Raises:
            ValueError: there are no right answers, and they are needed; the checker is unknown; or it runs what a model
                wrote, and the consent is missing.
            ImportError: the library of the checker is missing.
        """
        if self.checker is not None:
            return make_checker(self.checker, allow_code_execution=allow_code_execution)
        if needs_answers:
            raise ValueError(
                f"the task {self.text} has no right answers, it is for speed alone: use it with `hf-judge bench`"
            )
        return None

    def problems(self, n: int = 0, checker: Callable[[str, dict], object] | None = None) -> Problems:
        """Load the rows.

        Args:
            n: number of rows where the name holds none; 0: all.
            checker: checker of the problems, which may be another than the task's own.

        Raises:
            ValueError: there is no such split or no row, or the dataset has other columns than the task is made of.
            ImportError: the `datasets` package is missing.
            OSError: the Hub cannot be reached.
        """
        name, rows, names = self._load(n)
        if not rows:
            raise ValueError(f"{name} holds no problems")
        return Problems(name, rows, checker, names)


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


def find_named(text: str) -> NamedTask | None:
    """Find a task by its name, or read a user's own; None: the text names neither, see [`is_named`].

    Args:
        text: `NAME[@REVISION][:split][:n]`, or the path of a user's own task, see [`load_own`].

    Raises:
        ValueError: the name or the file is not of this form.
        FileNotFoundError: there is no such file.
    """
    if not is_named(text):
        return None
    if is_own(text):
        own = load_own(text)
        return NamedTask(text, own.checker, partial(_own_rows, text, own))
    asked = parse_name(text)
    return NamedTask(text, TASKS[asked.name].checker, partial(_public_rows, asked))


def _own_rows(path: str, own: OwnTask, n: int) -> tuple[str, list[dict], list[str]]:
    return f"{os.path.basename(path)}, checker {own.checker}", own.rows[: n or None], own.names[: n or None]


def _public_rows(asked: TaskName, n: int) -> tuple[str, list[dict], list[str]]:
    spec = TASKS[asked.name]
    entries, split, revision = _entries(spec, asked)
    rows, names = [], []
    for number, entry in enumerate(islice(entries, asked.n or n or None)):
        names.append(f"{asked.name}, {split} {number}")
        rows.append(_row(spec, entry, names[-1]) | {"task_id": f"{asked.name}/{number}"})
    pinned = f" at {revision}" if revision else ""
    return f"{asked.name}:{split} of {spec.source}{pinned}", rows, names


def _entries(spec: TaskSpec, asked: TaskName) -> tuple[list[dict], str, str | None]:
    """Return the entries asked for, the name of their part, and the commit that they come from, if it is known."""
    datasets, kinds = import_datasets(), dict(spec.kinds)
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
