"""Loads work whose answers can be checked: the embedded world, a task by its name, or a JSONL file with a checker."""

from __future__ import annotations

import os

from hf_judge.checking.correctness import CHECKERS, make_checker
from hf_judge.tasks.files import file_task
from hf_judge.tasks.named import find_named
from hf_judge.tasks.problems import Example, Task
from hf_judge.tasks.table import TASKS
from hf_judge.tiny.world import check_answer, first_mistake, problems

NAMES = ("world", *TASKS)


def load_task(
    name: str,
    n: int,
    *,
    seed: int = 0,
    checker: str | None = None,
    pattern: str | None = None,
    allow_code_execution: bool = False,
    needs_answers: bool = True,
) -> Task:
    """Load the first `n` examples of a task.

    Args:
        name: "world"; the path of a JSONL file, see [`file_task`]; a public task or one of the user's own, see
            [`hf_judge.tasks.named.find_named`].
        n: number of examples; 0: all, except of the world.
        seed: part of the world that the problems come from.
        checker: name of a file's checker, one of `hf_judge.checking.correctness.CHECKERS`. None: the task's own.
        pattern: regular expression of the checkers "numeric" and "regex", where the checker's name does not hold it.
        allow_code_execution: permission to run what a model wrote, which the checker "unit_tests" needs.
        needs_answers: whether a task that measures speed alone is refused.

    Raises:
        ValueError: no such task or checker, a line of the file is broken, or there are no right answers.
    """
    if n < 0 or (name == "world" and n < 1):
        raise ValueError(f"the number of problems must be at least 1, got {n}")
    if name == "world":
        return Task(f"world, seed {seed}", [_world_example(i, p) for i, p in enumerate(problems(n, seed=seed))])
    found = find_named(name)
    if found is None and not os.path.exists(name):
        raise ValueError(f"no task {name!r}: known are {', '.join(NAMES)}, or the path of a JSONL file")
    if found is not None and checker is None:
        return found.problems(n, found.make_checker(allow_code_execution, needs_answers=needs_answers)).task()
    if checker is None:
        raise ValueError(f"a JSONL task needs a checker, one of {', '.join(CHECKERS)}; got none")
    check = make_checker(checker, pattern=pattern, allow_code_execution=allow_code_execution)
    if found is not None:
        return found.problems(n, check).task()
    return file_task(name, check, f"{checker}{'' if pattern is None else f':{pattern}'}", n)


def _world_example(number: int, problem) -> Example:
    return Example(
        str(number),
        [{"role": "user", "content": problem.question}],
        lambda text: check_answer(problem, text),
        lambda text: first_mistake(problem, text),
    )
