"""Text for the terminal: tables, and model text that cannot drive it."""

from __future__ import annotations


def printable(text: str) -> str:
    """Model text without control characters, which could drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable()))


def table(rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
