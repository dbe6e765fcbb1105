"""What the subcommands that measure share: their models and work, the command as it was given, files of figures.

Prints, as `cli` does.
"""

from __future__ import annotations

import argparse
import json
import shlex

from hf_judge.cli.terminal import DTYPES
from hf_judge.evaluation.tasks import Task, load_task
from hf_judge.files.durable import write_together
from hf_judge.labelling.answers import CHECKERS


def add_models(parser) -> None:
    parser.add_argument("--target", metavar="MODEL", help="Hub id or directory (default: the embedded pair)")
    parser.add_argument("--draft", metavar="MODEL", help="Hub id or directory")
    parser.add_argument(
        "--judge", action="append", metavar="DIR", help="a judge head; further ones are compared as judge:NAME"
    )
    parser.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="layers of the embedded target, from 4 on (default: 24): the same answers at other costs",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of both models (default: auto)")
    parser.add_argument("--device-map", metavar="MAP", help="of both models, e.g. auto")
    parser.add_argument("--task", default="world", metavar="TASK", help="world (default), or a JSONL file")
    parser.add_argument("--checker", metavar="NAME", help=f"of a JSONL task: {' | '.join(CHECKERS)}")
    parser.add_argument("--pattern", metavar="REGEX", help="for numeric and regex: its first group is the answer")
    parser.add_argument("--allow-code-execution", action="store_true", help="for the checker unit_tests")
    parser.add_argument("--problems", type=int, metavar="N", help="how many problems")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="per answer (default: 256)")
    parser.add_argument("--seed", type=int, default=1000, metavar="S", help="which problems (default: 1000)")
    parser.add_argument("--json", metavar="FILE", help="write every figure to this file")
    parser.add_argument("--quick", action="store_true", help="less of everything: under 3 minutes on 2 cores")


def command_line(args: argparse.Namespace) -> str:
    """The command as it was given."""
    return shlex.join(["hf-judge", *args.argv])


def write_json(path: str | None, found: dict) -> None:
    """Write the figures where `--json` says."""
    if path:
        write_together({path: json.dumps(found, indent=1) + "\n"})
        print(f"\nThe same figures are in {path}")


def load_work(args: argparse.Namespace, n: int) -> Task:
    """The first `n` examples of the task that the arguments name.

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
