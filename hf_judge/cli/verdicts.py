"""Prints an answer token by token, each marked by its verdict."""

from __future__ import annotations

import os
import sys

import torch

from hf_judge.cli.terminal import printable
from hf_judge.decoding.loop import VerdictStreamer
from hf_judge.evaluation.detokenizer import Detokenizer
from hf_judge.verify.stats import JudgeStats, VerdictCode

# The marks of each verdict, with and without colour
MARKS = {
    VerdictCode.MATCHED: ("", ""),
    VerdictCode.RESCUED: ("[", "]"),
    VerdictCode.CORRECTED: ("<", ">"),
    VerdictCode.BONUS: ("{", "}"),
}
COLOURS = {
    VerdictCode.MATCHED: "",
    VerdictCode.RESCUED: "\033[1;32m",
    VerdictCode.CORRECTED: "\033[1;31m",
    VerdictCode.BONUS: "\033[36m",
}
MEANINGS = {
    VerdictCode.MATCHED: "matched: drafted, the target chooses the same",
    VerdictCode.RESCUED: "rescued: drafted, different, and the judge accepts it",
    VerdictCode.CORRECTED: "corrected: the target's own token in place of a rejected one",
    VerdictCode.BONUS: "bonus: the target's own token after a whole draft",
}


class VerdictPrinter(VerdictStreamer):
    """Prints tokens as they arrive, marked by verdict.

    Args:
        tokenizer: the tokenizer of the target.
        colour: add colours to the marks.
    """

    def __init__(self, tokenizer, *, colour: bool):
        self._texts, self._colour = Detokenizer(tokenizer), colour
        self._prompt_seen = False
        self._codes = []  # verdicts that arrived before their tokens
        self._waiting = []  # verdicts of tokens whose text may still change: a character may span several tokens

    def put_verdicts(self, codes: torch.Tensor) -> None:
        self._codes += codes.tolist()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate() sends the prompt first
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self._waiting.append(self._codes.pop(0) if self._codes else VerdictCode.MATCHED)
            self._print(self._texts.put(token))

    def end(self) -> None:
        self._print(self._texts.end())
        print(flush=True)

    def _print(self, texts: list[str]) -> None:
        for text in texts:
            print(self.mark(text, VerdictCode(self._waiting.pop(0))), end="", flush=True)

    def mark(self, text: str, code: VerdictCode) -> str:
        """Return a token's text with its marks; leading blanks stay outside them."""
        text = printable(text)
        word = text.lstrip(" ")
        if not word:
            return text
        left, right = MARKS[code]
        marked = text[: len(text) - len(word)] + left + word + right
        colour = COLOURS[code] if self._colour else ""
        return f"{colour}{marked}\033[0m" if colour else marked

    def legend(self) -> str:
        """Return the meaning of every mark, one line per verdict."""
        return "\n".join("  " + self.mark(meaning, code) for code, meaning in MEANINGS.items())


def describe(stats: JudgeStats) -> str:
    """Return one line about a generation."""
    return (
        f"{stats.new_tokens} tokens in {stats.target_forwards} target forwards "
        f"({stats.tokens_per_forward:.1f} per forward; {stats.rescued} rescued, {stats.corrected} corrected)"
    )


def use_colour() -> bool:
    """Return whether to print colours: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
