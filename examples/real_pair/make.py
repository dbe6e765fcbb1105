"""Trains and measures a judge on a real language model, without the Hub: the whole of docs/real-language.md.

    python examples/real_pair/make.py --output-dir out/real      (make real-demo)

The pair (see pair.py) is made once, in the user's cache. All other steps are commands of `hf-judge`, which are printed
before they run. A killed run goes on where it stopped. `--smoke` does every step at a size of a minute or two; its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from page import best_settings, write_page
from pair import MAX_NEW_TOKENS, answer_questions, make_draft, make_target, weights_directory
from questions import questions, write_questions
from transformers import AutoTokenizer

from hf_judge.files.durable import write_together

HERE = Path(__file__).resolve().parent
BATCH = 50  # prompts that are mined at once
MEASURED_AT_ONCE = 32  # problems: a killed run has lost at most so many of each rule
DRAFTED = 12  # tokens a round
RULES = (
    "strict",
    "judge=0.1,0.3,0.5,0.7,0.9",
    "kl=1,0.3",
    "typical=0.1,0.3",
    "top-k=2",
    "relaxed=0.7,0.4",
    "ensemble=0.5,0.8",
    "thresholds=0.1,0.3",
    "fly=0.3",
    "mars=0.8",
    "random=0.1",
)
"""Settings that are tried on the part "choose", for each rule from lenient to strict."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    kept: tuple[int, ...]  # layers of the target that the draft starts from
    answers: int  # of the target, that the draft learns from
    steps: int  # of the draft's training, 16 answers each
    label: int  # prompts that are labelled
    choose: int  # problems on which every rule's number is chosen
    test: int  # other problems, on which the chosen settings are measured
    rules: tuple[str, ...] = RULES
    train_options: str = ""


FULL = Size(kept=(0, 1, 2, 5, 9, 14, 19, 24, 28, 29), answers=1024, steps=300, label=200, choose=32, test=300)
SMOKE = Size(
    kept=tuple(i for i in range(30) if i != 20),  # such a draft writes sense without training
    answers=8,
    steps=1,
    label=12,
    choose=3,
    test=3,
    rules=("strict", "judge=0.5", "top-k=2"),
    train_options="--validation-fraction 0.5 --calibration-fraction 0",
)


def cache_directory() -> Path:
    """Return the folder of the pair: `real-pair` in the user's cache of hf-judge."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf-judge" / "real-pair"


def make_pair(cache: Path, size: Size) -> tuple[Path, Path]:
    """Make target and draft, unless the cache has them; return their directories."""
    cache.mkdir(parents=True, exist_ok=True)
    target, answers = cache / "target", cache / f"answers-{size.answers}.jsonl"
    draft = cache / f"draft-{len(size.kept)}-layers-{size.answers}-answers-{size.steps}-steps"
    if not target.exists():
        make_target(target)
    if not draft.exists():
        answer_questions(target, AutoTokenizer.from_pretrained(target), questions("draft", size.answers), answers)
        figures = make_draft(target, answers, draft, kept=size.kept, steps=size.steps)
        write_together({draft / "distilled.json": json.dumps(figures, indent=1) + "\n"})
    return target, draft


class Commands:
    """Runs commands of `hf-judge` in the output directory, and keeps what they printed and how long they took."""

    def __init__(self, directory: Path):
        self._directory, self._path = directory, directory / "steps.json"
        self.steps = json.loads(self._path.read_text()) if self._path.exists() else {}

    def run(self, name: str, words: str, *, may_refuse: bool = False) -> None:
        """Run a command that was not finished before.

        Args:
            name: key of the command among the steps.
            words: subcommand and options, as in a shell; paths are relative to the output directory.
            may_refuse: let the command exit with 2, as `calibrate` does without enough evidence.

        Raises:
            SystemExit: the command failed.
        """
        command = ["hf-judge", *shlex.split(words)]
        if self.steps.get(name, {}).get("command") == shlex.join(command):
            return
        print(f"\n$ {shlex.join(command)}", flush=True)
        started = time.monotonic()
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, "-m", "hf_judge.cli", *command[1:]],
            cwd=self._directory,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if may_refuse else None,
            text=True,
        )
        said = done.stdout + "".join((done.stderr or "").splitlines(keepends=True)[-1:])  # a refusal is the last line
        print(said, flush=True)
        if done.returncode not in ((0, 2) if may_refuse else (0,)):
            raise SystemExit(f"{shlex.join(command)} failed with {done.returncode}: run it again to go on")
        self.steps[name] = {
            "command": shlex.join(command),
            "seconds": round(time.monotonic() - started),
            "said": said,
        }
        write_together({self._path: json.dumps(self.steps, indent=1) + "\n"})


def judge(target: Path, draft: Path, directory: Path, size: Size) -> Commands:
    """Label, fit, calibrate, choose every rule's number, and measure, by the commands of `hf-judge`."""
    for part, n in (("label", size.label), ("choose", size.choose), ("test", None)):
        write_questions(directory / f"{part}.jsonl", questions(part, n))
    commands, pair = Commands(directory), f"--target {shlex.quote(str(target))} --draft {shlex.quote(str(draft))}"
    answers = f"--checker questions:answer --max-new-tokens {MAX_NEW_TOKENS}"
    commands.run("mine", f"mine {pair} --task label.jsonl {answers} --batch-size {BATCH} --output labels.jsonl")
    commands.run("features", f"features --target {shlex.quote(str(target))} --data labels.jsonl --output-dir features")
    commands.run("train", f"train --features features --output-dir judge --plot {size.train_options}")
    commands.run("calibrate", "calibrate --judge judge --features features --risk 0.1", may_refuse=True)
    answers += f" --batch-size {MEASURED_AT_ONCE}"
    evaluate = f"evaluate {pair} --judge judge {answers} --num-assistant-tokens {DRAFTED}"
    choose = f"--task choose.jsonl --problems {size.choose} --report choose --no-plots --rules {' '.join(size.rules)}"
    commands.run("choose", f"{evaluate} {choose}")
    chosen = best_settings(json.loads((directory / "choose" / "report.json").read_text())["rules"])
    test = f"--task test.jsonl --problems {size.test}"
    commands.run("test", f"{evaluate} {test} --report test --rules {' '.join(chosen)}")
    alone = pair.replace(f"--target {shlex.quote(str(target))}", f"--target {shlex.quote(str(draft))}")
    commands.run("draft_alone", f"evaluate {alone} {answers} {test} --report draft_alone --no-plots --rules plain")
    return commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of labels, features, head and reports")
    parser.add_argument("--cache-dir", type=Path, help="folder of the pair (default: in the user's cache)")
    parser.add_argument("--page", type=Path, help="page to write (default: real-language.md in the output directory)")
    parser.add_argument("--smoke", action="store_true", help="every step at a tiny size")
    parser.add_argument("--problems", type=int, metavar="N", help=f"to measure on (default: {FULL.test})")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        weights_directory()
    except ImportError as error:
        parser.error(str(error))
    size, directory = SMOKE if args.smoke else FULL, args.output_dir.resolve()
    size = replace(size, test=args.problems or size.test)
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    started = time.monotonic()
    target, draft = make_pair((args.cache_dir or cache_directory()).resolve(), size)
    commands = judge(target, draft, directory, size)
    page = args.page or directory / "real-language.md"
    write_page(page, directory, target, draft, commands.steps)
    print(f"\nWrote {page} and {directory / 'test' / 'report.html'} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
