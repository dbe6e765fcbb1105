"""Work whose answers can be checked: the embedded world, or a JSONL file with a checker.

Knows nothing about models or rules.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

from hf_judge.files.jsonl import read_jsonl_lines, type_name
from hf_judge.labelling.answers import CHECKERS, is_right, make_checker, needed_key, reference
from hf_judge.labelling.prompts import Prompt, prompt_of
from hf_judge.tiny.world import check_answer, first_mistake, problems

TASKS = ("world",)


@dataclass(frozen=True)
class Example:
    """One prompt and how its answer is checked."""

    name: str  # unique within the task
    prompt: str | list[dict] | Prompt  # text, or chat messages, or either as a row of a file gives it
    is_right: Callable[[str], bool] = field(repr=False)
    first_mistake: Callable[[str], tuple[int, int] | None] | None = field(default=None, repr=False)
    """Span in characters where an answer first goes wrong, for tasks that know; None: the task does not know."""


@dataclass(frozen=True)
class Task:
    """Examples under a name."""

    name: str  # goes into the record of a run: file and checker, or world and seed
    examples: list[Example]
    path: str | None = None  # of the file that the examples come from, whose lines are their names

    def where(self, example: Example) -> str:
        """Where an example stands, for reports."""
        return f"problem {example.name}" if self.path is None else f"{self.path}, line {example.name}"


def load_task(
    name: str,
    n: int,
    *,
    seed: int = 0,
    checker: str | None = None,
    pattern: str | None = None,
    allow_code_execution: bool = False,
) -> Task:
    """The first `n` examples of a task.

    Args:
        name: "world", or the path of a JSONL file whose lines have a `prompt` (text or chat messages; see
            [`hf_judge.labelling.prompts.prompt_of`]) and an `answer` (or `tests`, for unit tests).
        n: how many examples; 0: all of a file.
        seed: which part of the world.
        checker: for a file: one of `hf_judge.labelling.answers.CHECKERS`.
        pattern: of "numeric" and "regex", where the checker does not hold it.
        allow_code_execution: needed by "unit_tests", which runs what a model wrote.

    Raises:
        ValueError: no such task or checker, or a line of the file is broken.
    """
    if n < 0 or (name == "world" and n < 1):
        raise ValueError(f"the number of problems must be at least 1, got {n}")
    if name == "world":
        return Task(f"world, seed {seed}", [_world_example(i, p) for i, p in enumerate(problems(n, seed=seed))])
    if not os.path.exists(name):
        raise ValueError(f"no task {name!r}: known are {', '.join(TASKS)}, or the path of a JSONL file")
    if checker is None:
        raise ValueError(f"a JSONL task needs a checker, one of {', '.join(CHECKERS)}; got none")
    check = make_checker(checker, pattern=pattern, allow_code_execution=allow_code_execution)
    wanted = needed_key(check)
    holds = "a JSON object with 'prompt'" + (f" and '{wanted}'" if wanted else "")
    rows = read_jsonl_lines(name, lambda row: _file_example(row, check, wanted, holds), holds=holds)
    examples = [replace(example, name=str(number)) for number, example in islice(rows, n or None)]
    if not examples:
        raise ValueError(f"{name} holds no examples: expected JSONL, each line {holds}")
    with open(name, "rb") as file:  # a run that goes on must know that the work is the same
        content = hashlib.sha256(file.read()).hexdigest()[:12]
    return Task(
        f"{os.path.basename(name)} (sha256 {content}), checker {checker}{'' if pattern is None else f':{pattern}'}",
        examples,
        name,
    )


def _world_example(number: int, problem) -> Example:
    return Example(
        str(number),
        [{"role": "user", "content": problem.question}],
        lambda text: check_answer(problem, text),
        lambda text: first_mistake(problem, text),
    )


def _file_example(row: dict, check, wanted: str | None, holds: str) -> Example:
    if not row.keys() & {"prompt", "messages"} or (wanted and row.get(wanted) is None):
        raise ValueError(f"expected {holds}, got the keys {sorted(row)!s:.120}")
    prompt = prompt_of(row)
    if wanted == "answer":
        reference(check, row)  # a reference that cannot be read is told with its line, before any work
    elif wanted is not None and not isinstance(row[wanted], str):
        raise TypeError(f"{wanted} must be text, got {type_name(row[wanted])}: {row[wanted]!r:.60}")
    return Example("", prompt, lambda text: is_right(check, text, row))
