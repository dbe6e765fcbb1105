"""Decide whether an answer is right, by the same rules in every command, and make a checker from its name.

A checker reads the final answer out of a response, and the reference by the same rules out of the task's `answer`, so
"#### 42", "42 apples", "$42" and 42 are one reference.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from hf_judge.checking.checkers import (
    Checker,
    MathChecker,
    MultipleChoiceChecker,
    NumericChecker,
    RegexChecker,
    UnitTestChecker,
)
from hf_judge.checking.numbers import HugeNumber, read_number
from hf_judge.checking.simple import (
    ContainsChecker,
    ExactChecker,
    InstructionChecker,
    JSONSchemaChecker,
    YesNoChecker,
)

# checkers whose name is all that they take
BY_NAME = {
    "choice": MultipleChoiceChecker,
    "math": MathChecker,
    "exact": ExactChecker,
    "contains": ContainsChecker,
    "yes_no": YesNoChecker,
    "json_schema": JSONSchemaChecker,
    "ifeval": InstructionChecker,
}
CHECKERS = ("numeric", "numeric:PATTERN", "regex:PATTERN", *BY_NAME, "unit_tests", "module:function")


def make_checker(
    name: str | None, *, pattern: str | None = None, allow_code_execution: bool = False
) -> Callable[[str, dict], object]:
    """Make a checker from its name on the command line.

    Args:
        name: one of `CHECKERS`.
        pattern: pattern of "numeric" and "regex", where the name does not hold it.
        allow_code_execution: consent that "unit_tests" needs, because it runs what a model wrote.

    Raises:
        ValueError: there is no such checker, or a pattern is missing or out of place.
        ImportError: the library of "math" is not installed.
    """
    kind, colon, own = (name or "").partition(":")
    if kind in ("numeric", "regex"):
        if own and pattern is not None:
            raise ValueError(f"two patterns: {own!r} in --checker and {pattern!r} in --pattern; pass one of them")
        where = own or pattern
        if kind == "numeric":
            return NumericChecker(where)
        if where is None:
            raise ValueError("--checker regex needs --pattern PATTERN (or --checker regex:PATTERN)")
        return RegexChecker(where)
    if pattern is not None:
        raise ValueError(f"--pattern is for the checkers numeric and regex, got the checker {name!r}")
    if name in BY_NAME:
        return BY_NAME[name]()
    if name == "unit_tests":
        return UnitTestChecker(allow_code_execution=allow_code_execution)
    if colon and kind and own and kind not in (*BY_NAME, "unit_tests"):
        return imported(name)
    raise ValueError(f"--checker must be one of {', '.join(CHECKERS)}; got {name!r}")


def imported(name: str) -> Callable:
    """Import the user's function `module:function`; modules of the current folder are found too.

    Raises:
        ValueError: there is no such function.
    """
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"'{name}' cannot be imported: {error}") from None
    if not callable(found):
        raise ValueError(f"'{name}' is no function, got {type(found).__name__}")
    try:
        signature = inspect.signature(found)
    except ValueError:  # some functions of C do not tell theirs
        return found
    try:
        signature.bind("a response", {})
    except TypeError as error:
        raise ValueError(f"'{name}' must take (response, task), got {function}{signature}: {error}") from None
    return found


def needed_key(checker: Callable) -> str | None:
    """Return the key that a checker needs in a task; None for a user's function, which may decide alone."""
    if isinstance(checker, UnitTestChecker):
        return checker.tests_key
    return "answer" if isinstance(checker, Checker) else None


def reference(checker: Callable, task: dict) -> object:
    """Return the right answer of a task, as the checker reads it; None for unit tests, which need none.

    Raises:
        ValueError: the task has no `answer`, or the checker finds none in it.
    """
    if isinstance(checker, UnitTestChecker):
        return None
    written = task.get("answer")
    if written is None:
        raise ValueError(f"the task has no 'answer' to compare with; its keys are {sorted(map(str, task))!s:.120}")
    if not isinstance(checker, Checker):
        return written
    found = checker.reference(written, task)
    if found is None:
        raise ValueError(f"the checker {checker.name} finds no answer in 'answer': {written!r:.60}")
    return found


def is_right(checker: Callable, response: str, task: dict) -> bool:
    """Return whether a response is right.

    Args:
        checker: `(response, task) -> answer`; True and False are the result, None is no answer.
        response: text that a model wrote.
        task: the task, with the right answer under `answer` unless the checker returns True or False.

    Raises:
        ValueError: the task has no `answer`, or the checker finds none in it.
    """
    return answer_is_right(checker, checker(response, task), task)


def answer_is_right(checker: Callable, answer: object, task: dict) -> bool:
    """Return whether an answer is right that a checker has read out of a response.

    Args:
        checker: see [`is_right`].
        answer: what the checker returned; None: it found no answer.
        task: see [`is_right`].

    Raises:
        ValueError: the task has no `answer`, or the checker finds none in it.
    """
    if isinstance(answer, bool) or answer is None:
        return bool(answer)
    gold = reference(checker, task)
    if isinstance(checker, Checker):
        return answer == gold
    if isinstance(answer, int | float | Decimal | Fraction | HugeNumber):
        found = read_number(gold)
        if found is None:
            raise ValueError(f"the checker gives the number {answer!s:.40}, 'answer' is none: {gold!r:.60}")
        return read_number(answer) == found
    return answer == gold or str(answer).strip() == str(gold).strip()
