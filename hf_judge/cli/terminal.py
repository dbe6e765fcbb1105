"""Text for the terminal: tables, model text that cannot drive it; and numbers that come from there."""

from __future__ import annotations

import argparse
import math

DTYPES = ("auto", "float32", "bfloat16", "float16")  # of a model's weights


def printable(text: str) -> str:
    """Model text without control characters, which could drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable()))


def natural(text: str, least: int = 0) -> int:
    """A whole number of the command line, from 0 on.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
    return number


def positive(text: str) -> int:
    """As [`natural`], from 1 on."""
    return natural(text, 1)


def share(text: str) -> float:
    """A number of the command line from 0 to 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return number


def above_zero(text: str) -> float:
    """A finite number of the command line above 0.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def table(rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
