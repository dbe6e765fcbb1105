"""Defines options that several subcommands share, and loads or writes what these options name."""

from __future__ import annotations

import argparse
import json
import shlex

from hf_judge.cli.terminal import DTYPES
from hf_judge.evaluation.tasks import Task, load_task
from hf_judge.files.durable import write_together
from hf_judge.labelling.answers import CHECKERS


def add_pair(
    parser,
    *,
    target_required: bool = False,
    draft_required: bool = False,
    target_help: str = "the large model: Hub id or directory",
    draft_help: str = "the small model: Hub id or directory",
) -> None:
    """Add the options that name and load two models."""
    parser.add_argument("--target", required=target_required, metavar="MODEL", help=target_help)
    parser.add_argument("--draft", required=draft_required, metavar="MODEL", help=draft_help)
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="dtype of the weights (default: as stored)")
    parser.add_argument("--device-map", metavar="MAP", help="device_map of from_pretrained, e.g. auto")


def add_checker(parser, *, default: str | None = None) -> None:
    """Add the options that name the checker of a JSONL file."""
    names = " | ".join(CHECKERS)
    parser.add_argument(
        "--checker", default=default, metavar="NAME", help=names + (f" (default: {default})" if default else "")
    )
    parser.add_argument("--pattern", metavar="REGEX", help="for numeric and regex: its first group is the answer")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="for unit_tests: run code that a model wrote in a limited process, which is no sandbox against malice",
    )


def add_measured(parser) -> None:
    """Add what the measuring subcommands share: models, heads, work, and the file of figures."""
    add_pair(parser, target_help="the large model: Hub id or directory (default: the embedded pair)")
    parser.add_argument(
        "--judge", action="append", metavar="DIR", help="a judge head; further heads are compared as judge:NAME"
    )
    parser.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="layers of the embedded target, 4 or more (default: 24): changes speed, not answers",
    )
    parser.add_argument("--task", default="world", metavar="TASK", help="world (default), or a JSONL file")
    add_checker(parser)
    parser.add_argument("--problems", type=int, metavar="N", help="number of problems")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="limit per answer (default: 256)")
    parser.add_argument("--seed", type=int, default=1000, metavar="S", help="selects the problems (default: 1000)")
    parser.add_argument("--json", metavar="FILE", help="write every figure to this file")
    parser.add_argument("--quick", action="store_true", help="a smaller run: under 3 minutes on 2 cores")


def command_line(args: argparse.Namespace) -> str:
    """Return the command as it was given."""
    return shlex.join(["hf-judge", *args.argv])


def write_json(path: str | None, found: dict) -> None:
    """Write the figures to the file of `--json`, if there is one."""
    if path:
        write_together({path: json.dumps(found, indent=1) + "\n"})
        print(f"\nThe same figures are in {path}")


def load_work(args: argparse.Namespace, n: int) -> Task:
    """Load the first `n` examples of the task that the arguments name.

    Raises:
        ValueError: no such task or checker, or a line of the file is broken.
    """
    return load_task(
        args.task,
        n,
        seed=args.seed,
        checker=args.checker,
        pattern=args.pattern,
        allow_code_execution=args.allow_code_execution,
    )
