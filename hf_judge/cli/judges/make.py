"""Makes a judge for a pair in one command: the subcommand ``make``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from hf_judge.cli.inputs import checker_of, command_line, loading_options, tell_fewer, write_json
from hf_judge.cli.terminal import printable, warn
from hf_judge.evaluation.loading import load_models
from hf_judge.head.judge_head import JudgeHead
from hf_judge.head.repository.publish import checked_repo_id, is_base_unknown
from hf_judge.making.make import MadeJudge, make
from hf_judge.making.problems import world_problems
from hf_judge.making.settings import MakeSettings
from hf_judge.tasks.files import file_problems
from hf_judge.tasks.named import find_named
from hf_judge.tasks.problems import Problems

WORLD = 300, 200  # problems of the embedded world: to make the judge from, and held out

DEFAULTS = MakeSettings()


def run_make(args: argparse.Namespace) -> None:
    if args.push:
        checked_repo_id(args.push)
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(MakeSettings) if field.name in args}
    if args.thresholds is None:
        del values["thresholds"]
    else:
        values["thresholds"] = tuple(sorted(set(args.thresholds)))
    settings = MakeSettings(**values)
    problems, held_out = _problems(args)
    pair = load_models(args.target, args.draft, **loading_options(args))
    pair.heads.clear()  # the embedded pair has a judge; another is made
    made = make(
        pair.target,
        pair.draft,
        pair.tokenizer,
        problems,
        args.output_dir,
        settings=settings,
        held_out=held_out,
        draft_tokenizer=pair.draft_tokenizer,
        say=lambda text: print(printable(text), flush=True),
        command=command_line(args),
    )
    print(f"\n{made.in_plain_words}")
    print(
        f"\n{args.output_dir}: the head (generate(judge={args.output_dir!r})), its card README.md, report/report.html"
    )
    write_json(args.json, dataclasses.asdict(made))
    if args.push:
        _push(args, made)


def _problems(args: argparse.Namespace) -> tuple[Problems, Problems | None]:
    """Read the problems to make a judge from, and those of the figures if they are others."""
    if args.task in (None, "world"):
        if args.target is not None and args.task is None:
            raise ValueError("make needs --task: a JSONL file whose rows have `prompt` and `answer`")
        if args.held_out:
            raise ValueError("--held-out goes with a --task of your own: the world has its own held-out problems")
        n, n_held_out = args.problems or WORLD[0], WORLD[1]
        return world_problems(n, part="label"), world_problems(n_held_out, part="test")

    def read(task: str, n: int = 0) -> Problems:
        named = find_named(task)
        checker = checker_of(args, named)
        if named is not None:
            return named.problems(n, checker)
        if not os.path.isfile(task):
            raise ValueError(
                f"no task {task!r}: expected 'world', the path of a JSONL file, or a name that `hf-judge tasks` lists"
            )
        name = (args.checker or "numeric") + (f":{args.pattern}" if args.pattern else "")
        return file_problems(task, checker, name, n)

    found = read(args.task, args.problems or 0)
    tell_fewer(args.problems, len(found.rows), args.task)
    return found, read(args.held_out) if args.held_out else None


def _push(args: argparse.Namespace, made: MadeJudge) -> None:
    head = JudgeHead.from_pretrained(made.output_dir)
    base_unknown = is_base_unknown(head.config)
    if base_unknown:
        warn(["the target is not on the Hub: the card will say that its commit is unknown"])
    if not args.yes:
        if not sys.stdin.isatty():
            raise ValueError(f"--push asks before it publishes: pass --yes, or run `hf-judge push {made.output_dir}`")
        if input(f"Publish {made.output_dir} as {args.push}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Not published.")
            return
    done = head.push_to_hub(args.push, base_unknown=base_unknown)
    print(done.pr_url or done.commit_url)
