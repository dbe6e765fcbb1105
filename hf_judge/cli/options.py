"""Defines the words of the command line, once for all subcommands, and the options that several of them share.

One thing has one name: `--target`, `--draft`, `--judge`, `--task`, `--output` (a file) and `--output-dir` (a folder).
Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import typing
from pathlib import Path

from hf_judge.checking.correctness import CHECKERS
from hf_judge.cli.terminal import DTYPES, natural, positive, warn
from hf_judge.files.durable import check_writable

MODEL = "Hub id or directory"
TASK_NAME = "NAME[:split][:n] of `hf-judge tasks`"
FROM_FILE_CHECKER = "numeric, or the task's own"  # the checker where none is named


class Help(argparse.HelpFormatter):
    """Names the default of every option that has one, unless its text does."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unset = action.default is None or action.default is False or action.default == argparse.SUPPRESS
        if "(default" in text or unset or not action.option_strings:
            return text
        return text + " (default: %(default)s)"

    def _expand_help(self, action: argparse.Action) -> str:
        values = action.default
        if not isinstance(values, (list, tuple)):
            return super()._expand_help(action)
        action.default = " ".join(map(str, values)) or None  # as one types them
        try:
            return super()._expand_help(action)
        finally:
            action.default = values


class _Renamed(argparse.Action):
    """Stores a value; an old name of the option, which its help does not show, is told the new one."""

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string not in self.option_strings:
            new = self.option_strings[0]
            warn([f"{option_string} is now called {new}: the old name will be removed in 0.3"])
        setattr(namespace, self.dest, values)


def add_renamed(parser, name: str, *old: str, **options: typing.Any) -> None:
    """Add an option that also takes its names of earlier releases, with a warning.

    Args:
        parser: the parser, or a group of it.
        name: its name, e.g. "--target".
        *old: its earlier names.
        **options: as `add_argument`.
    """
    added = parser.add_argument(name, *old, action=_Renamed, **options)
    added.option_strings = [name]


def add_target(parser, text: str = f"the large model: {MODEL}", **options: typing.Any) -> None:
    """Add `--target`."""
    add_renamed(parser, "--target", "--model", metavar="MODEL", help=text, **options)


def add_draft(parser, text: str = f"the small model: {MODEL}", **options: typing.Any) -> None:
    """Add `--draft`."""
    add_renamed(parser, "--draft", "--assistant", metavar="MODEL", help=text, **options)


def add_judge(parser, text: str = f"the judge head: {MODEL}", **options: typing.Any) -> None:
    """Add `--judge`."""
    add_renamed(parser, "--judge", "--head", metavar="JUDGE", help=text, **options)


def add_task(parser, text: str, **options: typing.Any) -> None:
    """Add `--task`."""
    add_renamed(parser, "--task", "--prompts", metavar="TASK", help=text, **options)


def add_output(parser, text: str) -> None:
    """Add `--output`, the file that a command makes."""
    add_renamed(parser, "--output", "--output-dir", required=True, metavar="FILE", help=text)


def add_output_dir(parser, text: str, **options: typing.Any) -> None:
    """Add `--output-dir`, the folder that a command makes."""
    add_renamed(parser, "--output-dir", "--output", metavar="DIR", help=text, **options)


def add_json(parser, text: str = "write every figure to this file") -> None:
    """Add `--json`."""
    parser.add_argument("--json", metavar="FILE", help=f"{text} (default: none is written)")


def add_tokenizers(parser) -> None:
    """Add the options that name the tokenizers of models that come without."""
    parser.add_argument(
        "--tokenizer", metavar="ID", help=f"the target's tokenizer: {MODEL} (default: the one beside the target)"
    )
    parser.add_argument(
        "--draft-tokenizer",
        metavar="ID",
        help=f"the draft's tokenizer: {MODEL} (default: the one beside the draft, else the target's)",
    )


def add_loading(parser, device_map: str | None = None, unset: str = "a GPU if there is one, else the CPU") -> None:
    """Add the options that say how models are loaded."""
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="dtype of the weights (default: auto, which is as stored)"
    )
    unset = "" if device_map else f" (default: {unset})"
    parser.add_argument(
        "--device-map", default=device_map, metavar="MAP", help=f"device_map of from_pretrained, e.g. auto{unset}"
    )


def add_pair(
    parser,
    *,
    target_required: bool = False,
    draft_required: bool = False,
    target_help: str = f"the large model: {MODEL}",
    draft_help: str = f"the small model: {MODEL}",
    device_unset: str = "a GPU if there is one, else the CPU",
) -> None:
    """Add the options that name and load two models."""
    add_target(parser, target_help, required=target_required)
    add_draft(parser, draft_help, required=draft_required)
    add_tokenizers(parser)
    add_loading(parser, unset=device_unset)


def add_checker(parser, default: str) -> None:
    """Add the options that name the checker of a JSONL file."""
    parser.add_argument("--checker", metavar="NAME", help=f"{' | '.join(CHECKERS)} (default: {default})")
    parser.add_argument(
        "--pattern",
        metavar="REGEX",
        help="for numeric and regex: its first group is the answer (default: the last number, none for regex)",
    )
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="for unit_tests: run code that a model wrote in a limited process, which is no sandbox against malice",
    )


def add_tasks(parser, *, required: bool = True) -> None:
    """Add the options of the prompts and of their checker."""
    add_task(parser, f"JSONL file, each line with `prompt` and `answer`, or {TASK_NAME}", required=required)
    add_problems(parser)
    add_checker(parser, FROM_FILE_CHECKER)
    add_max_new_tokens(parser, 512)
    add_batch_size(parser, 16)


def add_problems(parser, default: str = "all") -> None:
    """Add `--problems`."""
    parser.add_argument(
        "--problems",
        type=natural,
        metavar="N",
        help=f"take the first N problems of the task, 0 for all (default: {default})",
    )


def add_max_new_tokens(parser, default: int) -> None:
    """Add `--max-new-tokens`."""
    parser.add_argument(
        "--max-new-tokens", type=positive, default=default, metavar="N", help="longest answer, in tokens"
    )


def add_batch_size(parser, default: int, what: str = "prompts") -> None:
    """Add `--batch-size`."""
    parser.add_argument("--batch-size", type=positive, default=default, metavar="N", help=f"{what} at once")


def add_num_assistant_tokens(parser, default: int | None, unset: str = "") -> None:
    """Add `--num-assistant-tokens`."""
    text = "tokens that are drafted per round"
    parser.add_argument(
        "--num-assistant-tokens",
        type=positive,
        default=default,
        metavar="N",
        help=f"{text} (default: {unset})" if unset else text,
    )


def add_depth(parser) -> None:
    """Add `--depth`."""
    parser.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="layers of the embedded target, 4 or more (default: 24): changes speed, not answers",
    )


def add_measured(parser, problems: str) -> None:
    """Add what the measuring subcommands share: models, heads, work, and the file of figures."""
    add_pair(
        parser,
        target_help=f"the large model: {MODEL} (default: the embedded pair)",
        draft_help=f"the small model: {MODEL} (default: the embedded pair)",
        device_unset="the CPU",
    )
    parser.add_argument(
        "--judge",
        action="append",
        metavar="JUDGE",
        help=f"a judge head: {MODEL}; further ones are compared as judge:NAME (default: none, or the embedded pair's)",
    )
    add_depth(parser)
    add_task(
        parser,
        f"world, which is the embedded pair's own, a JSONL file of `prompt` and `answer` rows, or {TASK_NAME}",
        default="world",
    )
    add_checker(parser, "the task's own; a file needs one")
    add_problems(parser, problems)
    add_max_new_tokens(parser, 256)
    parser.add_argument("--seed", type=int, default=1000, metavar="S", help="selects the problems of the world")
    add_json(parser)
    parser.add_argument("--quick", action="store_true", help="a smaller run: under 3 minutes on 2 cores")


REPORT_FILES = ("", "report.html", "report.json", "rules.csv")  # "": the folder itself


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written, before anything is read or computed.

    Raises:
        OSError: a file or folder of `--output`, `--output-dir`, `--json`, `--report` or `--resume` cannot be written.
        ValueError: `--json` names a file of the report.
    """
    for name in ("output", "json"):
        if getattr(args, name, None):
            check_writable(getattr(args, name))
    for name in ("output_dir", "report", "resume"):
        if getattr(args, name, None):
            check_writable(Path(getattr(args, name)) / "any")
    report = getattr(args, "report", None)
    if report and args.json and Path(args.json).resolve() in [Path(report).resolve() / name for name in REPORT_FILES]:
        raise ValueError(
            f"--json {args.json} is a file that --report writes: choose another name (the same figures will be in "
            f"'{Path(report) / 'report.json'}')"
        )
