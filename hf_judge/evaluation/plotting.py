"""Draws the pictures of a comparison: accuracy against speed, and the lengths that rounds accept."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from hf_judge.evaluation.figures import best_within, label
from hf_judge.files.durable import replacing

X_LABELS = {
    "speedup": "times as fast as plain decoding, in wall time per answer",
    "forwards_ratio": "times fewer target forwards than plain decoding",
}
# The colours of report.html. Rules beyond the last colour start again with another marker; every point has its name.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7b5ea7", "#8c564b", "#5f8f00", "#e6446a",
    "#1aa6a6",
)  # fmt: skip
MARKERS = "os^DP"
POINTS = 3.0  # percentage points; settings further below plain decoding would only squeeze the others together
LABEL_SIZE = 8


def plot(rules: list[dict], directory: Path) -> list[Path]:
    """Draw the main pictures as PNG: accuracy against speed-up and against saved forwards, and accepted lengths.

    Args:
        rules: figures of every setting, "plain" first.
        directory: where the pictures go.

    Returns:
        The files.
    """
    files = [directory / name for name in ("pareto.png", "forwards.png", "accepted.png")]
    plot_accuracy(rules, files[0], "speedup")
    plot_accuracy(rules, files[1], "forwards_ratio")
    plot_accepted([row for row in best_within(rules, 1.0).values() if row["accepted_lengths"]], files[2])
    return files


def plot_accuracy(rules: list[dict], path: str | os.PathLike, measure: str) -> None:
    """Draw each setting within 3 points of plain decoding, with its name beside it, and name the others below.

    Args:
        rules: figures of every setting, "plain" first; intervals are drawn where there are any.
        path: the PNG file.
        measure: the x axis, a key of `X_LABELS`.
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
        named = ", ".join(label(row, short=True) for row in left_out)
        note = f"Not shown, more than {POINTS:g} points below plain: {named}."
        figure.supxlabel(textwrap.fill(note, 120), fontsize=LABEL_SIZE, x=0.02, ha="left")
    _write_labels(figure, axes, {point: (colours[point], _names(rows)) for point, rows in points.items()})
    _save_figure(figure, path, dpi=110)


def _names(rows: list[dict]) -> str:
    """Name the settings at one point; rules with the same number share it."""
    names = [label(row, short=True) for row in rows]
    if len({row["threshold"] for row in rows}) == 1:
        names[:-1] = [row["rule"] for row in rows[:-1]]
    return ", ".join(names)


def _near_plain(rules: list[dict]) -> tuple[list[dict], list[dict]]:
    floor = rules[0]["accuracy"] - POINTS / 100 - 1e-9
    return [r for r in rules if r["accuracy"] >= floor], [r for r in rules if r["accuracy"] < floor]


def _write_labels(figure, axes, labels: dict[tuple[float, float], tuple[str, str]]) -> None:
    """Write each name beside its point, where neither points nor other names are; a line leads to distant names.

    Args:
        figure, axes: the picture.
        labels: each point's colour and name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    FigureCanvasAgg(figure).draw()  # the layout decides where points are
    scale = 72 / figure.dpi
    frame = axes.get_window_extent()
    left, right = frame.x0 * scale, frame.x1 * scale + 4
    plain = axes.transData.transform(next(iter(labels)))[1] * scale
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
    """Return the boxes (left, bottom, right, top) where a name may stand, in points, the best first.

    Args:
        x, y: the point that is named.
        width, height: size of the name.
    """
    corners = [(7, -height / 2), (-7 - width, -height / 2)]
    for distance in (6, 17, 28, 39):
        for up in (distance, -distance - height):
            corners += [(-width / 2, up), (4, up), (-4 - width, up)]
    return [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in corners]


def _shared(one: tuple, other: tuple) -> float:
    """Return the area that two boxes share."""
    wide, high = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return max(0.0, wide) * max(0.0, high)


def plot_accepted(rows: list[dict], path: str | os.PathLike) -> None:
    """Draw how many drafted tokens the rounds accept: a line of cells for each setting, the longest mean first.

    Args:
        rows: figures of the settings.
        path: the PNG file.
    """
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
        axes.set_yticks(range(len(rows)), [f"{label(rows[i], short=True)} (mean {means[i]:.1f})" for i in order])
        figure.colorbar(cells, ax=axes, label="share of rounds")
    axes.set(xlabel="accepted tokens of a round", title="Each rule's fastest setting within 1 point of plain decoding")
    _save_figure(figure, path, dpi=110)


def _save_figure(figure, path: str | os.PathLike, *, dpi: int) -> None:
    with replacing(path) as (file,):
        figure.savefig(file, format="png", dpi=dpi)


def _distances(row: dict, name: str, factor: float = 1) -> list[list[float]] | None:
    """Return how far the ends of a figure's interval are from the figure; None for a figure without interval.

    Args:
        row: figures of a setting.
        name: key of the figure.
        factor: scale of the axis.
    """
    if f"{name}_interval" not in row:
        return None
    low, high = row[f"{name}_interval"]
    return [[factor * max(0.0, row[name] - low)], [factor * max(0.0, high - row[name])]]
