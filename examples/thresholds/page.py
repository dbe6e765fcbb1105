"""Draws the curves of `study.py` and writes its figures into docs/thresholds.md.

python examples/thresholds/page.py out/thresholds/figures.json docs/thresholds.md
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from hf_judge.checking.statistics import wilson_interval

START, END = "<!-- written by examples/thresholds/page.py -->", "<!-- end of the figures -->"
COLOURS = {("located", 0): "#d1495b", ("located", 16): "#00798c", ("mined", 0): "#edae49", ("mined", 16): "#30638e"}


def curves(figures: dict, way: str, window: int) -> list[dict]:
    """Return the curves of all heads of one kind of label, at one window."""
    return [figures[key] for key in figures if key.startswith(f"{way}/") and key.endswith(f"/{window}")]


def draw(figures: dict, path: Path) -> None:
    """Draw accuracy and accepted tokens over thresholds: the mean of all heads, and the range between them."""
    matplotlib.rcParams["svg.hashsalt"] = "thresholds"
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for (way, window), colour in COLOURS.items():
        found = curves(figures, way, window)
        for axis, name, scale in zip(axes, ("judged_accuracy", "accepted_per_forward"), (100, 1), strict=True):
            names = list(found[0][name])
            values = [[scale * curve[name][threshold] for curve in found] for threshold in names]
            axis.plot(names, [statistics.mean(row) for row in values], color=colour, label=f"{way}, window {window}")
            axis.fill_between(
                names, [min(row) for row in values], [max(row) for row in values], color=colour, alpha=0.15
            )
    n, strict = len(figures["plain"]), figures["strict"]
    axes[0].axhline(100 * strict["right"] / n, color="grey", linestyle=":", label="strict")
    axes[1].axhline(strict["accepted_per_forward"], color="grey", linestyle=":", label="strict")
    axes[0].set_ylabel("right answers, %")
    axes[1].set_ylabel("accepted tokens per forward")
    for axis in axes:
        axis.set_xlabel("threshold")
        axis.tick_params(axis="x", rotation=60)
    axes[0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def tables(figures: dict) -> str:
    """Return all figures as Markdown."""
    n, strict = len(figures["plain"]), figures["strict"]
    right = sum(answer["right"] for answer in figures["plain"])
    lines = [
        f"{n} problems; the target alone is right in {right} of them, strict verification in {strict['right']} at "
        f"{strict['accepted_per_forward']:.1f} accepted tokens per forward.",
        "",
        "| labels | window | heads | curves that fall by more than chance | lowest accuracy from 0.3 on | right at 0.9 "
        "| accepted per forward |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in ("located", "mined"):
        for window in (0, 8, 16):
            lines += [_summary(curves(figures, way, window), way, window, n)]
    lines += ["", "The first head of each kind, without a window:", ""]
    lines += [
        "| labels | threshold | right (95% interval) | lost | accepted per forward | rescues | corrected within 4, "
        "within 16 tokens | lost answers with one within 16 | of these, the target alone ends right from before the "
        "rescue, from after the correction |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in ("located", "mined"):
        lines += [_after(figures, way, threshold, n) for threshold in figures[f"{way}/0/0"]["lost"]]
    lines += ["", "Rules without a head, from lenient to strict (right, accepted per forward):", ""]
    for name in (key for key in figures if key.startswith("rule/")):
        row = (f"{r['value']:g}: {r['right'] / n:.1%}, {r['accepted_per_forward']:.1f}" for r in figures[name])
        lines.append(f"- `{name.removeprefix('rule/')}`: {'; '.join(row)}")
    return "\n".join(lines)


def _summary(found: list[dict], way: str, window: int, n: int) -> str:
    falls = sum(bool(curve["falls"]) for curve in found)
    lowest = [min(a for t, a in curve["judged_accuracy"].items() if float(t) >= 0.3) for curve in found]
    right = [curve["judged_accuracy"]["0.9"] for curve in found]
    accepted = [curve["accepted_per_forward"]["0.9"] for curve in found]
    spans = (_span([100 * value for value in values], "%") for values in (lowest, right))
    return f"| {way} | {window} | {len(found)} | {falls} | {' | '.join(spans)} | {_span(accepted)} |"


def _span(values: list[float], unit: str = "") -> str:
    low, high = (f"{value:.1f}{unit}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _after(figures: dict, way: str, threshold: str, n: int) -> str:
    curve, after = figures[f"{way}/0/0"], figures[f"{way}/after/{threshold}"]
    n_right = round(curve["judged_accuracy"][threshold] * n)
    low, high = wilson_interval(n_right, n)
    follow, lost = after["rescues"], after["lost"]
    soon = follow["1"] + follow["2 to 4"]
    return (
        f"| {way} | {threshold} | {n_right / n:.1%} ({low:.0%} to {high:.0%}) | {curve['lost'][threshold]} | "
        f"{curve['accepted_per_forward'][threshold]:.1f} | {sum(follow.values())} | "
        f"{soon}, {soon + follow['5 to 16']} | "
        f"{lost['with_a_correction_soon_after_a_rescue']} of {lost['answers']} | "
        f"{lost['target_alone_right_before_the_rescue']}, {lost['target_alone_right_after_the_correction']} |"
    )


def main(source: str, page: str) -> None:
    figures, page = json.loads(Path(source).read_text()), Path(page)
    draw(figures, page.with_suffix(".svg"))
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n\n{tables(figures)}\n\n{END}{after}")


if __name__ == "__main__":
    main(*sys.argv[1:])
