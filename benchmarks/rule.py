"""Draws how one round decides: six drafted tokens, one forward of the target, strict verification and the judge.

    python benchmarks/rule.py                          # runs the embedded pair, writes docs/rule.json and docs/rule.svg
    python benchmarks/rule.py --from docs/rule.json    # draws again without running it

Tokens and scores are those of a real round: the first one, of a held-out problem, in which a token is rescued, a later
one is refused, and more follow.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from drawing import box, document, grid_width, text

from hf_judge import JudgeCandidateVerifier, JudgeHead, VerdictCode
from hf_judge.labelling.prompts import encode_prompt
from hf_judge.modeling.keywords import constant_drafts
from hf_judge.tiny import load_pair
from hf_judge.tiny.world import problems

PROBLEM = 271  # of the demo's: the draft writes "makes" for "=", which is right, and then a wrong sum
DRAFTED = 6
WIDTH, LEFT, STEP = 860, 182, 98  # LEFT: where the column of the last token stands
FORWARD, STRICT, JUDGE, STANDS = 122, 232, 318, 394  # the heights of the rows
STYLE = """
.forward{fill:none;stroke:var(--bonus-line);stroke-width:1.5}.blue{fill:var(--bonus-line)}
.arrow{fill:none;stroke:var(--bar);stroke-width:1.3;marker-end:url(#tip)}#tip path{fill:var(--bar)}
.matched{stroke:var(--matched-line)}.token{fill:none;stroke:var(--bar)}
.gone{fill:none;stroke:var(--bar);stroke-dasharray:3 4}
.yes{fill:var(--rescued-line)}.no{fill:var(--corrected-line)}.strike{stroke:var(--soft)}
"""
TIP = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
TIP += '<path d="M0 0 8 4 0 8z"/></marker>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON", help="draw this round, run nothing")
    parser.add_argument("--problem", type=int, default=PROBLEM, metavar="N", help="of the demo's held-out problems")
    parser.add_argument("--json", type=Path, default=Path("docs/rule.json"))
    parser.add_argument("--svg", type=Path, default=Path("docs/rule.svg"))
    args = parser.parse_args()
    if args.source:
        shown = json.loads(args.source.read_text(encoding="utf-8"))
    else:
        shown = find_round(args.problem)
        args.json.write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    args.svg.write_text(draw(shown), encoding="utf-8")
    for token in shown["drafted"]:
        print(f"{token['text']!r}: target {token['target']!r}, score {token['score']}, {token['verdict']}")


class Watched(JudgeCandidateVerifier):
    """The judge, which keeps what it saw and decided in every round."""

    def __init__(self, head: JudgeHead):
        super().__init__(head)
        self.rounds = []

    def verify(self, candidates, outputs):
        """Decide as the judge does."""
        verdict = super().verify(candidates, outputs)
        self.rounds.append((candidates, outputs, verdict))
        return verdict


def find_round(number: int) -> dict:
    """Answer a problem and describe its first round that shows everything.

    Returns:
        JSON values: the question, the answer so far, its last token, the threshold, and of each drafted token its text,
        the target's own choice there, the judge's score and the verdict.

    Raises:
        ValueError: no round has a rescue, a refusal behind it, and tokens behind that.
    """
    pair = load_pair(4)  # deeper ones give the same answers, and take longer
    problem = problems(number + 1, seed=0)[number]
    judge = Watched(JudgeHead.from_pretrained(pair.judge))
    ids = torch.tensor([encode_prompt(pair.tokenizer, [{"role": "user", "content": problem.question}])[1]])
    kwargs = constant_drafts(pair.draft, judge, DRAFTED)
    sequence = pair.target.generate(ids, max_new_tokens=256, do_sample=False, **kwargs)[0]
    candidates, outputs, verdict = next(filter(shows_everything, judge.rounds), (None, None, None))
    if candidates is None:
        raise ValueError(f"problem {number} has no round with a rescue and a refusal: try another one")
    codes, n_accepted = verdict.codes[0].tolist(), int(verdict.n_accepted)
    answer = sequence[ids.shape[1] :][: int(candidates.n_generated)]
    words = [pair.tokenizer.decode([token]) for token in (answer[-1].item(), *candidates.ids[0].tolist())]
    targets = [pair.tokenizer.decode([token]) for token in outputs.scores[0].argmax(dim=-1).tolist()]
    scores = judge.head(outputs.hidden[0, 1:]).sigmoid().tolist()
    verdicts = [VerdictCode(code).name.lower() for code in codes[: n_accepted + 1]]
    verdicts += ["discarded"] * (DRAFTED - len(verdicts))
    keys = ("text", "target", "score", "verdict")
    columns = zip(words[1:], targets[:-1], [round(score, 3) for score in scores], verdicts, strict=True)
    return {
        "question": problem.question,
        "answer": pair.tokenizer.decode(answer),
        "last": words[0],
        "threshold": judge.threshold,
        "drafted": [dict(zip(keys, column, strict=True)) for column in columns],
    }


def shows_everything(seen: tuple) -> bool:
    """Whether a round has a rescue, a refusal behind it, and tokens behind that."""
    codes, n_accepted = seen[2].codes[0].tolist(), int(seen[2].n_accepted)
    return VerdictCode.RESCUED in codes and VerdictCode.CORRECTED in codes and n_accepted + 2 <= DRAFTED


def draw(shown: dict) -> str:
    """Return the round as an SVG."""
    drafted = shown["drafted"]
    before = "... " + shown["answer"][-58:].split(" ", 1)[1]
    accepted = [token for token in drafted if token["verdict"] in ("matched", "rescued")]
    strict = next((i for i, token in enumerate(drafted) if token["text"] != token["target"]), len(drafted))
    body = [
        f"<defs>{TIP}</defs>",
        text(24, 32, "The answer so far:", "small soft"),
        text(142, 32, before, "mono soft", size=12),
        *row_name(78, "draft", "six tokens"),
        chip(LEFT, 74, shown["last"], "gone"),
        *forward(len(drafted)),
        *row_name(STRICT - 4, "strict", "the logits one place", "before say the same?"),
        *row_name(JUDGE - 4, "judge", "the head's score of", "the token's own state"),
        *row_name(STANDS - 8, "stands", "one yes is enough,", "up to the first refusal"),
        text(LEFT + 26, STRICT - 26, "logits", "soft", anchor="end", size=11),
        text(LEFT + STEP - 24, JUDGE - 34, "hidden state", "soft", size=11),
    ]
    for number, token in enumerate(drafted):
        body += column(LEFT + (number + 1) * STEP, token, shown["threshold"])
    n_kept, n_strict = len(accepted) + 1, min(strict + 1, len(drafted) + 1)
    notes = (
        f"One forward of the target gives {n_kept} new tokens; without the judge it would give {n_strict}.",
        "All tokens and scores are from a run of the bundled pair. A dot stands for a blank.",
    )
    body += [text(24, 468 + 20 * i, note, "small soft") for i, note in enumerate(notes)]
    title = f"One round of judged decoding: {len(drafted)} drafted tokens, {len(accepted)} of them accepted"
    return document(WIDTH, 508, title, body, STYLE)


def row_name(y: float, name: str, *meaning: str) -> list[str]:
    """Write at the left of a row what it shows."""
    lines = [text(24, y + 15 * (i + 1), line, "soft", size=11) for i, line in enumerate(meaning)]
    return [text(24, y, name, "bold"), *lines]


def forward(n_drafted: int) -> list[str]:
    """Draw the target's one forward, over the last token and all drafted ones."""
    last = LEFT + n_drafted * STEP
    middle = (LEFT + last) / 2
    return [
        *(arrow(LEFT + i * STEP, 92, LEFT + i * STEP, FORWARD) for i in range(n_drafted + 1)),
        box(LEFT - 42, FORWARD, last - LEFT + 84, 40, "forward", radius=6),
        text(middle, FORWARD + 25, "one forward of the target reads all of them", "bold blue", anchor="middle"),
        *row_name(FORWARD + 17, "target", "one row a token"),
    ]


def column(x: float, token: dict, threshold: float) -> list[str]:
    """Draw one drafted token: the decisions of strict verification and of the judge, and the verdict."""
    gone, bottom = token["verdict"] == "discarded", FORWARD + 40
    same, passed = token["text"] == token["target"], token["score"] > threshold
    strict, judge = ("soft" if gone else ("yes" if yes else "no") for yes in (same, passed))
    elements = [
        chip(x, 74, token["text"], "token"),
        arrow(x - STEP + 8, bottom, x + 8, STRICT - 19),
        chip(x + 12, STRICT, token["target"], "gone" if gone else "token", width=56),
        text(x + 12, STRICT + 29, "same" if same else "differs", f"{strict} small", anchor="middle"),
        arrow(x - 30, bottom, x - 30, JUDGE - 20),
        text(x - 8, JUDGE, f"{token['score']:.3f}", f"mono {strong(judge)}", anchor="middle"),
        text(x - 8, JUDGE + 18, f"{'above' if passed else 'below'} {threshold:g}", f"{judge} small", anchor="middle"),
    ]
    if gone:
        width = grid_width(token["text"].replace(" ", "·"))
        strike = f'<path class="strike" d="M{x - width / 2 - 3:.5g} {STANDS + 0.5}h{width + 6:.4g}"/>'
        elements += [chip(x, STANDS, token["text"], "gone", "soft"), strike]
    else:
        kept = token["target"] if token["verdict"] == "corrected" else token["text"]
        elements.append(chip(x, STANDS, kept, token["verdict"]))
    kind = "soft" if gone else "bold no" if token["verdict"] == "corrected" else "bold yes"
    return [*elements, text(x, STANDS + 34, token["verdict"], f"{kind} small", anchor="middle")]


def strong(kind: str) -> str:
    """The class in bold, unless it is of what does not count."""
    return kind if kind == "soft" else f"bold {kind}"


def chip(x: float, y: float, word: str, kind: str, ink: str = "", *, width: float = 84) -> str:
    """Draw a token in a box around (x, y)."""
    shown = word.replace(" ", "·")
    return box(x - width / 2, y - 16, width, 32, kind, radius=5) + text(
        x, y + 5, shown, f"mono {ink}".strip(), anchor="middle"
    )


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """Draw a line with a tip; a line that moves sideways is a curve."""
    middle = (y + to_y) / 2
    way = f"V{to_y:g}" if x == to_x else f"C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y:g}"
    return f'<path class="arrow" d="M{x:g} {y:g}{way}"/>'


if __name__ == "__main__":
    main()
