"""Holds problems whose answers can be checked: as rows of a file, and as the examples that are measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from hf_judge.checking.correctness import is_right
from hf_judge.labelling.prompts import Prompt, RefusedPrompt, encode_prompt, prompt_of
from hf_judge.labelling.responses import hash_prompt


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
        prompts, places = [example.prompt for example in self.examples], list(map(self.where, self.examples))
        kept, refused = _readable(tokenizer, prompts, places, strict)
        return replace(self, examples=[self.examples[i] for i in kept]), refused


def example_of(name: str, row: dict, checker: Callable | None, where: str) -> Example:
    """Return the example of a row: its prompt, and its checker bound to it; errors of the checker say `where`."""
    return Example(name, prompt_of(row), partial(_is_right, checker, where, row) if checker else None)


def _is_right(checker: Callable, where: str, row: dict, text: str) -> bool:
    try:
        return is_right(checker, text, row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Problems:
    """Prompts with their right answers, and the checker that reads an answer out of a response."""

    name: str
    """Name of the work, written into the record of a run."""
    rows: list[dict]
    """Objects with `prompt` (or `messages`), and what the checker compares with: `answer`, or `tests`."""
    checker: Callable[[str, dict], object] | None
    """See [`hf_judge.checking.correctness.is_right`]; None: there are no right answers, only speed."""
    names: list[str]
    """Where each row stands, for reports: "prompts.jsonl, line 3"."""

    def __len__(self) -> int:
        return len(self.rows)

    def chosen(self, numbers: list[int]) -> Problems:
        """Return some of the problems, by their places in `rows`."""
        return replace(self, rows=[self.rows[i] for i in numbers], names=[self.names[i] for i in numbers])

    def first(self, n: int) -> Problems:
        """Return the first `n` problems, or all if there are fewer."""
        return self.chosen(list(range(min(n, len(self)))))

    def hashes(self) -> list[str]:
        """Return the name of each row's prompt, as the labels use it."""
        return [hash_prompt(prompt_of(row).content) for row in self.rows]

    def digest(self) -> str:
        """Return 16 hex digits of all rows: other prompts or answers give others."""
        text = json.dumps(self.rows, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def task(self) -> Task:
        """Return the problems in the form that the measuring code reads."""
        examples = [example_of(name, row, self.checker, name) for name, row in zip(self.names, self.rows, strict=True)]
        return Task(self.name, examples)

    def usable(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Problems, list[tuple[str, str]]]:
        """Leave out the problems whose prompts the tokenizer or the chat template refuses.

        Returns:
            The others; and of each that is left out, where it stands and why.

        Raises:
            RefusedPrompt: no problem is left.
        """
        kept, refused = _readable(tokenizer, list(map(prompt_of, self.rows)), self.names)
        return self.chosen(kept), refused


def _readable(
    tokenizer, prompts: list, places: list[str], strict: bool = False
) -> tuple[list[int], list[tuple[str, str]]]:
    """Return the numbers of the prompts that can be encoded; and of each other, where it stands and why not."""
    kept, refused = [], []
    for number, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        try:
            encode_prompt(tokenizer, prompt)
            kept.append(number)
        except RefusedPrompt as error:
            refused.append((place, str(error)))
    if refused and (strict or not kept):
        all_of_them = "" if kept else f"all {len(refused)} prompts were refused; "
        raise RefusedPrompt(f"{all_of_them}{': '.join(refused[0])}")
    return kept, refused
