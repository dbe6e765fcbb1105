"""Writes what a comparison found: one self-contained page, and the same figures as JSON, CSV and PNG.

Texts of models and files are data to the page, never markup. Knows nothing about models.
"""

from __future__ import annotations

import csv
import io
import json
import os
from importlib import resources
from pathlib import Path

from hf_judge.evaluation.figures import best_within, pareto
from hf_judge.files.durable import replacing, write_together

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
    """Everything that a run found, as the JSON that all files are made from.

    Args:
        rules: figures of every setting, "plain" first.
        setup: command, versions, machine, seeds, ...; shown as it is.
        warnings: what the reader must know first.
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


def label(row: dict) -> str:
    """A setting in words; the page writes it in the same way."""
    return row["rule"] if row["threshold"] is None else f"{row['rule']} {row['number']} {row['threshold']:.4g}"


def summary(rules: list[dict]) -> list[str]:
    """The findings in sentences: each rule's fastest setting within 1 point of plain, fastest first."""
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
    """The page: needs no network, and runs no text of a model."""
    template = resources.files("hf_judge.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    # "<" never appears in the data block, so that no text can close it; U+2028 and U+2029 are escaped by ascii JSON
    data = json.dumps(found, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return template.replace("__DATA__", data, 1)


def write_report(found: dict, directory: str | os.PathLike, *, plots: bool = True) -> list[Path]:
    """Write report.html, report.json, rules.csv and, with `plots`, pareto.png, forwards.png and accepted.png.

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
        files += plot(found, directory)
    return files


def plot(found: dict, directory: str | os.PathLike) -> list[Path]:
    """The main pictures as PNG: accuracy against speed-up and against saved forwards, and accepted lengths."""
    from matplotlib.figure import Figure  # takes half a second, which no other command should wait for

    directory, rules = Path(directory), found["rules"]
    files = [directory / name for name in ("pareto.png", "forwards.png", "accepted.png")]
    _scatter(Figure(figsize=(9, 5.5), layout="constrained"), rules, files[0], "speedup")
    _scatter(Figure(figsize=(9, 5.5), layout="constrained"), rules, files[1], "forwards_ratio")
    shown = [row for row in rules if row["accepted_lengths"]]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in (row for row in best_within(rules, 1.0).values() if row in shown):
        lengths = {int(length): n for length, n in row["accepted_lengths"].items()}
        n = sum(lengths.values())
        axes.plot(
            range(max(lengths) + 1), [lengths.get(i, 0) / n for i in range(max(lengths) + 1)], ".-", label=label(row)
        )
    axes.set(xlabel="accepted tokens of a round", ylabel="share of rounds")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    _save_figure(figure, files[2], dpi=130)
    return files


X_LABELS = {
    "speedup": "speed-up over plain decoding (wall time per answer)",
    "forwards_ratio": "target forwards per answer: plain decoding's over the rule's",
}


def _scatter(figure, rules: list[dict], path: Path, measure: str) -> None:
    names = list(dict.fromkeys(row["rule"] for row in rules))
    axes = figure.subplots()
    axes.axhline(rules[0]["accuracy"], color="grey", linestyle="--", linewidth=1)
    for number, name in enumerate(names):
        rows = [row for row in rules if row["rule"] == name]
        axes.errorbar(
            [row[measure] for row in rows],
            [row["accuracy"] for row in rows],
            xerr=_distances(rows, measure),
            yerr=_distances(rows, "accuracy"),
            marker="os^DvPX"[number % 7],
            label=name,
            linewidth=1.4,
            elinewidth=0.5,
        )
    axes.set(xlabel=X_LABELS[measure], ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    _save_figure(figure, path, dpi=100)


def _save_figure(figure, path: Path, *, dpi: int) -> None:
    with replacing(path) as (file,):
        figure.savefig(file, format="png", dpi=dpi)


def _distances(rows: list[dict], name: str) -> list[list[float]] | None:
    """How far the ends of the intervals are; None for a figure without intervals."""
    if f"{name}_interval" not in rows[0]:
        return None
    return [
        [max(0.0, row[name] - row[f"{name}_interval"][0]) for row in rows],
        [max(0.0, row[f"{name}_interval"][1] - row[name]) for row in rows],
    ]
