"""Loads what the shared options name, and writes their outputs."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.checking.correctness import make_checker
from hf_judge.cli.terminal import warn
from hf_judge.evaluation.loading import load_tokenizers, loading
from hf_judge.files.durable import write_together
from hf_judge.head.adapter import read_adapter
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.prompts import Prompt
from hf_judge.publishing.record import record
from hf_judge.tasks.files import read_prompts
from hf_judge.tasks.load import load_task
from hf_judge.tasks.named import NamedTask
from hf_judge.tasks.problems import Task


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
    task = load_task(
        args.task,
        n,
        seed=args.seed,
        checker=args.checker,
        pattern=args.pattern,
        allow_code_execution=args.allow_code_execution,
        needs_answers=needs_answers,
    )
    tell_fewer(n if args.problems else None, len(task.examples), args.task)
    return task


def loading_options(args: argparse.Namespace) -> dict:
    """Return the keywords of `load_models` that come from the options of a pair."""
    names = ("dtype", "device_map", "depth", "tokenizer", "draft_tokenizer")
    return {name: getattr(args, name) for name in names}


def load_pair_tokenizers(args: argparse.Namespace) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Load the tokenizers of the pair that the arguments name; see [`hf_judge.evaluation.loading.load_tokenizers`].

    Raises:
        ValueError, OSError: a tokenizer cannot be loaded, or the two disagree.
    """
    return load_tokenizers(args.target, args.draft, args.tokenizer, args.draft_tokenizer)


def tell_fewer(asked: int | None, found: int, name: str) -> None:
    """Say that a task has fewer problems than `--problems` asked for."""
    if asked and found < asked:
        warn([f"--problems {asked}: '{name}' has {found}, and all of them are taken"])


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
