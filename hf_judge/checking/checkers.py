"""Extract the final answer of a response: checkers `(response, task) -> answer`, where None is no answer.

`task` is the dict of the prompt as the user gave it. Any such function is a checker; these are the common ones, which
also read the reference of a task. `hf_judge.checking.correctness` decides whether an answer is right.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Protocol, runtime_checkable

from hf_judge.checking.numbers import Number, last_number, marked_answer, read_number, whole_number
from hf_judge.checking.spelling import plain

_SAYS = r"(?i:\b(?:answer|choice|option))(?i:\s+is|\s*=)?\s*[*_`]*\s*[:：]?"
CHOICE = re.compile(rf"{_SAYS}[*_`\s$({{\[\"']*(?P<upper>[A-Z])(?![\w'])|{_SAYS}[*_`\s$]*\(\s*(?P<lower>[a-z])\s*\)")
ALONE = re.compile(r"^[*_`\s$({\[]*([A-Z])[*_`\s$)}\]]*[).:]?[*_`\s$]*$", re.MULTILINE)
MAX_OUTPUT = 1 << 20


@runtime_checkable
class Checker(Protocol):
    """Reads the answer of a response, and the reference of a task by the same rules."""

    name: str

    def __call__(self, response: str, task: dict) -> Hashable | None:
        """Read the final answer of a response; None: there is none."""

    def reference(self, written: object, task: dict) -> Hashable | None:
        """Read the right answer in a task's `answer`: text, or a number of JSON."""


class RegexChecker:
    """Reads the last match of a pattern, without blanks around it: its first group, if the pattern has groups.

    A match of another branch, in which the first group has no part, is no answer.

    Args:
        pattern: a regular expression.
        ignore_case: whether to compare without case.

    Raises:
        ValueError: the pattern is not a regular expression.
    """

    def __init__(self, pattern: str, *, ignore_case: bool = False):
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
        self._ignore_case = ignore_case
        self.name = f"regex:{pattern}"

    def __call__(self, response: str, task: dict) -> str | None:
        group = 1 if self._pattern.groups else 0
        found = [match[group] for match in self._pattern.finditer(response) if match[group] is not None]
        if not found:
            return None
        answer = found[-1]
        return answer.strip().lower() if self._ignore_case else answer.strip()

    def reference(self, written: object, task: dict) -> str:
        """Read what the pattern finds in the reference, else all of it."""
        found, bare = self(str(written), task), str(written).strip()
        return found if found is not None else bare.lower() if self._ignore_case else bare


class NumericChecker:
    """Reads the last number of a response exactly: 1,234.50 and 1234.5 are the same answer.

    `hf_judge.checking.numbers` states the rules.

    Args:
        pattern: a regular expression; the first group of its last match holds the number. None: the whole response.
    """

    def __init__(self, pattern: str | None = None):
        self._where = None if pattern is None else RegexChecker(pattern)
        self.name = f"numeric:{pattern or ''}"

    def __call__(self, response: str, task: dict) -> Number | None:
        text = response if self._where is None else self._where(response, task)
        return None if text is None else last_number(text)

    def reference(self, written: object, task: dict) -> Number | None:
        """Read the number that the pattern finds in the reference, else its last number."""
        found = self(written, task) if isinstance(written, str) else None
        return read_number(written) if found is None else found


class MultipleChoiceChecker:
    """Reads the letter that a response chooses: the last "answer is (B)" or boxed one, else one alone on its line."""

    name = "choice"

    def __call__(self, response: str, task: dict) -> str | None:
        boxed = marked_answer(response)
        if boxed is not None and (found := ALONE.search(plain(boxed))):
            return found[1]
        text = _latin(plain(response))
        chosen = [found["upper"] or found["lower"].upper() for found in CHOICE.finditer(text)] or ALONE.findall(text)
        return chosen[-1] if chosen else None

    def reference(self, written: object, task: dict) -> str | None:
        """Read the letter of a reference, bare or chosen in words."""
        text = str(written)
        bare = re.fullmatch(r"\W*([A-Za-z])\W*", _latin(plain(text)))
        return bare[1].upper() if bare else self(text, task)


class MathChecker:
    """Reads the last mathematical expression of a response, compared by value: roots, sets, intervals, symbols.

    `math-verify` (the extra `math`), which the field uses for LaTeX answers, parses and compares.

    Raises:
        ImportError: `math-verify` is not installed.
    """

    name = "math"

    def __init__(self):
        try:
            from math_verify import parse, verify
        except ImportError:
            raise ImportError("the checker math needs math-verify: pip install 'hf-judge[math]'") from None
        self._parse, self._verify = parse, verify

    def __call__(self, response: str, task: dict) -> _Expression | None:
        marked = marked_answer(response)
        return self._read(response, None if marked is None else whole_number(marked))

    def reference(self, written: object, task: dict) -> _Expression | None:
        """Read the reference, as it stands or between dollar signs."""
        text = str(written)
        marked = marked_answer(text)
        latex = text if "$" in text or "\\boxed" in text else f"${text}$"
        return self._read(latex, whole_number(text if marked is None else marked))

    def _read(self, text: str, number: Number | None) -> _Expression | None:
        parsed = self._parse(text, parsing_timeout=_alarm())
        return _Expression(parsed, number, self._verify) if parsed or number is not None else None


def _alarm() -> int | None:
    """Return the time limit of math-verify in seconds: its alarm works in the main thread on POSIX alone."""
    in_main = threading.current_thread() is threading.main_thread()
    return 5 if in_main and sys.platform != "win32" else None


class _Expression:
    """Holds a parsed answer, equal to others of equal value."""

    def __init__(self, parsed: list, number: Number | None, verify):
        self._parsed, self._number, self._verify = parsed, number, verify

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Expression):
            return NotImplemented
        if self._number is not None and other._number is not None:  # exactly: the library rounds to six decimals
            return self._number == other._number
        pairs = ((self._parsed, other._parsed), (other._parsed, self._parsed))
        return any(self._verify(gold, answer, timeout_seconds=_alarm()) for gold, answer in pairs if gold and answer)

    def __hash__(self) -> int:
        return 0  # equal values may be written in any number of ways

    def __repr__(self) -> str:
        return f"_Expression({self._parsed!r:.80})"


def _latin(text: str) -> str:
    """Turn letters of full width into plain ones."""
    return text.translate({0xFF21 + i: 65 + i for i in range(26)} | {0xFF41 + i: 97 + i for i in range(26)})


class UnitTestChecker:
    """Runs the Python code of a response against the task's unit tests. This executes what a model wrote.

    The code runs in a process of its own: a temporary directory, an empty environment, no network and no further
    processes (an audit hook, and a network namespace where the system grants one), limits on time, memory and files.
    This contains accidents. It is no sandbox against malice: for untrusted models run the whole job in a container or
    a virtual machine.

    Args:
        allow_code_execution: consent; must be True.
        timeout: seconds for code and tests.
        max_memory: bytes of address space.
        tests_key: key of the task that holds the tests, Python text that runs after the code. A task may hold `setup`,
            which runs before it; or several such objects under `cases`, each run on its own.

    Raises:
        ValueError: the consent is missing.
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
        self._timeout, self._max_memory, self.tests_key = timeout, max_memory, tests_key

    def __call__(self, response: str, task: dict) -> bool:
        cases = task.get("cases") or [task]
        for case in cases:
            if not isinstance(case.get(self.tests_key), str):
                raise ValueError(
                    f"a task for unit tests needs the text '{self.tests_key}', got the keys {sorted(case)}"
                )
        code = last_block(response, "python|py")
        return all(
            run_python(
                f"{case.get('setup') or ''}\n{code}\n\n{case[self.tests_key]}\n",
                timeout=self._timeout,
                max_memory=self._max_memory,
            )
            for case in cases
        )


def last_block(response: str, languages: str) -> str:
    """Return the last fenced block of a response that names no language or one of `a|b`; without one, all of it."""
    blocks = re.findall(rf"```(?:{languages})?[ \t]*\n(.*?)(?:```|\Z)", response, re.DOTALL | re.IGNORECASE)
    return blocks[-1] if blocks else response


# Runs before the code and sets what the parent cannot set from outside.
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
        code: text of the script.
        timeout: seconds of the clock, and of the processor.
        max_memory: bytes of address space.

    Returns:
        Whether the code ran to its end without an exception.

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
