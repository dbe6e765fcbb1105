"""Makes a judge for a pair in one command: the subcommand ``make``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from hf_judge.cli.options import TASK_NAME, add_checker, add_pair, checker_of, command_line, write_json
from hf_judge.cli.terminal import natural, positive, printable, share, warn
from hf_judge.evaluation.loading import load_models
from hf_judge.files.durable import check_writable
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


def add_make(commands) -> None:
    make_ = commands.add_parser(
        "make", help="make a judge for a pair: labels, fit, threshold, figures and card, in one command"
    )
    add_pair(make_, target_help="the large model: Hub id or directory (default: the embedded pair)")
    make_.add_argument("--depth", type=int, metavar="N", help="layers of the embedded target, 4 or more (default: 24)")
    make_.add_argument(
        "--task",
        metavar="TASK",
        help=f"JSONL file of `prompt` and `answer` rows, or {TASK_NAME}; world: the embedded pair's own",
    )
    add_checker(make_, default="numeric, or the task's own")
    make_.add_argument("--problems", type=positive, metavar="N", help="use the first N problems (default: all)")
    make_.add_argument("--held-out", metavar="TASK", help="problems of the figures (default: a fifth of --task)")
    make_.add_argument(
        "--output-dir", required=True, metavar="DIR", help="folder of the head; run again to go on after a stop"
    )
    _add_settings(make_)
    make_.add_argument("--json", metavar="FILE", help="write what every step found to this file")
    make_.add_argument("--push", metavar="USER/REPO", help="publish the head on the Hub, after a look")
    make_.add_argument("--yes", action="store_true", help="for --push: do not ask")
    make_.set_defaults(run=run_make)


def _add_settings(parser) -> None:
    def number(name: str, kind, metavar: str, text: str) -> None:
        default = getattr(DEFAULTS, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)

    number("risk", float, "R", "share of mistakes that the judge may accept (default: 0.05)")
    number("margin", share, "M", "loss of accuracy that is allowed where labels are too few (default: 0.01)")
    number("confidence", float, "C", "confidence of both statements (default: 0.95)")
    parser.add_argument("--thresholds", type=float, nargs="+", metavar="T", help="candidate thresholds (default: ten)")
    parser.add_argument("--certify", action="store_true", help="demand that the bound on lost answers is within M")
    number("max-new-tokens", positive, "N", "longest answer, in tokens (default: 512)")
    number("num-assistant-tokens", positive, "N", "drafted tokens per round (default: what the first look finds best)")
    number("batch-size", positive, "N", "answers at once, but for the last measurement (default: 16)")
    number("max-prompts", positive, "N", "label at most so many prompts (default: 2000)")
    number("max-held-out", positive, "N", "measure at most so many held-out problems (default: 200)")
    number("preflight-prompts", positive, "N", "prompts of the first look (default: 20)")
    number("seed", natural, "S", "seed of the division of the problems (default: 0)")
    parser.add_argument("--force", action="store_true", help="go on where a check says that it is of no use")


def run_make(args: argparse.Namespace) -> None:
    if args.json:
        check_writable(args.json)
    if args.push:
        checked_repo_id(args.push)
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(MakeSettings) if field.name in args}
    if args.thresholds is None:
        del values["thresholds"]
    else:
        values["thresholds"] = tuple(sorted(set(args.thresholds)))
    settings = MakeSettings(**values)
    problems, held_out = _problems(args)
    pair = load_models(args.target, args.draft, dtype=args.dtype, device_map=args.device_map, depth=args.depth)
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

    return read(args.task, args.problems or 0), read(args.held_out) if args.held_out else None


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
