"""Makes text safe and readable for the terminal, and reads numbers from options."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

DTYPES = ("auto", "float32", "bfloat16", "float16")  # of a model's weights


def printable(text: str) -> str:
    """Return text of a model without control characters, which could control the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable()))


def warn(warnings: list[str]) -> None:
    """Print warnings to stderr."""
    for warning in warnings:
        print(f"hf-judge: warning: {printable(warning)}", file=sys.stderr)


def natural(text: str, least: int = 0) -> int:
    """Read a whole number of the command line.

    Args:
        text: the option's value.
        least: the smallest number that is allowed.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
    return number


def positive(text: str) -> int:
    """Read a whole number of the command line from 1 on; see [`natural`]."""
    return natural(text, 1)


def share(text: str) -> float:
    """Read a number of the command line from 0 to 1.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
    return _number(text, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def above_zero(text: str) -> float:
    """Read a finite number of the command line above 0.

    Raises:
        ArgumentTypeError: the text is no such number.
    """
    return _number(text, lambda number: 0 < number < math.inf, "a number above 0")


def _number(text: str, allowed: Callable[[float], bool], expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not allowed(number):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def table(rows: list[list[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
