"""Writes what the real pair has shown: a table of all rules, judged answers, what was rescued, labels and costs.

Only the part of the page between the two marks is written; what people wrote around it stays.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from hf_judge.checking.statistics import mcnemar_p, ratio_interval
from hf_judge.evaluation.detokenizer import pieces
from hf_judge.files.durable import write_together
from hf_judge.files.jsonl import read_jsonl_lines
from hf_judge.labelling.prompts import encode_prompt, prompt_of
from hf_judge.training.metrics import described
from hf_judge.verify.stats import VerdictCode

START, END = "<!-- written by examples/real_pair/page.py: figures -->", "<!-- end of the figures -->"
ALLOWED_LOSS = 0.01  # of accuracy, against strict verification
N_SHOWN = 20
ACCEPTED = (VerdictCode.MATCHED, VerdictCode.RESCUED)


def best_settings(rows: list[dict]) -> list[str]:
    """Choose each rule's number: most accepted tokens within the allowed loss; else the strictest, which comes last.

    The loss is against strict verification, which is the target's own choice at every token. It is not against plain
    decoding: in bfloat16 the two round differently, and some answers differ for this reason alone.

    Args:
        rows: figures of `hf-judge evaluate`, "plain" first, each rule from lenient to strict.

    Returns:
        Words for `--rules`, in the order of the rules.
    """
    floor, chosen = floor_of(rows), {}
    for row in rows[1:]:
        best = chosen.get(row["rule"])
        fits = row["accuracy"] >= floor
        if (
            best is None
            or best["accuracy"] < floor
            or (fits and row["accepted_per_forward"] > best["accepted_per_forward"])
        ):
            chosen[row["rule"]] = row
    return [name_of(row) for row in chosen.values()]


def floor_of(rows: list[dict]) -> float:
    """Return the lowest accuracy that is allowed: a little below that of strict verification."""
    return next(row for row in rows if row["rule"] == "strict")["accuracy"] - ALLOWED_LOSS - 1e-9


def name_of(row: dict) -> str:
    """Name a setting as on the command line, e.g. ``judge=0.5``."""
    return row["rule"] if row["threshold"] is None else f"{row['rule']}={row['threshold']:g}"


@dataclass
class Measured:
    """The answers of one setting, in the order of the problems; the fields are lists over the problems."""

    right: list[bool] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    codes: list[list[int] | None] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)

    @property
    def accepted(self) -> list[int]:
        """Drafted tokens that stand in each answer."""
        return [sum(code in ACCEPTED for code in codes or ()) for codes in self.codes]

    @property
    def accepted_per_forward(self) -> float:
        """Accepted tokens per forward of the target, over all answers."""
        return sum(self.accepted) / sum(self.forwards)


def read_answers(directory: Path) -> dict[str, Measured]:
    """Read the answers that `hf-judge evaluate --report` kept: setting -> answers in the order of the problems."""
    found: dict[str, dict[int, dict]] = {}
    for path in sorted(directory.glob("process-*.jsonl")):
        for line in path.read_text().splitlines()[1:]:
            record = json.loads(line)
            setting, _, number = record["key"].partition(" | ")
            found.setdefault(setting.partition(" ")[0], {})[int(number)] = record["value"]
    measured = {}
    for setting, answers in found.items():
        rows = [answers[number] for number in sorted(answers)]
        columns = ("right", "tokens", "codes", "forwards")
        measured[setting] = Measured(*([row[name] for row in rows] for name in columns))
    return measured


def quotient_interval(one: Measured, other: Measured, *, n_draws: int = 2000) -> tuple[float, float]:
    """Return a 95% interval of the quotient of accepted tokens per forward: percentile bootstrap over the problems."""
    draw, n, found = random.Random(0), len(one.right), []
    sums = [one.accepted, one.forwards, other.accepted, other.forwards]
    for _ in range(n_draws):
        chosen = draw.choices(range(n), k=n)
        accepted, forwards, others, other_forwards = (sum(column[i] for i in chosen) for column in sums)
        found.append(accepted / forwards / max(others / other_forwards, 1e-9))
    found.sort()
    return found[int(0.025 * n_draws)], found[int(0.975 * n_draws)]


@dataclass
class Shown:
    """One judged answer, token by token."""

    question: dict
    right: bool
    plain_right: bool
    pieces: list[str]
    codes: list[int]
    own: list[str]  # what the target would have written in place of each token

    @property
    def outcome(self) -> str:
        """What the judge did to the answer."""
        if self.right == self.plain_right:
            return "right with and without the judge" if self.right else "wrong with and without the judge"
        return "gained: wrong without the judge" if self.right else "lost: right without the judge"

    @property
    def rescues(self) -> list[tuple[str, str]]:
        """Every rescued token with the target's own."""
        places = zip(self.pieces, self.codes, self.own, strict=True)
        return [(piece, own) for piece, code, own in places if code == VerdictCode.RESCUED]

    def marked(self) -> str:
        """Return the answer in Markdown, rescued tokens bold with the target's own token behind."""
        text = ""
        for piece, code, own in zip(self.pieces, self.codes, self.own, strict=True):
            if code == VerdictCode.RESCUED:
                blank = " " if piece.startswith(" ") else ""
                text += f"{blank}**{plain(piece.strip()) or '(blank)'}** [{plain(own.strip()) or '(blank)'}]"
            else:
                text += "" if piece == "<|im_end|>" else plain(piece)
        return text


def plain(text: str) -> str:
    """Return text on one line that Markdown shows as it is."""
    text = " ".join(text.splitlines())
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return text


@torch.no_grad()
def shown(target_directory: Path, problems: list[dict], judged: Measured, plain_right: list[bool]) -> list[Shown]:
    """Read judged answers with the target, which says what it would have written at every token."""
    tokenizer = AutoTokenizer.from_pretrained(target_directory)
    target = LlamaForCausalLM.from_pretrained(target_directory).eval()
    found = []
    for question, right, tokens, codes, without in zip(
        problems, judged.right, judged.tokens, judged.codes, plain_right, strict=True
    ):
        ids = encode_prompt(tokenizer, prompt_of(question))[1]
        logits = target(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
        own = [tokenizer.decode([token]) for token in logits.argmax(-1).tolist()]
        found.append(Shown(question, right, without, pieces(tokenizer, tokens), codes, own))
    return found


def sort_of(piece: str, own: str) -> str:
    """Tell what a rescued token is, by the token and the target's own in its place."""
    both = piece + own
    if any(c.isdigit() for c in both):
        return "number"
    if not any(c.isalpha() for c in both):
        return "punctuation"
    if any(word[:1].isupper() for word in (piece.strip(), own.strip())):
        return "name, place, day or start of a sentence"
    return "other words and parts of words"


def header(*columns: str) -> list[str]:
    """Return the first two lines of a table in Markdown."""
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def rescue_table(answers: list[Shown]) -> list[str]:
    """Count the rescued tokens by sort and by what became of the answer."""
    counts: dict[str, Counter] = {}
    examples: dict[str, Counter] = {}
    for one in answers:
        for piece, own in one.rescues:
            sort = sort_of(piece, own)
            counts.setdefault(sort, Counter())[one.outcome.partition(":")[0]] += 1
            examples.setdefault(sort, Counter())[f"{plain(piece.strip())} [{plain(own.strip())}]"] += 1
    lines = header("rescued", "tokens", "in answers that stay right", "gained", "lost", "wrong anyway", "most often")
    for sort, found in sorted(counts.items(), key=lambda item: -item[1].total()):
        often = ", ".join(f"{text} ({n})" for text, n in examples[sort].most_common(4))
        outcomes = ("right with and without the judge", "gained", "lost", "wrong with and without the judge")
        lines.append(f"| {sort} | {found.total()} | " + " | ".join(str(found[o]) for o in outcomes) + f" | {often} |")
    return lines


def rules_table(rows: list[dict], measured: dict[str, Measured]) -> list[str]:
    """Show every rule at the number that was chosen on other problems."""
    columns = ("rule", "right", "95% interval", "lost / gained", "McNemar p", "accepted per forward", "95% interval")
    lines = header(*columns, "tokens per answer")
    for row in rows:
        own = measured[name_of(row)]
        low, high = row["accuracy_interval"]
        if row["rule"] == "plain":
            accepted, changed, p = "- | -", "-", "-"
        else:
            interval = ratio_interval(own.accepted, own.forwards)
            accepted = f"{own.accepted_per_forward:.2f} | {interval[0]:.2f} to {interval[1]:.2f}"
            changed, p = f"{row['lost']} / {row['gained']}", f"{row['mcnemar_p']:.2g}"
        lines.append(
            f"| `{name_of(row)}` | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | {changed} | {p} | {accepted} | "
            f"{row['answer_tokens']:.1f} |"
        )
    return lines


def tried_table(tried: dict) -> list[str]:
    """Show every setting that was tried where the numbers were chosen: accuracy and accepted tokens."""
    rows, lines = tried["rules"], header("rule", "each number that was tried: right, accepted per forward")
    for rule in dict.fromkeys(row["rule"] for row in rows):
        cells = [
            f"{'' if row['threshold'] is None else format(row['threshold'], 'g') + ': '}{row['accuracy']:.1%}"
            + ("" if rule == "plain" else f", {row['accepted_per_forward']:.2f}")
            for row in rows
            if row["rule"] == rule
        ]
        lines.append(f"| `{rule}` | {'; '.join(cells)} |")
    return lines


def verdict_on_the_judge(rows: list[dict], measured: dict[str, Measured]) -> list[str]:
    """Compare the judge with strict verification and with the best rule without training."""
    names = [name_of(row) for row in rows]
    judge = next(row for row in rows if row["rule"] == "judge")
    own, floor = measured[name_of(judge)], floor_of(rows)
    free = [row for row in rows if row["rule"] not in ("plain", "strict", "judge") and row["accuracy"] >= floor]
    lines = [
        f"The judge (`{name_of(judge)}`) is right in {judge['accuracy']:.1%}, the target alone in "
        f"{rows[0]['accuracy']:.1%} ({judge['lost']} lost, {judge['gained']} gained, McNemar p "
        f"{mcnemar_p(judge['gained'], judge['lost']):.2g}).",
    ]
    others = ["strict"] if "strict" in names else []
    if free:
        others.append(name_of(max(free, key=lambda row: row["accepted_per_forward"])))
    for name in others:
        low, high = quotient_interval(own, measured[name])
        factor = own.accepted_per_forward / max(measured[name].accepted_per_forward, 1e-9)
        free_rule = f"`{name}`, the best rule without training that loses at most 1 point here"
        what = "strict verification" if name == "strict" else free_rule
        times = f"{factor:.2f} times as many tokens per forward as {what} (95% interval {low:.2f} to {high:.2f})"
        lines.append(f"It accepts {times}.")
    if not free:
        lines.append("No rule without training stays within 1 point of strict verification here.")
    return lines


def kinds_table(answers: list[Shown], alone: Measured) -> list[str]:
    """Show by kind of question who is right."""
    lines = header("kind", "problems", "target alone", "judged", "draft alone", "draft, where the target is right")
    kinds = sorted({one.question["kind"] for one in answers})
    for kind in [*kinds, "all"]:
        chosen = [i for i, one in enumerate(answers) if kind in (one.question["kind"], "all")]
        n = len(chosen)
        target, judged = (sum(getattr(answers[i], name) for i in chosen) for name in ("plain_right", "right"))
        draft = sum(alone.right[i] for i in chosen)
        both = sum(alone.right[i] and answers[i].plain_right for i in chosen)
        lines.append(
            f"| {kind} | {n} | {target / n:.1%} | {judged / n:.1%} | {draft / n:.1%} | {both / max(target, 1):.0%} |"
        )
    return lines


def example_lines(answers: list[Shown]) -> list[str]:
    """Choose answers with rescued tokens, lost and gained ones first, and show them."""
    with_rescues = [one for one in answers if one.rescues]
    lines, n = [], 0
    limits = {"lost": 7, "gained": 3, "right with": N_SHOWN, "wrong with": N_SHOWN}
    chosen = {start: [one for one in with_rescues if one.outcome.startswith(start)] for start in limits}
    limits["right with"] = N_SHOWN - 3 - sum(min(len(chosen[s]), limits[s]) for s in ("lost", "gained"))
    for start, limit in limits.items():
        group = chosen[start][: min(limit, N_SHOWN - n)]
        n += len(group)
        if group:
            lines += [
                "",
                f"**{group[0].outcome.capitalize()}** ({len(chosen[start])} of {len(answers)} with rescued tokens):",
                "",
            ]
        lines += [f"- {plain(one.question['prompt'][-1]['content'])}<br>{one.marked()}" for one in group]
    return lines


def label_lines(directory: Path, steps: dict) -> list[str]:
    """Tell how many labels there were, and what the head learned from them."""
    metrics = json.loads((directory / "judge" / "judge_metrics.json").read_text())
    lines = [f"- {line}" for line in steps["mine"]["said"].strip().splitlines()[:6]]
    lines.append(f"- on the validation tokens: {described(metrics)}")
    calibrated = steps["calibrate"]["said"].strip().splitlines()
    return [*lines, f"- `calibrate --risk 0.1` says: {calibrated[-1]}"]


def write_page(path: Path, directory: Path, target: Path, draft: Path, steps: dict) -> None:
    """Write the figures into the page.

    Args:
        path: the page; made if there is none, else its part between the marks is replaced.
        directory: output of the commands.
        target, draft: directories of the models.
        steps: command, seconds and output of every step.

    Raises:
        ValueError: the page has no marks.
    """
    report, tried = (json.loads((directory / part / "report.json").read_text()) for part in ("test", "choose"))
    measured = read_answers(directory / "test" / "answers")
    alone = read_answers(directory / "draft_alone" / "answers")["plain"]
    judge_name = name_of(next(row for row in report["rules"] if row["rule"] == "judge"))
    problems = [row for _, row in read_jsonl_lines(directory / "test.jsonl", dict, holds="a problem")]
    answers = shown(target, problems[: report["setup"]["n"]], measured[judge_name], measured["plain"].right)
    distilled = json.loads((draft / "distilled.json").read_text())
    lines = [START, "", *summary_lines(report, distilled, steps)]
    lines += [
        "",
        "### The rules",
        "",
        *rules_table(report["rules"], measured),
        "",
        *verdict_on_the_judge(report["rules"], measured),
    ]
    lines += ["", "### What was tried on the other problems", "", *tried_table(tried)]
    lines += ["", "### By kind of question", "", *kinds_table(answers, alone)]
    lines += ["", "### What is rescued", "", *rescue_table(answers)]
    lines += ["", "### Labels", "", *label_lines(directory, steps), "", "### Costs", "", *cost_lines(steps, distilled)]
    lines += ["", f"### {N_SHOWN} judged answers", "", LEGEND, *example_lines(answers), "", END]
    put_figures(path, "\n".join(lines))


def put_figures(path: Path, figures: str) -> None:
    """Write the figures into a page between its marks, or a new page.

    Raises:
        ValueError: the page has no marks.
    """
    before, after = HEADING, "\n"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        if START not in text or END not in text:
            raise ValueError(f"{path} has no place for the figures: expected the lines {START!r} and {END!r}")
        before, after = text.partition(START)[0], text.partition(END)[2]
    write_together({path: before + figures + after})


HEADING = "# A judge on real language\n\n"
LEGEND = (
    "A rescued token is **bold**; behind it, in brackets, stands the token that the target would have written. All "
    "other tokens are the target's own or drafted tokens that it agrees with."
)


def summary_lines(report: dict, distilled: dict, steps: dict) -> list[str]:
    """Tell what was measured, on what, and with which command."""
    setup = report["setup"]
    chosen = steps["choose"]["command"].split("--problems ")[1].split()[0]
    versions = f"transformers {setup['transformers']}, torch {setup['torch']}"
    return [
        f"Measured on {setup['n']} problems: {setup['machine']}, {setup['dtype']}, {versions}, {setup['date']}; greedy "
        f"decoding, drafts of {setup['num_assistant_tokens']} tokens. The number of every rule was chosen on {chosen} "
        "other problems: the one with most accepted tokens whose accuracy is at most 1 point below that of strict "
        "verification, else the strictest that was tried.",
        "",
        f"The draft has {distilled['layers']} of the target's 30 layers and was distilled for {distilled['steps']} "
        f"steps on {distilled['answers']} of the target's answers; on other answers it chooses the target's token in "
        f"{distilled['agreement']:.0%} of the places.",
    ]


def cost_lines(steps: dict, distilled: dict) -> list[str]:
    """Show every step with its seconds and its command."""
    lines = header("step", "seconds", "command")
    if "seconds" in distilled:
        lines.append(f"| the draft | {distilled['seconds']} | (in make.py) |")
    for name, step in steps.items():
        command = step["command"]
        for models in ("--target", "--draft"):
            words = command.split()
            if models in words:
                command = command.replace(words[words.index(models) + 1], models.strip("-").upper())
        lines.append(f"| {name} | {step['seconds']} | `{command}` |")
    return lines
