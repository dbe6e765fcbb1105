"""Read the models, prompts and checkers that the commands which make a judge share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_judge.cli.terminal import DTYPES, positive
from hf_judge.evaluation.loading import loading
from hf_judge.files.jsonl import read_jsonl_lines
from hf_judge.labelling.answers import CHECKERS, make_checker, needed_key, reference
from hf_judge.labelling.jobs import processes
from hf_judge.labelling.prompts import prompt_of


def add_models(parser, *, target_required: bool = True, draft_required: bool = True, draft: str = "") -> None:
    """Add the options of the models; `draft` says more about the draft."""
    parser.add_argument("--target", required=target_required, metavar="ID", help="the large model: Hub id or directory")
    parser.add_argument("--draft", required=draft_required, metavar="ID", help=f"the small model{draft}")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="dtype of the weights (default: auto, the stored one)"
    )
    parser.add_argument("--device-map", default=None, metavar="MAP", help='as in from_pretrained, e.g. "auto"')


def add_tasks(parser, *, required: bool = True) -> None:
    """Add the options of the prompts and of their checker."""
    parser.add_argument("--prompts", required=required, metavar="PATH", help="JSONL file, each line with `prompt`")
    parser.add_argument("--checker", default="numeric", metavar="NAME", help=" | ".join(CHECKERS))
    parser.add_argument("--pattern", metavar="REGEX", help="for numeric and regex: its first group is the answer")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="for unit_tests: run code that a model wrote in a limited process, which is no sandbox against malice",
    )
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


def read_tasks(path: str, checker: Callable | None = None) -> tuple[list[dict], list[str]]:
    """Read the prompts of a JSONL file, and name each by its file and line.

    Args:
        path: the file.
        checker: checker whose reference every line must hold beside its prompt; None: prompts alone are read.

    Raises:
        ValueError: a line is no JSON object with a prompt, or lacks the reference.
    """
    wanted = None if checker is None else needed_key(checker)
    holds = f"a JSON object with 'prompt' and '{wanted}'" if wanted else "a JSON object with 'prompt'"

    def checked(row: dict) -> dict:
        prompt_of(row)
        if wanted and row.get(wanted) is None:
            raise ValueError(f"expected {holds}, got the keys {sorted(row)!s:.120}")
        if wanted == "answer":
            reference(checker, row)
        return row

    lines = list(read_jsonl_lines(path, checked, holds=holds))
    if not lines:
        raise ValueError(f"{path} holds no prompts: expected JSONL, each line {holds}")
    return [task for _, task in lines], [f"{path}, line {number}" for number, _ in lines]


def checker_of(args: argparse.Namespace) -> Callable[[str, dict], object]:
    """Make the checker that the arguments name.

    Raises:
        ValueError: the name is unknown, or an option is missing.
    """
    return make_checker(args.checker, pattern=args.pattern, allow_code_execution=args.allow_code_execution)
