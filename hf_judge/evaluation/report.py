"""Writes what a comparison found: one self-contained page, and the same figures as JSON, CSV and PNG.

Texts of models and files are data to the page, never markup.
"""

from __future__ import annotations

import csv
import io
import json
import os
from importlib import resources
from pathlib import Path

from hf_judge.evaluation.figures import best_within, label, pareto
from hf_judge.evaluation.plotting import plot
from hf_judge.files.durable import write_together

CSV_COLUMNS = (
    "rule", "number", "threshold", "n", "accuracy", "accuracy_low", "accuracy_high", "gained", "lost", "mcnemar_p",
    "speedup", "speedup_low", "speedup_high", "seconds_per_answer", "tokens_per_second", "tokens_per_second_ratio",
    "answer_tokens", "forwards_per_answer", "forwards_ratio", "tokens_per_forward", "accepted_per_forward",
    "drafted_per_answer", "rescued_per_answer", "corrected_per_answer", "identical_to_plain", "first_divergence",
)  # fmt: skip


def result(
    rules: list[dict],
    setup: dict,
    *,
    warnings: list[str] = (),
    score_curves: dict | None = None,
    samples: list[dict] = (),
    text_rules: list[dict] = (),
    texts: list[dict] = (),
) -> dict:
    """Collect everything that a run found, as the JSON values that all files are made from.

    Args:
        rules: figures of every setting, "plain" first.
        setup: command, versions, machine, seeds, ..., shown unchanged.
        warnings: sentences that the reader must see first.
        score_curves: see `hf_judge.evaluation.given_text.score_curves`.
        samples: answers for the token view.
        text_rules, texts: see `hf_judge.evaluation.given_text.score_texts`.
    """
    return {
        "rules": rules,
        "pareto": [label(row) for row in pareto(rules)],
        "summary": summary(rules),
        "warnings": list(warnings),
        "score_curves": score_curves or {},
        "samples": list(samples),
        "text_rules": list(text_rules),
        "texts": list(texts),
        "setup": setup,
    }


def summary(rules: list[dict]) -> list[str]:
    """Tell the findings in sentences: each rule's fastest setting within 1 point of plain decoding, fastest first.

    Args:
        rules: figures of every setting, "plain" first.
    """
    plain = rules[0]
    low, high = plain["accuracy_interval"]
    lines = [
        f"Plain decoding is right in {plain['accuracy']:.1%} of {plain['n']} answers (95%: {low:.1%} to {high:.1%}), "
        f"{plain['seconds_per_answer']:.3f} s each."
    ]
    best = best_within(rules, 1.0)
    best.pop("plain", None)
    if not best:
        return [*lines, "No rule stays within 1 point of it."]
    ranked = sorted(best.values(), key=lambda row: -row["speedup"])
    for place, row in enumerate(ranked):
        low, high = row["speedup_interval"]
        lines.append(
            f"{'Fastest within 1 point of it: ' if place == 0 else ''}{label(row)}: {row['speedup']:.2f}x ({low:.2f} "
            f"to {high:.2f}), accuracy {row['accuracy']:.1%}, {row['gained']} gained and {row['lost']} lost "
            f"(McNemar p = {row['mcnemar_p']:.2g})."
        )
    missing = sorted({row["rule"] for row in rules} - set(best) - {"plain"})
    if missing:
        lines.append(f"No setting of these stays within 1 point: {', '.join(missing)}.")
    if ranked[0]["speedup"] <= 1:
        lines.append("Nothing is faster than plain decoding at that accuracy: speculation does not pay here.")
    return lines


def page(found: dict) -> str:
    """Make the page, which needs no network and runs no text of a model.

    Args:
        found: see [`result`].
    """
    template = resources.files("hf_judge.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    # "<" never appears in the data block, so that no text can close it; U+2028 and U+2029 are escaped by ascii JSON
    data = json.dumps(found, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return template.replace("__DATA__", data, 1)


def write_report(found: dict, directory: str | os.PathLike, *, plots: bool = True) -> list[Path]:
    """Write report.html, report.json, rules.csv and, with `plots`, pareto.png, forwards.png and accepted.png.

    Args:
        found: see [`result`].
        directory: made if it is not there.
        plots: also draw the PNG files.

    Returns:
        The files.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / name for name in ("report.html", "report.json", "rules.csv")]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, CSV_COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in found["rules"]:
        ends = {
            f"{name}_{end}": row[f"{name}_interval"][i]
            for name in ("accuracy", "speedup")
            for i, end in enumerate(("low", "high"))
        }
        writer.writerow(row | ends)
    # a text of a model may hold half a character, which UTF-8 cannot: shown as a question mark
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    contents = [page(found), text.encode("utf-8", "replace"), table.getvalue()]
    write_together(dict(zip(files, contents, strict=True)))
    if plots:
        files += plot(found["rules"], directory)
    return files
