"""Races the same answer in three ways and draws the race: plain, assisted and judged, at measured token times.

    python benchmarks/race.py                          # measures (a minute), writes docs/race.json and docs/race.svg
    python benchmarks/race.py --from docs/race.json    # draws again without measuring
    python benchmarks/race.py --from docs/race.json --png docs/race.png    # a still picture too; needs Chromium

The embedded pair answers one held-out problem of `hf-judge demo`. A streamer notes when each token comes; the ways take
turns, and each token's time is its median over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from itertools import groupby
from pathlib import Path

import torch
import transformers
from drawing import GRID, SIZE, box, document, grid_width, text, write_png

from hf_judge import VerdictCode, VerdictStreamer
from hf_judge.evaluation.demo import METHODS
from hf_judge.evaluation.detokenizer import pieces
from hf_judge.evaluation.evaluate import Decoding, Method
from hf_judge.evaluation.loading import load_models
from hf_judge.tasks.load import load_task

PROBLEM = 8  # of the demo's: the shortest of the first ten whose judged answer has all four verdicts
CALLS = {
    "plain": "generate(**inputs)",
    "assisted": "generate(**inputs, assistant_model=draft)",
    "judged": "generate(**inputs, assistant_model=draft, judge=judge)",
}
VERDICTS = {
    "matched": "the target says the same",
    "rescued": "different, but the judge accepts it",
    "corrected": "refused, the target's token instead",
    "bonus": "the target's token behind a full draft",
}
WIDTH, MARGIN, LINE, ROOM = 860, 24, 23, 812  # ROOM: for text
SHOWN_SECONDS, HOLD_SECONDS = 8, 4  # how long plain decoding may run at least, and how long the end stands still


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON", help="draw these times, measure nothing")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--num-assistant-tokens", type=int, default=32, metavar="M")
    parser.add_argument("--layers", type=int, default=24, help="layers of the target")
    parser.add_argument("--json", type=Path, default=Path("docs/race.json"))
    parser.add_argument("--svg", type=Path, default=Path("docs/race.svg"))
    parser.add_argument("--png", type=Path, help="a still picture, drawn by Chromium")
    args = parser.parse_args()
    if args.source:
        race = json.loads(args.source.read_text(encoding="utf-8"))
    else:
        race = measure(args.layers, args.num_assistant_tokens, args.repeats)
        args.json.write_text(dumps(race), encoding="utf-8")
    args.svg.write_text(draw(race), encoding="utf-8")
    for way, lane in race["ways"].items():
        print(f"{way}: {len(lane['tokens'])} tokens in {lane['seconds']:.3f} s, {lane['forwards']} target forwards")
    if args.png and not write_png(args.svg, args.png):
        parser.error("--png needs Chromium: install it, or leave --png out")


class Timer(VerdictStreamer):
    """Notes when each token came, and its verdict.

    Attributes:
        seconds: of each token, since the call began.
        verdicts: names, of a judged call only.
        n_blocks: how often tokens came, which is how often the target ran.
    """

    def __init__(self):
        self.seconds, self.verdicts, self.n_blocks, self._start = [], [], -1, time.perf_counter()

    def put_verdicts(self, codes: torch.Tensor) -> None:
        self.verdicts += [VerdictCode(code).name.lower() for code in codes.tolist()]

    def put(self, value: torch.Tensor) -> None:
        if self.n_blocks >= 0:  # the first block is the prompt
            self.seconds += [time.perf_counter() - self._start] * value.numel()
        self.n_blocks += 1

    def end(self) -> None:
        """Do nothing: no text is held back."""


def measure(layers: int, num_assistant_tokens: int, repeats: int) -> dict:
    """Answer with all methods in turn, once to warm up and then `repeats` times.

    Returns:
        The race as JSON values: the question, how it was measured, and each way's tokens as [text, seconds, verdict].
    """
    pair, problem = load_models(depth=layers), load_task("world", PROBLEM + 1).examples[PROBLEM]
    decoding, ids = Decoding(num_assistant_tokens), pair.encode(problem.prompt)[0]
    methods = {name: Method(pair, setting, decoding) for name, setting in METHODS.items()}
    timers, seconds, answers = {way: [] for way in methods}, {way: [] for way in methods}, {}
    for _ in range(1 + repeats):
        for way, method in methods.items():
            timer, start = Timer(), time.perf_counter()
            output = method.generate([ids], streamer=timer)
            seconds[way].append(time.perf_counter() - start)
            timers[way].append(timer)
            answers[way] = output.sequences[0, len(ids) :].tolist()
    ways = {}
    for way, answer in answers.items():
        last, texts = timers[way][-1], pieces(pair.tokenizer, answer, skip_special_tokens=True)
        times = [
            round(statistics.median(token), 4) for token in zip(*(t.seconds for t in timers[way][1:]), strict=True)
        ]
        ways[way] = {
            "seconds": round(statistics.median(seconds[way][1:]), 4),
            "spread": [round(end(seconds[way][1:]), 4) for end in (min, max)],
            "forwards": last.n_blocks,
            "right": problem.is_right("".join(texts)),
            "tokens": list(map(list, zip(texts, times, last.verdicts or [""] * len(texts), strict=True))),
        }
    return {
        "question": problem.prompt[0]["content"],
        "setup": {
            "layers": layers, "num_assistant_tokens": num_assistant_tokens, "repeats": repeats,
            "threads": torch.get_num_threads(), "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
        "ways": ways,
    }  # fmt: skip


def dumps(race: dict) -> str:
    """Return the race as JSON with a token a line."""
    plain = json.dumps(race, indent=1, ensure_ascii=False)
    marked, tokens = json.loads(plain), {}
    for way, lane in marked["ways"].items():
        for i, token in enumerate(lane["tokens"]):
            tokens[f'"{way} {i}"'] = json.dumps(token, ensure_ascii=False)
            lane["tokens"][i] = f"{way} {i}"
    out = json.dumps(marked, indent=1, ensure_ascii=False)
    for mark, token in tokens.items():
        out = out.replace(mark, token, 1)
    return out + "\n"


def draw(race: dict) -> str:
    """Return the race as an animated SVG, which shows its end if the reader has turned motion off."""
    slowest = max(lane["seconds"] for lane in race["ways"].values())
    slower = max(1, round(SHOWN_SECONDS / slowest))
    whole = slowest + HOLD_SECONDS / slower  # one turn of the loop, in measured seconds
    style = [
        f".t{{animation:{whole * slower:.2f}s step-end infinite}}.g{{animation:{whole * slower:.2f}s linear infinite;"
        "transform-box:fill-box;transform-origin:left}.bar{fill:var(--bar)}.judged{fill:var(--rescued-line)}",
        "@media (prefers-reduced-motion:reduce){.t,.g{animation:none}}",
    ]
    body, y = [text(MARGIN, 32, race["question"], "small soft")], 66
    for way, lane in race["ways"].items():
        lines, y = draw_lane(way, lane, y, race, whole, style)
        body += lines
    setup = race["setup"]
    threads = "one CPU thread" if setup["threads"] == 1 else f"{setup['threads']} CPU threads"
    how = (
        f"hf_judge's bundled pair on {threads}, greedy, drafts of {setup['num_assistant_tokens']} tokens; medians of "
        f"{setup['repeats']} runs. "
        + (f"Shown {slower} times slower than measured." if slower > 1 else "Shown as fast as measured.")
    )
    counts = Counter(verdict for *_, verdict in race["ways"]["judged"]["tokens"])
    body += legend(counts, y) + [text(MARGIN, y + 58, how, "small soft")]
    title = "The same answer, plain, assisted and judged: " + ", ".join(
        f"{way} {lane['seconds']:.2f} s" for way, lane in race["ways"].items()
    )
    return document(WIDTH, y + 76, title, body, "\n".join(style))


def draw_lane(way: str, lane: dict, y: float, race: dict, whole: float, style: list[str]) -> tuple[list[str], float]:
    """Draw one method: its call, a bar that grows while it runs, its tokens, and its figures when it has ended.

    Args:
        way, lane: name of the method, and what was measured.
        y: the base line of its first line.
        race: gives the time that fills the room.
        whole: measured seconds of one turn of the loop.
        style: receives the keyframes.

    Returns:
        The elements, and the base line of what follows.
    """
    slowest, plain = max(x["seconds"] for x in race["ways"].values()), race["ways"]["plain"]
    speed, plain_speed = (len(x["tokens"]) / x["seconds"] for x in (lane, plain))
    end = f"e{way}"
    style += [appears(end, lane["seconds"] / whole), grows(f"g{way}", lane["seconds"] / whole)]
    figures = f"{lane['seconds']:.2f} s, {speed:.0f} tokens/s, {speed / plain_speed:.1f}x"
    kind = "bar judged" if way == "judged" else "bar"
    body = [
        text(MARGIN, y, way, "bold"),
        text(MARGIN + 76, y, CALLS[way], "mono soft", size=12),
        f'<g class="t" style="animation-name:{end}">{text(WIDTH - MARGIN, y, figures, "bold", anchor="end")}</g>',
        box(MARGIN, y + 9, ROOM * lane["seconds"] / slowest, 4, f"{kind} g", radius=2,
            more=f' style="animation-name:g{way}"'),
    ]  # fmt: skip
    y += 34
    placed, n_lines = wrapped(lane["tokens"], int(ROOM / (GRID * SIZE)))
    for number, (seconds, together) in enumerate(groupby(placed, key=lambda token: token[3])):
        name = f"{way[0]}{number}"
        style.append(appears(name, seconds / whole))
        body.append(f'<g class="t" style="animation-name:{name}">{"".join(draw_tokens(list(together), y))}</g>')
    return body, y + n_lines * LINE + 20


def draw_tokens(placed: list[tuple], y: float) -> list[str]:
    """Draw tokens that came together: neighbours of one verdict share their box and their text."""
    boxes, elements = [], []
    runs = groupby(enumerate(placed), key=lambda x: (x[1][0], x[1][4], x[0] if x[1][4] != "matched" else 0))
    for (line, verdict, _), run in runs:
        tokens = [token for _, token in run]
        words = "".join(token[2] for token in tokens)
        x = MARGIN + grid_width(" " * (tokens[0][1] + len(words) - len(words.lstrip())))
        words, base = words.strip(), y + line * LINE
        if not words:
            continue
        if verdict:  # pale boxes lie under the outlines of their neighbours
            boxes.insert(
                0 if verdict == "matched" else len(boxes), box(x - 1.5, base - 14, grid_width(words) + 3, 19, verdict)
            )
        elements.append(text(x, base, words, "mono"))
    return boxes + elements


def wrapped(tokens: list[list], n_columns: int) -> tuple[list[tuple], int]:
    """Give every token its place: words stay whole, lines no longer than `n_columns`.

    Returns:
        (line, column, text, seconds, verdict) of each token, and the number of lines.
    """
    words = []
    for token in tokens:
        if not words or token[0].startswith(" "):
            words.append([])
        words[-1].append(token)
    placed, line, column = [], 0, 0
    for word in words:
        width = sum(len(piece) for piece, *_ in word)
        if column + width > n_columns:
            line, column = line + 1, -1  # the blank before the word falls into the margin
        for piece, seconds, verdict in word:
            placed.append((line, column, piece, seconds, verdict))
            column += len(piece)
    return placed, line + 1


def legend(counts: Counter, y: float) -> list[str]:
    """Draw what the colours of the judged lane mean, and how many tokens have each."""
    elements = []
    for number, (verdict, meaning) in enumerate(VERDICTS.items()):
        x, base = MARGIN + number % 2 * ROOM / 2, y + number // 2 * LINE
        label = f"{counts[verdict]} {verdict}"
        elements += [
            box(x, base - 14, grid_width(label) + 12, 19, verdict),
            text(x + 6, base, label, "mono"),
            text(x + grid_width(label) + 22, base, meaning, "soft"),
        ]
    return elements


def appears(name: str, share: float) -> str:
    """Return keyframes of an element that appears at that share of the loop."""
    return f"@keyframes {name}{{0%{{opacity:0}}{100 * share:.2f}%,to{{opacity:1}}}}"


def grows(name: str, share: float) -> str:
    """Return keyframes of a bar that reaches its length at that share of the loop."""
    return f"@keyframes {name}{{0%{{transform:scaleX(0)}}{100 * share:.2f}%,to{{transform:none}}}}"


if __name__ == "__main__":
    main()
