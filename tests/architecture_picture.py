"""Draws the packages of hf_judge, the imports between them, and the way of one call, from the files themselves.

python tests/architecture_picture.py docs/architecture.svg
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from house import floors
from test_structure import FILES, ORDER, PACKAGE, place_of, places

ROOT = PACKAGE.parent
sys.path.append(str(ROOT / "benchmarks"))

from drawing import box, document, text  # noqa: E402

WIDTH, TOP, STEP, HEIGHT = 760, 76, 68, 42
MIDDLE, RIGHT = (130, 220), (500, 200)  # (left edge, width) of the two columns
# Where a place stands beside the middle column, and how an arrow goes around what is in its way.
BESIDE = {
    "__init__": RIGHT, "integrations": RIGHT, "rules": RIGHT, "training": RIGHT, "labelling": RIGHT, "checking": RIGHT,
    "files": (500, 126), "moved": (634, 66),
}  # fmt: skip
RAISED = {"rules": 1, "checking": 1}  # rows above the lowest one that imports allow: that one is taken
LANES = {
    ("evaluation", "training"): 466, ("integrations", "labelling"): 456,
    ("rules", "verify"): 430, ("__init__", "moved"): 736,
}  # fmt: skip
STYLE = """
.place{fill:var(--page);stroke:var(--bar);stroke-width:1.2}.on{stroke:var(--bonus-line);stroke-width:2}
.import{fill:none;stroke:var(--bar);stroke-width:1.2;marker-end:url(#tip)}#tip path{fill:var(--bar)}
.way{fill:none;stroke:var(--bonus-line);stroke-width:2.5;marker-end:url(#end)}#end path,.blue{fill:var(--bonus-line)}
"""
TIPS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="{size}" markerHeight="{size}" '
    'orient="auto" markerUnits="userSpaceOnUse"><path d="M0 0 8 4 0 8z"/></marker>'
    for name, size in (("tip", 9), ("end", 12))
)


def arrows() -> dict[str, set[str]]:
    """What each place imports."""
    found = defaultdict(set)
    for path in FILES:
        found[place_of(path)] |= places(path.read_text(encoding="utf-8")) - {place_of(path)}
    return dict(found)


def needed(found: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no others imply."""

    def below(name: str) -> set[str]:
        return found[name].union(*map(below, found[name])) if found[name] else set()

    return [
        (name, other)
        for name in ORDER
        for other in sorted(found[name], key=ORDER.index)
        if not any(other in below(between) for between in found[name])
    ]


def way() -> list[list[tuple[str, str]]]:
    """The (package, module) pairs of each step that docs/architecture.md tells, the step's own first."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = page.split("## The way of one call")[1].split("\n## ")[0]
    steps = re.split(r"^\d+\. ", told, flags=re.MULTILINE)[1:]
    return [re.findall(r"`(\w+)/(\w+)\.py`", step) for step in steps]


def purposes() -> dict[str, str]:
    """What each place is for: the beginning of what the table of docs/architecture.md says."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `hf_judge/(\w+)(?:/|\.py)` \| ([^|:,(]+)", page, flags=re.MULTILINE)
    return {name: words.strip() for name, words in rows} | {"__init__": "the public names", "moved": "old paths"}


class Spot:
    """Where a place is drawn."""

    def __init__(self, name: str, levels: dict[str, int]):
        self.x, self.width = BESIDE.get(name, MIDDLE)
        self.y = TOP + (max(levels.values()) - levels[name] - RAISED.get(name, 0)) * STEP
        self.bottom, self.middle = self.y + HEIGHT, self.y + HEIGHT / 2
        self.center, self.right = self.x + self.width / 2, self.x + self.width


def draw() -> str:
    """The picture as an SVG."""
    found, steps = arrows(), way()
    levels = floors(found)
    spots = {name: Spot(name, levels) for name in ORDER}
    shown = needed(found)
    body = [f"<defs>{TIPS}</defs>", text(24, 32, "The packages of hf_judge, and what imports what", "bold")]
    body.append(text(24, 52, "An arrow that others imply is left out. ", "soft small"))
    body.append(text(254, 52, "Blue: the way of one call, generate(judge=...)", "blue small"))
    body += [import_arrow(name, other, spots) for name, other in shown]
    stations = [step[0][0] for step in steps]
    body += [way_arrow(spots[a], spots[b]) for a, b in zip(stations, stations[1:], strict=False)]
    for name in ORDER:
        body += draw_place(name, spots[name], steps)
    height = TOP + max(levels.values()) * STEP
    return document(WIDTH, height, "The packages of hf_judge, their imports, and the way of one call", body, STYLE)


def draw_place(name: str, spot: Spot, steps: list[list[tuple[str, str]]]) -> list[str]:
    """A place, and the steps of the call that happen in it or what it is for."""
    seen = [f"{number} {module}" for number, step in enumerate(steps, 1) for place, module in step if place == name]
    note = ", ".join(seen) or purposes()[name]
    return [
        box(spot.x, spot.y, spot.width, HEIGHT, "place on" if seen else "place", radius=6),
        text(spot.center, spot.y + 18, name, "bold", anchor="middle"),
        text(spot.center, spot.y + 34, note, "blue" if seen else "soft", anchor="middle", size=11),
    ]


def port(spot: Spot, other: Spot) -> float:
    """At which x an arrow between two places touches the first: in the middle, or towards the other column."""
    aside = other.center - spot.center
    return spot.center + (spot.width / 4 if abs(aside) > 100 else 0) * (1 if aside > 0 else -1)


def import_arrow(name: str, other: str, spots: dict[str, Spot]) -> str:
    """From the importing place down to the imported one."""
    start, end = spots[name], spots[other]
    lane = LANES.get((name, other))
    if lane is None:
        x, to_x = port(start, end), port(end, start)
        middle = (start.bottom + end.y) / 2
        bend = f"C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {end.y:g}"
        return f'<path class="import" d="M{x:g} {start.bottom:g}{bend}"/>'
    x, to_x = (spot.right if lane > spot.right else spot.x for spot in (start, end))
    turn, back = (8 if lane > x else -8), (8 if to_x > lane else -8)
    first = f"M{x:g} {start.middle:g}H{lane - turn:g}q{turn} 0 {turn} 8"
    return f'<path class="import" d="{first}V{end.middle - 8:g}q0 8 {back} 8H{to_x:g}"/>'


def way_arrow(start: Spot, end: Spot) -> str:
    """From one station of the call to the next: straight to a neighbour, else in an arc at the left."""
    down = end.y > start.y
    if abs(end.y - start.y) == STEP:
        x = start.center + (-50 if down else 24)
        return f'<path class="way" d="M{x:g} {start.bottom if down else start.y:g}V{end.y if down else end.bottom:g}"/>'
    x, y, to_y = start.x, start.middle + (0 if down else -8), end.middle + (8 if down else 0)
    reach = x - abs(end.y - start.y) / 3
    return f'<path class="way" d="M{x:g} {y:g}C{reach:g} {y:g} {reach:g} {to_y:g} {x:g} {to_y:g}"/>'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(), encoding="utf-8")
