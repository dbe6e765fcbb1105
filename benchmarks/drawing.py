"""Draws pictures as SVG for light and dark pages; `race.py` and `rule.py` use it.

A picture brings its own background, since the scheme of the page around it may differ from the reader's own. Text is
set in a grid of equal characters (`textLength`), so that it takes the same room with every font.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

# The verdicts have the colours of the page that `hf-judge evaluate --report` writes.
STYLE = """
svg{--page:#fff;--ink:#1d1f23;--soft:#5c626b;--line:#d0d4d9;--bar:#8b929c;
--matched:#e9f6ec;--rescued:#bfe8c6;--corrected:#ffc9c2;--bonus:#cfe0ff;
--matched-line:#a9d6b3;--rescued-line:#14772c;--corrected-line:#b3261e;--bonus-line:#1a5fd0}
@media (prefers-color-scheme:dark){svg{--page:#15171a;--ink:#e9e9e6;--soft:#a3a9b2;--line:#363b42;--bar:#7d858f;
--matched:#18291d;--rescued:#174d27;--corrected:#6b211c;--bonus:#1f3c70;
--matched-line:#33573d;--rescued-line:#6fd488;--corrected-line:#ff9d94;--bonus-line:#8ab4ff}}
text{font:14px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--ink)}
.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}
.soft{fill:var(--soft)}.small{font-size:12px}.bold{font-weight:600}.page{fill:var(--page);stroke:var(--line)}
.matched{fill:var(--matched)}.rescued{fill:var(--rescued);stroke:var(--rescued-line);stroke-width:1.5}
.corrected{fill:var(--corrected);stroke:var(--corrected-line)}.bonus{fill:var(--bonus);stroke:var(--bonus-line)}
"""
GRID = 0.602  # width of a character of most fonts of equal characters, in their size
SIZE = 14


def document(width: float, height: float, title: str, body: list[str], style: str = "") -> str:
    """Return a whole SVG file around `body`; `title` describes the picture for readers who cannot see it."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}{style}</style>",
            box(0.5, 0.5, width - 1, height - 1, "page", radius=8),
            *body,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "", size: float = SIZE) -> str:
    """Return a line of text whose base line is y; `kind` names classes, of which "mono" sets the text in the grid."""
    attributes = f' class="{kind}"' if kind else ""
    if anchor:
        attributes += f' text-anchor="{anchor}"'
    if size != SIZE:
        attributes += f' style="font-size:{size:g}px"'
    if "mono" in kind:
        attributes += f' textLength="{grid_width(words, size):.1f}"'
    return f'<text x="{x:.5g}" y="{y:.5g}"{attributes}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, *, radius: float = 3, more: str = "") -> str:
    """Return a rectangle with round corners."""
    place = f'x="{x:.5g}" y="{y:.5g}" width="{width:.5g}" height="{height:.5g}"'
    return f'<rect class="{kind}" {place} rx="{radius:g}"{more}/>'


def grid_width(words: str, size: float = SIZE) -> float:
    """Return the width of words in the grid."""
    return len(words) * GRID * size


def write_png(svg: Path, png: Path, scale: int = 2) -> bool:
    """Let a browser draw an SVG file without motion, on a light page; return False if there is no browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return False
    width, height = svg.read_text(encoding="utf-8").split('viewBox="0 0 ')[1].split('"')[0].split()
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--force-prefers-reduced-motion", "--hide-scrollbars")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(f'<body style="margin:0"><img src="{svg.resolve().as_uri()}">', encoding="utf-8")
        subprocess.run(
            [browser, *options, f"--force-device-scale-factor={scale}", f"--window-size={width},{height}",
             f"--screenshot={png.resolve()}", page.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    with Image.open(png) as image:
        small = image.convert("RGB").quantize(64)
    small.save(png, optimize=True)
    return True
