"""Trains a judge on labels that exist, steps marked right or wrong, and measures it with `hf-judge evaluate`.

The labels have TRL's stepwise format, as many datasets on the Hub. Here they are made for the embedded pair: solutions
by the world's rules, every other one with a slip. For your pair, take a public dataset (docs/import-labels.md).
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from hf_judge.cli import main
from hf_judge.tiny.mistakes import MISTAKES, solve_wrongly
from hf_judge.tiny.pair import HOME
from hf_judge.tiny.world import Style, problems, solve

n_problems, n_evaluated = sys.argv[1:] or ("400", "20")
rng, place, lines = random.Random(0), Path(tempfile.mkdtemp()), []
for n, problem in enumerate(problems(int(n_problems), seed=5, part="label")):
    style, kind = Style(draft=0.7), MISTAKES[n // 2 % len(MISTAKES)]
    text, wrong_from = solve_wrongly(problem, rng, style, kind=kind) if n % 2 else (solve(problem, rng, style), None)
    steps = text.replace(". ", ".|").split("|")
    ends = [len(" ".join(steps[: i + 1])) for i in range(len(steps))]
    labels = [wrong_from is None or end <= wrong_from for end in ends]
    prompt = [{"role": "user", "content": problem.question}]
    lines.append(json.dumps({"prompt": prompt, "completions": steps, "labels": labels}))
(place / "steps.jsonl").write_text("\n".join(lines))

target, draft = ("--target", str(HOME / "target")), ("--draft", str(HOME / "draft"))
data, rows, features, judge = (str(place / name) for name in ("steps.jsonl", "labels.jsonl", "features", "judge"))
evaluated = ("--judge", judge, "--rules", "strict", "judge=0.5", "--problems", n_evaluated)
for command in (
    ("import", "trl", data, "--output", rows, "--step-separator", " ", "--balanced"),
    ("features", *target, "--data", rows, "--output", features),
    ("train", "--features", features, "--output-dir", judge, "--calibration-fraction", "0"),
    ("evaluate", *target, *draft, *evaluated),
):
    assert main(list(command)) == 0, command
