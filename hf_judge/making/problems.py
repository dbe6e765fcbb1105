"""Holds the problems that a judge is made from, and divides them so that no prompt stands on two sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from hf_judge.checking.checkers import NumericChecker
from hf_judge.checking.correctness import is_right
from hf_judge.evaluation.tasks import Example, Task, read_prompts
from hf_judge.labelling.prompts import RefusedPrompt, encode_prompt, prompt_of
from hf_judge.labelling.responses import hash_prompt
from hf_judge.making.settings import MakeSettings
from hf_judge.tiny.world import problems
from hf_judge.training.fit import part_of

WORLD_CHECKER = r"has (\d+) \w+ left"


@dataclass(frozen=True)
class Problems:
    """Prompts with their right answers, and the checker that reads an answer out of a response."""

    name: str
    """Name of the work, written into the record of a run."""
    rows: list[dict]
    """Objects with `prompt` (or `messages`), and what the checker compares with: `answer`, or `tests`."""
    checker: Callable[[str, dict], object]
    """See [`hf_judge.checking.correctness.is_right`]."""
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
        examples = [
            Example(name, prompt_of(row), partial(_is_right, self.checker, name, row))
            for name, row in zip(self.names, self.rows, strict=True)
        ]
        return Task(self.name, examples)

    def usable(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Problems, list[tuple[str, str]]]:
        """Leave out the problems whose prompts the tokenizer or the chat template refuses.

        Returns:
            The others; and of each that is left out, where it stands and why.

        Raises:
            RefusedPrompt: no problem is left.
        """
        kept, refused = [], []
        for number, (name, row) in enumerate(zip(self.names, self.rows, strict=True)):
            try:
                encode_prompt(tokenizer, prompt_of(row))
                kept.append(number)
            except RefusedPrompt as error:
                refused.append((name, str(error)))
        if not kept:
            raise RefusedPrompt(f"all {len(refused)} prompts were refused; {': '.join(refused[0])}")
        return self.chosen(kept), refused


def _is_right(checker: Callable, where: str, row: dict, text: str) -> bool:
    try:
        return is_right(checker, text, row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def file_problems(path: str, checker: Callable, checker_name: str, n: int = 0) -> Problems:
    """Read the first `n` problems of a JSONL file; 0: all.

    Raises:
        ValueError: a line is broken, or there are none.
    """
    lines = read_prompts(path, checker, n)
    name = f"{path.replace(chr(92), '/').rpartition('/')[2]}, checker {checker_name}"
    return Problems(name, [row for _, row in lines], checker, [f"{path}, line {number}" for number, _ in lines])


def world_problems(n: int, *, part: str, seed: int = 1) -> Problems:
    """Return `n` problems of the embedded world.

    Args:
        n: number of problems.
        part: "label", which the embedded pair's own judge was made from, or "test".
        seed: seed of the problems.
    """
    rows = [
        {"prompt": [{"role": "user", "content": problem.question}], "answer": problem.answer, "task_id": f"{part}/{i}"}
        for i, problem in enumerate(problems(n, seed=seed, part=part))
    ]
    return Problems(f"world, {part}", rows, NumericChecker(WORLD_CHECKER), [f"world {row['task_id']}" for row in rows])


@dataclass(frozen=True)
class Parts:
    """Problems by their use; no prompt stands in two parts, whatever the order of the file."""

    fit: Problems
    """Labelled: the head is fitted to them, and its penalty chosen."""
    calibrate: Problems
    """Labelled and answered: the threshold is chosen on them."""
    held_out: Problems
    """Answered once, at the end: all figures of the report are theirs."""

    @property
    def labelled(self) -> Problems:
        """The problems of `fit` and `calibrate` in turn, so that the first ones are of both in their shares."""
        both = [*self.fit.rows, *self.calibrate.rows]
        names = [*self.fit.names, *self.calibrate.names]
        n_fit, n_other = len(self.fit), len(self.calibrate)
        places = [(i / max(n_fit, 1), i) for i in range(n_fit)]
        places += [(i / max(n_other, 1), n_fit + i) for i in range(n_other)]
        merged = Problems(self.fit.name, both, self.fit.checker, names)
        return merged.chosen([i for _, i in sorted(places)])


def divide(problems: Problems, held_out: Problems | None, settings: MakeSettings) -> Parts:
    """Divide problems by the hashes of their prompts, as the fit does.

    Args:
        problems: all problems, or, with `held_out`, those to label.
        held_out: problems to measure on; a prompt of them is taken out of `problems`. None: a share of `problems`.
        settings: the shares and the seed.

    Raises:
        ValueError: a part is empty.
    """
    parts, seed = {"fit": [], "calibrate": [], "held_out": []}, settings.seed
    measured = set() if held_out is None else set(held_out.hashes())
    for number, name in enumerate(problems.hashes()):
        if held_out is None and part_of(name, seed + 1, settings.held_out_fraction, 0.0) == "validation":
            parts["held_out"].append(number)
        elif name not in measured:
            own = part_of(name, seed, settings.validation_fraction, settings.calibration_fraction)
            parts["calibrate" if own == "calibration" else "fit"].append(number)
    divided = Parts(
        problems.chosen(parts["fit"]),
        problems.chosen(parts["calibrate"]),
        problems.chosen(parts["held_out"]) if held_out is None else held_out,
    )
    for name in parts:
        if not getattr(divided, name).rows:
            raise ValueError(
                f"{len(problems)} problems are too few: none is left for the part '{name}'; pass 100 or more, 300 if "
                "you can"
            )
    return divided
