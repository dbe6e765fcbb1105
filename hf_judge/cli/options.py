"""Defines options that several subcommands share, and loads or writes what they name."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_judge.checking.correctness import CHECKERS, make_checker
from hf_judge.cli.terminal import DTYPES, positive
from hf_judge.evaluation.loading import loading
from hf_judge.files.durable import write_together
from hf_judge.head.adapter import read_adapter
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.prompts import Prompt
from hf_judge.publishing.record import record
from hf_judge.tasks.files import read_prompts
from hf_judge.tasks.load import load_task
from hf_judge.tasks.named import NamedTask
from hf_judge.tasks.problems import Task

TASK_NAME = "NAME[:split][:n] of `hf-judge tasks`"


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
    parser.add_argument("--checker", metavar="NAME", help=names + (f" (default: {default})" if default else ""))
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
    parser.add_argument(
        "--task", default="world", metavar="TASK", help=f"world (default), a JSONL file, or {TASK_NAME}"
    )
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


def note_on_card(args: argparse.Namespace, kind: str, task: Task, figures_of: Callable[[str, float], dict]) -> None:
    """Write what was measured into the config of every measured head that lies in a directory, for its card.

    Args:
        args: arguments of [`add_measured`].
        kind: "evaluate" or "bench".
        task: the work.
        figures_of: returns the figures of a head from its name among the rules and its threshold.
    """
    for number, name in enumerate(args.judge or []):
        if not os.path.isdir(name):
            continue
        rule = "judge" if number == 0 else f"judge:{Path(name).name}"
        prompts = [e.prompt.content if isinstance(e.prompt, Prompt) else e.prompt for e in task.examples]
        figures = figures_of(rule, read_adapter(name).config.threshold)
        if record(name, kind, task.name, figures, draft=args.draft, prompts=prompts):
            print(f"\nNoted for the card of {name} (hf-judge push {name} USER/REPO --dry-run shows it)")


def load_work(args: argparse.Namespace, n: int, *, needs_answers: bool = True) -> Task:
    """Load the first `n` examples of the task that the arguments name.

    Raises:
        ValueError: no such task or checker, a line of the file is broken, or there are no right answers.
    """
    return load_task(
        args.task,
        n,
        seed=args.seed,
        checker=args.checker,
        pattern=args.pattern,
        allow_code_execution=args.allow_code_execution,
        needs_answers=needs_answers,
    )


def add_tasks(parser, *, required: bool = True) -> None:
    """Add the options of the prompts and of their checker."""
    parser.add_argument(
        "--prompts", required=required, metavar="PATH", help=f"JSONL file, each line with `prompt`, or {TASK_NAME}"
    )
    add_checker(parser, default="numeric, or the task's own")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=512, metavar="N", help="longest answer, in tokens (default: 512)"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="prompts at once (default: 16)")


def load_model(name: str, args: argparse.Namespace) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, onto the GPU of this process where there is one.

    Raises:
        ValueError: several processes would spread their models over the same devices.
    """
    state = processes()
    if state.num_processes > 1 and args.device_map not in (None, "cpu"):
        raise ValueError(
            f"--device-map {args.device_map} in each of {state.num_processes} processes would put all their models on "
            "the same devices: drop it, or start one process"
        )
    with loading(f"the model '{name}'"):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype, device_map=args.device_map)
    if args.device_map is None and state.device.type == "cuda":
        model = model.to(state.device)
    return model.eval()


def read_tasks(path: str, named: NamedTask | None) -> tuple[list[dict], list[str]]:
    """Read the prompts of a JSONL file, or of a task that was found by its name, and name each by where it stands.

    Raises:
        ValueError: a line is no JSON object with a prompt.
    """
    if named is not None:
        found = named.problems()
        return found.rows, found.names
    lines = read_prompts(path)
    return [task for _, task in lines], [f"{path}, line {number}" for number, _ in lines]


def checker_of(args: argparse.Namespace, named: NamedTask | None) -> Callable[[str, dict], object]:
    """Make the checker that the arguments name, else that of the task that was found by its name.

    Raises:
        ValueError: the name is unknown, or an option is missing.
    """
    if args.checker is None and named is not None:
        return named.make_checker(args.allow_code_execution)
    return make_checker(args.checker or "numeric", pattern=args.pattern, allow_code_execution=args.allow_code_execution)
