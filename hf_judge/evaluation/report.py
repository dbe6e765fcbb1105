"""Writes what a comparison found: one self-contained page, and the same figures as JSON, CSV and PNG.

Texts of models and files are data to the page, never markup. Knows nothing about models.
"""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
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
    """Draw the main pictures as PNG: accuracy against speed-up and against saved forwards, and accepted lengths."""
    directory, rules = Path(directory), found["rules"]
    files = [directory / name for name in ("pareto.png", "forwards.png", "accepted.png")]
    plot_accuracy(rules, files[0], "speedup")
    plot_accuracy(rules, files[1], "forwards_ratio")
    plot_accepted([row for row in best_within(rules, 1.0).values() if row["accepted_lengths"]], files[2])
    return files


X_LABELS = {
    "speedup": "times as fast as plain decoding, in wall time per answer",
    "forwards_ratio": "times fewer target forwards than plain decoding",
}
# Those of report.html. Rules beyond the last colour start again with another marker; every point has its name anyway.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7b5ea7", "#8c564b", "#5f8f00", "#e6446a",
    "#1aa6a6",
)  # fmt: skip
MARKERS = "os^DP"
POINTS = 3.0  # a setting further below plain decoding would only squeeze the others together
LABEL_SIZE = 8


def plot_accuracy(rules: list[dict], path: str | os.PathLike, measure: str) -> None:
    """Draw each setting within 3 points of plain decoding, with its name beside it, and name the others below.

    Args:
        rules: figures, "plain" first; intervals are drawn where there are any.
        path: the PNG.
        measure: of `X_LABELS`.
    """
    from matplotlib.figure import Figure  # takes half a second, which no other command should wait for

    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    axes = figure.subplots()
    shown, left_out = _near_plain(rules)
    axes.axhline(100 * rules[0]["accuracy"], color="grey", linestyle="--", linewidth=1, zorder=0)
    names = list(dict.fromkeys(row["rule"] for row in rules[1:]))
    points = {}  # the settings at each place: some rules coincide
    for row in shown:
        points.setdefault((round(row[measure], 2), round(100 * row["accuracy"], 2)), []).append(row)
    colours = {}
    for point, (row, *_) in points.items():
        number = names.index(row["rule"]) if row["rule"] in names else None
        colours[point] = "black" if number is None else COLOURS[number % len(COLOURS)]
        _, _, bars = axes.errorbar(
            row[measure], 100 * row["accuracy"], xerr=_distances(row, measure), yerr=_distances(row, "accuracy", 100),
            marker="o" if number is None else MARKERS[number // len(COLOURS) % len(MARKERS)], color=colours[point],
            elinewidth=1,
        )  # fmt: skip
        for bar in bars:
            bar.set_alpha(0.3)
    axes.set(xlabel=X_LABELS[measure], ylabel="accuracy in %, with 95% intervals")
    axes.margins(0.09, 0.1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if left_out:
        note = f"Not shown, more than {POINTS:g} points below plain: {', '.join(map(short_label, left_out))}."
        figure.supxlabel(textwrap.fill(note, 120), fontsize=LABEL_SIZE, x=0.02, ha="left")
    _write_labels(figure, axes, {point: (colours[point], _names(rows)) for point, rows in points.items()})
    _save_figure(figure, path, dpi=110)


def short_label(row: dict) -> str:
    """A setting without the name of its number, for pictures."""
    return row["rule"] if row["threshold"] is None else f"{row['rule']} {row['threshold']:.4g}"


def _names(rows: list[dict]) -> str:
    """The settings at one place: rules of the same number share it."""
    same = len({row["threshold"] for row in rows}) == 1
    return ", ".join([*(row["rule"] for row in rows[:-1]), short_label(rows[-1])] if same else map(short_label, rows))


def _near_plain(rules: list[dict]) -> tuple[list[dict], list[dict]]:
    floor = rules[0]["accuracy"] - POINTS / 100 - 1e-9
    return [r for r in rules if r["accuracy"] >= floor], [r for r in rules if r["accuracy"] < floor]


def _write_labels(figure, axes, labels: dict[tuple[float, float], tuple[str, str]]) -> None:
    """Put each (colour, name) beside its point, where neither points nor other names are; a line leads further off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    FigureCanvasAgg(figure).draw()  # lays out the axes, which tells where points are
    scale = 72 / figure.dpi
    frame = axes.get_window_extent()
    left, right, plain = (
        frame.x0 * scale,
        frame.x1 * scale + 4,
        axes.transData.transform(next(iter(labels)))[1] * scale,
    )
    centers = {point: axes.transData.transform(point) * scale for point in labels}
    taken = [(left, plain - 1, right, plain + 1), *((x - 5, y - 5, x + 5, y + 5) for x, y in centers.values())]
    for point, (x, y) in centers.items():
        colour, name = labels[point]
        places = _around(x, y, 0.56 * LABEL_SIZE * len(name), LABEL_SIZE + 2)
        inside = [place for place in places if left < place[0] and place[2] < right]
        place = min(inside or places, key=lambda box: sum(_shared(box, other) for other in taken))
        taken.append(place)
        middle = (place[0] + place[2]) / 2
        side = "center" if abs(middle - x) < 1 else "left" if middle > x else "right"
        far = abs((place[1] + place[3]) / 2 - y) > 14
        axes.annotate(
            name, point, ({"left": place[0], "center": middle, "right": place[2]}[side] - x, place[1] - y + 2),
            textcoords="offset points", ha=side, color=[0.75 * part for part in to_rgb(colour)], fontsize=LABEL_SIZE,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5} if far else None,
        )  # fmt: skip


def _around(x: float, y: float, width: float, height: float) -> list[tuple[float, float, float, float]]:
    """The boxes (left, bottom, right, top) where a name may stand, in points, the best first."""
    corners = [(7, -height / 2), (-7 - width, -height / 2)]
    for distance in (6, 17, 28, 39):
        for up in (distance, -distance - height):
            corners += [(-width / 2, up), (4, up), (-4 - width, up)]
    return [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in corners]


def _shared(one: tuple, other: tuple) -> float:
    """The area that two boxes share."""
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return max(0.0, wide) * max(0.0, high)


def plot_accepted(rows: list[dict], path: str | os.PathLike) -> None:
    """Draw how many drafted tokens the rounds accept: a line of cells for each setting, the longest mean first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.6 + 0.32 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    counts = [{int(length): n for length, n in row["accepted_lengths"].items()} for row in rows]
    means = [sum(length * n for length, n in count.items()) / sum(count.values()) for count in counts]
    order = sorted(range(len(rows)), key=lambda i: -means[i])
    if rows:
        longest = max(map(max, counts))
        shares = [[counts[i].get(at, 0) / sum(counts[i].values()) for at in range(longest + 1)] for i in order]
        cells = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0)
        axes.set_yticks(range(len(rows)), [f"{short_label(rows[i])} (mean {means[i]:.1f})" for i in order])
        figure.colorbar(cells, ax=axes, label="share of rounds")
    axes.set(xlabel="accepted tokens of a round", title="Each rule's fastest setting within 1 point of plain decoding")
    _save_figure(figure, path, dpi=110)


def _save_figure(figure, path: str | os.PathLike, *, dpi: int) -> None:
    with replacing(path) as (file,):
        figure.savefig(file, format="png", dpi=dpi)


def _distances(row: dict, name: str, factor: float = 1) -> list[list[float]] | None:
    """How far the ends of the interval are; None for a figure without one."""
    if f"{name}_interval" not in row:
        return None
    low, high = row[f"{name}_interval"]
    return [[factor * max(0.0, row[name] - low)], [factor * max(0.0, high - row[name])]]
