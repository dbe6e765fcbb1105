"""Extracts the final answer of a response, to compare answers: functions `(response, task) -> answer`.

Answers are compared with ``==``; None is no answer. `task` is the dict of the prompt as the user gave it. Any function
of that shape is a checker; these are the common ones. [`is_right`] is the one definition of a right answer, for
labelling, calibration and evaluation alike.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable
from fractions import Fraction
from pathlib import Path

from hf_judge.labelling.numbers import last_number

Checker = Callable[[str, dict], Hashable | None]

CHOICE = re.compile(r"(?:answer|choice|option)(?:\s+is)?\s*:?\s*\(?([A-Z])\b\)?", re.IGNORECASE)
MAX_OUTPUT = 1 << 20
CHECKERS = ("numeric", "numeric:PATTERN", "regex:PATTERN", "choice", "unit_tests", "MODULE:FUNCTION")


def make_checker(name: str | None, *, pattern: str | None = None, allow_code_execution: bool = False) -> Checker:
    """A checker from its name on the command line.

    Args:
        name: one of CHECKERS; `MODULE:FUNCTION` is a function of the user's.
        pattern: the regular expression of "numeric" and "regex", where the name does not hold it.
        allow_code_execution: needed by "unit_tests", which runs what a model wrote.

    Raises:
        ValueError: no such checker; the message lists them.
    """
    kind, colon, rest = (name or "").partition(":")
    if kind == "numeric":
        return NumericChecker(rest or pattern)
    if kind == "regex" and (rest or pattern):
        return RegexChecker(rest or pattern)
    if kind == "regex":
        raise ValueError("the checker regex needs a pattern: regex:PATTERN, or --pattern")
    if kind == "choice" and not colon:
        return MultipleChoiceChecker()
    if kind == "unit_tests" and not colon:
        return UnitTestChecker(allow_code_execution=allow_code_execution)
    if kind and rest and kind not in ("choice", "unit_tests"):
        return imported(name)
    raise ValueError(f"a JSONL task needs a checker, one of {', '.join(CHECKERS)}; got {name!r}")


def imported(name: str) -> Callable:
    """The user's function `MODULE:FUNCTION`; modules of the current folder are found too.

    Raises:
        ValueError: there is no such function.
    """
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"'{name}' cannot be imported: {error}; checkers are {', '.join(CHECKERS)}") from None


def wanted_key(checker: Checker) -> str | None:
    """The key of a task that a checker cannot do without; None: a user's function, which may know by itself."""
    if isinstance(checker, UnitTestChecker):
        return "tests"
    return "answer" if isinstance(checker, (NumericChecker, RegexChecker, MultipleChoiceChecker)) else None


def reference(checker: Checker, task: dict) -> Hashable | None:
    """What the right answer of a task comes down to, read as a response is; None: the checker decides by itself.

    Raises:
        ValueError: the task has no `answer`, or the checker finds none in it.
    """
    if isinstance(checker, UnitTestChecker):
        return None
    if task.get("answer") is None:
        if wanted_key(checker) is None:
            return None
        raise ValueError(f"expected the right answer under 'answer', got the keys {sorted(task)!s:.120}")
    text = str(task["answer"])
    found = checker(text, task)
    if isinstance(found, bool):
        return None  # a function that says True or False: "is the reference right" means nothing
    if found is None:  # a pattern that only responses have around their answer: the reference is the bare answer
        bare = getattr(checker, "bare", None)
        found = text.strip() if bare is None else bare(text)
    if found is None:
        raise ValueError(f"the checker finds no answer in {text!r:.60}")
    return found


def is_right(checker: Checker, response: str, task: dict) -> bool:
    """Whether a response has the right answer.

    Raises:
        ValueError: as [`reference`].
    """
    answer = checker(response, task)
    if isinstance(answer, bool) or answer is None:
        return bool(answer)
    right = reference(checker, task)
    if right is None:
        raise ValueError(f"expected the right answer under 'answer', got the keys {sorted(task)!s:.120}")
    return answer == right or (isinstance(answer, str) != isinstance(right, str) and str(answer) == str(right))


class RegexChecker:
    """The last match of a pattern: its first group if it has one, without blanks around it.

    Args:
        pattern: a regular expression.
        ignore_case: compare without case.

    Raises:
        ValueError: not a regular expression.
    """

    def __init__(self, pattern: str, *, ignore_case: bool = False):
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
        self._ignore_case = ignore_case
        self.name = f"regex:{pattern}"

    def __call__(self, response: str, task: dict) -> str | None:
        found = list(self._pattern.finditer(response))
        if not found:
            return None
        return self.bare((found[-1][1] if self._pattern.groups else found[-1][0]) or "")

    def bare(self, answer: str) -> str:
        """An answer without what stands around it."""
        return answer.strip().lower() if self._ignore_case else answer.strip()


class NumericChecker:
    """The last number of a response, however it is written (see [`hf_judge.labelling.numbers`]).

    Args:
        pattern: where to look: the first group of its last match holds the number. None: the whole response.
    """

    def __init__(self, pattern: str | None = None):
        self._where = None if pattern is None else RegexChecker(pattern)
        self.name = f"numeric:{pattern or ''}"

    def __call__(self, response: str, task: dict) -> Fraction | None:
        text = response if self._where is None else self._where(response, task)
        return last_number(text or "")

    def bare(self, answer: str) -> Fraction | None:
        """The number of an answer without what stands around it."""
        return last_number(answer)


class MultipleChoiceChecker:
    """The letter that a response chooses: the last "answer is (B)", else a letter that stands alone on its line."""

    name = "choice"

    def __call__(self, response: str, task: dict) -> str | None:
        found = CHOICE.findall(response) or re.findall(r"^\s*\(?([A-Z])[).]?\s*$", response, re.MULTILINE)
        return found[-1].upper() if found else None

    def bare(self, answer: str) -> str | None:
        """A bare letter."""
        letter = answer.strip().strip("().").upper()
        return letter if re.fullmatch("[A-Z]", letter) else None


class UnitTestChecker:
    """Whether the Python code of a response passes the task's unit tests. This executes what a model wrote.

    The code runs in a process of its own: a temporary directory, an empty environment, no network and no processes of
    its own (an audit hook, and a network namespace where the system grants one), limits on time, memory and files. That
    keeps accidents in. It is no sandbox against malice: for untrusted models run the whole job in a container or a
    virtual machine.

    Args:
        allow_code_execution: must be True; there is no default that executes code.
        timeout: seconds for code and tests.
        max_memory: bytes of address space.
        tests_key: the key of the task that holds the tests, Python text run after the code.

    Raises:
        ValueError: without the opt-in.
    """

    name = "unit_tests"

    def __init__(
        self,
        *,
        allow_code_execution: bool = False,
        timeout: float = 10.0,
        max_memory: int = 1 << 30,
        tests_key: str = "tests",
    ):
        if allow_code_execution is not True:
            raise ValueError(
                "UnitTestChecker executes code written by a model: pass allow_code_execution=True (on the command line "
                "--allow-code-execution) if you accept that; it is no sandbox against malice"
            )
        self._timeout, self._max_memory, self._tests_key = timeout, max_memory, tests_key

    def __call__(self, response: str, task: dict) -> bool:
        if not isinstance(task.get(self._tests_key), str):
            raise ValueError(f"a task for unit tests needs the text '{self._tests_key}', got the keys {sorted(task)}")
        return run_python(
            f"{code_of(response)}\n\n{task[self._tests_key]}\n", timeout=self._timeout, max_memory=self._max_memory
        )


def code_of(response: str) -> str:
    """The last fenced block of a response, or all of it."""
    blocks = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", response, re.DOTALL | re.IGNORECASE)
    return blocks[-1] if blocks else response


# Runs before the code: what the parent cannot set from outside. Bound methods and modules stay referenced by the hook.
_PRELUDE = """\
import sys
def _close():
    import ctypes, os
    try:
        libc = ctypes.CDLL(None)
        libc.unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER | CLONE_NEWNET; refused on some systems
    except (OSError, AttributeError):
        pass
    refused = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "os.kill",
               "pty.", "ctypes.", "os.putenv", "signal.pthread_kill", "resource.prlimit")
    def hook(event, args):
        if event.startswith(refused):
            raise PermissionError("hf_judge: " + event + " is not allowed in a unit test")
    sys.addaudithook(hook)
_close()
del _close
"""
_PASSED = 77  # the exit code of code and tests that ran to their end: a model's sys.exit(0) is no success


def run_python(code: str, *, timeout: float, max_memory: int) -> bool:
    """Run Python code in a closed-off process.

    Args:
        code: run as a script.
        timeout: seconds, of the clock and of the processor.
        max_memory: bytes of address space.

    Returns:
        Whether it ran to its end without an exception.

    Raises:
        OSError: this system cannot limit a process.
    """
    try:
        import resource  # POSIX alone has it
    except ImportError:
        raise OSError(
            f"unit tests of what a model wrote need POSIX's limits on a process, which {sys.platform} does not have: "
            "run them on Linux or macOS (on Windows: in WSL)"
        ) from None

    def limit():
        seconds = max(1, int(timeout) + 1)
        for what, most in (
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_AS, max_memory),
            (resource.RLIMIT_FSIZE, MAX_OUTPUT),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, 64),
        ):
            resource.setrlimit(what, (most, most))

    with tempfile.TemporaryDirectory(prefix="hf_judge_") as directory:
        script = Path(directory) / "script.py"
        script.write_text(
            f"{_PRELUDE}\nexec(compile(open('answer.py').read(), 'answer.py', 'exec'), {{'__name__': '__main__'}})\n"
            f"import os\nos._exit({_PASSED})\n"
        )
        (Path(directory) / "answer.py").write_text(code, errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "script.py"],
            cwd=directory,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            return process.wait(timeout) == _PASSED
        except subprocess.TimeoutExpired:
            return False
        finally:
            # the session is its own process group; the process was not waited for if it still runs
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
