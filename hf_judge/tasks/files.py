"""Read the problems of a JSONL file, each line with its reference checked before any work."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import islice

from hf_judge.checking.correctness import needed_key, reference
from hf_judge.files.jsonl import read_jsonl_lines, type_name
from hf_judge.labelling.prompts import prompt_of
from hf_judge.tasks.problems import Problems, Task, example_of


def file_task(path: str, checker: Callable, checker_name: str, n: int = 0) -> Task:
    """Load the first `n` examples of a JSONL file.

    Args:
        path: file whose lines have a `prompt` (see [`hf_judge.labelling.prompts.prompt_of`]) and an `answer` (for unit
            tests: `tests`).
        checker: see [`hf_judge.checking.correctness.is_right`].
        checker_name: name of the checker, for the record of a run.
        n: number of examples; 0: all.

    Raises:
        ValueError: a line is broken, or there are none.
    """
    examples = [
        example_of(str(number), row, checker, f"{path}, line {number}")
        for number, row in read_prompts(path, checker, n)
    ]
    with open(path, "rb") as file:  # a run that is resumed must have the same work
        content = hashlib.sha256(file.read()).hexdigest()[:12]
    return Task(f"{os.path.basename(path)} (sha256 {content}), checker {checker_name}", examples, path)


def file_problems(path: str, checker: Callable, checker_name: str, n: int = 0) -> Problems:
    """Read the first `n` problems of a JSONL file; 0: all.

    Raises:
        ValueError: a line is broken, or there are none.
    """
    lines = read_prompts(path, checker, n)
    names = [f"{path}, line {number}" for number, _ in lines]
    return Problems(f"{os.path.basename(path)}, checker {checker_name}", [row for _, row in lines], checker, names)


def read_prompts(path: str, checker: Callable | None = None, n: int = 0) -> list[tuple[int, dict]]:
    """Read the first `n` lines of a JSONL file of prompts.

    Args:
        path: the file.
        checker: checker whose reference every line must hold beside its prompt; None: only prompts are needed.
        n: number of lines; 0: all.

    Returns:
        The number of each line, and its JSON object.

    Raises:
        ValueError: a line is not a JSON object with a prompt, its reference cannot be read, or there are no lines.
    """
    wanted = None if checker is None else needed_key(checker)
    holds = "a JSON object with 'prompt'" + (f" and '{wanted}'" if wanted else "")

    def checked(row: dict) -> dict:
        if not row.keys() & {"prompt", "messages"} or (wanted and row.get(wanted) is None):
            raise ValueError(f"expected {holds}, got the keys {sorted(row)!s:.120}")
        prompt_of(row)
        if wanted == "answer":
            reference(checker, row)  # an unreadable reference is reported with its line, before any work
        elif wanted is not None and not isinstance(row[wanted], str):
            raise TypeError(f"{wanted} must be text, got {type_name(row[wanted])}: {row[wanted]!r:.60}")
        return row

    lines = list(islice(read_jsonl_lines(path, checked, holds=holds), n or None))
    if not lines:
        raise ValueError(f"{path} holds no prompts: expected JSONL, each line {holds}")
    return lines
