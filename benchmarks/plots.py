"""Draws the plots of docs/benchmarks.md from the tables beside them, so that they cannot differ.

    python benchmarks/plots.py

A new measurement goes into the tables; then this draws it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from long_context import plot as plot_context

from hf_judge.evaluation.plotting import plot_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--output-dir", type=Path, default=Path("docs"))
    args = parser.parse_args()
    page = args.page.read_text(encoding="utf-8")
    plot_accuracy(rules(page), args.output_dir / "benchmarks-forwards.png", "forwards_ratio")
    plot_context(contexts(page), args.output_dir / "benchmarks-context.png")


def table(page: str, heading: str) -> list[dict[str, str]]:
    """Return the cells of the first table behind a heading, by the names of their columns."""
    lines = [line for line in page.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in rows]


def rules(page: str) -> list[dict]:
    """Return every rule's figures under the keys of a report."""
    found = []
    for row in table(page, "Results: every rule on the embedded pair"):
        rule, _, threshold = row["rule"].partition(" ")
        low, high = row["95% interval"].split(" to ")
        found.append(
            {
                "rule": rule,
                "threshold": float(threshold) if threshold else None,
                "accuracy": percent(row["accuracy"]),
                "accuracy_interval": [percent(low), percent(high)],
                "forwards_ratio": float(row["times fewer than plain"].removesuffix("x")),
            }
        )
    return found


def contexts(page: str) -> list[dict]:
    """Return the cost of a token at each context, under the keys of `long_context.py`."""
    return [
        {
            "context": 1024 * int(row["context"].removesuffix("k")),
            "seconds_per_token": float(row["judged, ms per token"]) / 1000,
            "attention_seconds_per_token": float(row["attention alone"]) / 1000,
        }
        for row in table(page, "Results: long contexts and memory")
    ]


def percent(cell: str) -> float:
    """Return the share that a cell like "97.0%" states."""
    return float(cell.removesuffix("%")) / 100


if __name__ == "__main__":
    main()
