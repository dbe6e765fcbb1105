"""Loads work whose answers can be checked: the embedded world, or a JSONL file with a checker."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from transformers import PreTrainedTokenizerBase

from hf_judge.checking.correctness import CHECKERS, is_right, make_checker, needed_key, reference
from hf_judge.files.jsonl import read_jsonl_lines, type_name
from hf_judge.labelling.prompts import Prompt, RefusedPrompt, encode_prompt, prompt_of
from hf_judge.tasks.load import NamedTask, is_named, load_named
from hf_judge.tasks.table import TASKS
from hf_judge.tiny.world import check_answer, first_mistake, problems

NAMES = ("world", *TASKS)


@dataclass(frozen=True)
class Example:
    """One prompt and how its answer is checked."""

    name: str  # unique within the task
    prompt: str | list[dict] | Prompt  # text or chat messages, or what `prompt_of` read from a file
    is_right: Callable[[str], bool] | None = field(repr=False)  # None: there is no right answer, only speed
    first_mistake: Callable[[str], tuple[int, int] | None] | None = field(default=None, repr=False)
    """Span in characters where an answer first goes wrong; None: the task cannot tell."""


@dataclass(frozen=True)
class Task:
    """Examples under a name."""

    name: str  # written into the record of a run: file and checker, or world and seed
    examples: list[Example]
    path: str | None = None  # file that the examples come from, whose line numbers are their names

    def where(self, example: Example) -> str:
        """Say for reports where an example stands."""
        return f"problem {example.name}" if self.path is None else f"{self.path}, line {example.name}"

    def usable(self, tokenizer: PreTrainedTokenizerBase, *, strict: bool = False) -> tuple[Task, list[tuple[str, str]]]:
        """Leave out the examples whose prompts cannot be encoded.

        Args:
            tokenizer: the target's.
            strict: stop at the first such example.

        Returns:
            The task without them; and of each, where it stands and why it is left out.

        Raises:
            RefusedPrompt: no example is left; with `strict`, one is refused.
        """
        examples, refused = [], []
        for example in self.examples:
            try:
                encode_prompt(tokenizer, example.prompt)
                examples.append(example)
            except RefusedPrompt as error:
                refused.append((self.where(example), str(error)))
        if refused and (strict or not examples):
            all_of_them = "" if examples else f"all {len(refused)} prompts were refused; "
            raise RefusedPrompt(f"{all_of_them}{': '.join(refused[0])}")
        return replace(self, examples=examples), refused


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
            [`hf_judge.tasks.load.load_named`].
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
    if checker is None and is_named(name):
        return named_task(load_named(name, n, allow_code_execution=allow_code_execution), needs_answers)
    if not os.path.exists(name) and not is_named(name):
        raise ValueError(f"no task {name!r}: known are {', '.join(NAMES)}, or the path of a JSONL file")
    if checker is None:
        raise ValueError(f"a JSONL task needs a checker, one of {', '.join(CHECKERS)}; got none")
    check = make_checker(checker, pattern=pattern, allow_code_execution=allow_code_execution)
    if is_named(name):
        return named_task(replace(load_named(name, n, allow_code_execution=True), checker=check), needs_answers)
    return file_task(name, check, f"{checker}{'' if pattern is None else f':{pattern}'}", n)


def named_task(found: NamedTask, needs_answers: bool = True) -> Task:
    """Return a task that was loaded by its name as examples.

    Raises:
        ValueError: it has no right answers, and they are needed.
    """
    if found.checker is None and needs_answers:
        raise ValueError(f"{found.name} has no right answers, it is for speed alone: use it with `hf-judge bench`")
    if not found.rows:
        raise ValueError(f"{found.name} holds no problems")
    examples = [
        Example(name, prompt_of(row), partial(_is_right, found.checker, name, row) if found.checker else None)
        for name, row in zip(found.names, found.rows, strict=True)
    ]
    return Task(found.name, examples)


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
        Example(str(number), prompt_of(row), partial(_is_right, checker, f"{path}, line {number}", row))
        for number, row in read_prompts(path, checker, n)
    ]
    with open(path, "rb") as file:  # a run that is resumed must have the same work
        content = hashlib.sha256(file.read()).hexdigest()[:12]
    return Task(f"{os.path.basename(path)} (sha256 {content}), checker {checker_name}", examples, path)


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


def _is_right(checker: Callable, where: str, row: dict, text: str) -> bool:
    try:
        return is_right(checker, text, row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _world_example(number: int, problem) -> Example:
    return Example(
        str(number),
        [{"role": "user", "content": problem.question}],
        lambda text: check_answer(problem, text),
        lambda text: first_mistake(problem, text),
    )
