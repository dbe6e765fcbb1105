"""Runs the command line ``hf-judge``: its parser, the start of the module that does the work, and its errors."""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import os
import sys
import typing

from safetensors import SafetensorError

import hf_judge
from hf_judge.cli.options import Help, check_outputs
from hf_judge.cli.parsers.heads import add_calibrate, add_make, add_push, add_search, add_train
from hf_judge.cli.parsers.labels import add_features, add_import, add_info, add_mine
from hf_judge.cli.parsers.measures import (
    add_bench,
    add_demo,
    add_doctor,
    add_evaluate,
    add_generate,
    add_tasks_command,
)
from hf_judge.cli.terminal import printable

ORDER = (
    *(add_demo, add_doctor, add_make, add_mine, add_import, add_features, add_train, add_calibrate, add_info),
    *(add_tasks_command, add_evaluate, add_bench, add_generate, add_push, add_search),
)  # of the subcommands in the help


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in the same way as every other error; subcommands inherit it."""

    def __init__(self, **options):
        super().__init__(**options, formatter_class=functools.partial(Help, max_help_position=30))

    def error(self, message: str) -> typing.NoReturn:
        command = self.prog.removeprefix("hf-judge").strip()
        print_error(f"{f'{command}: ' if command else ''}{message} (see {self.prog} --help)")
        self.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all subcommands."""
    parser = _Parser(prog="hf-judge", description="Judge Decoding for Hugging Face generate().")
    parser.add_argument("--version", action="version", version=f"hf-judge {hf_judge.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for add in ORDER:
        add(commands)
    return parser


def print_error(message: str) -> None:
    """Print an error as one line on stderr, whatever the message quotes."""
    print(f"hf-judge: error: {printable(' '.join(message.split()))}", file=sys.stderr)


def work_of(args: argparse.Namespace) -> typing.Callable[[argparse.Namespace], int | None]:
    """Import what the command needs, torch and transformers among it, and return the function that does its work."""
    importlib.import_module("hf_judge.integrations.public")  # registers judge heads with PEFT
    module, _, name = args.run.partition(":")
    return getattr(importlib.import_module(f"hf_judge.cli.{module}"), name)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        0; 2 after an error that a user can mend, which is one line on stderr; what the command itself returns.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may support fewer characters than a model
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        check_outputs(args)
        return work_of(args)(args) or 0
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        print_error(str(error) or type(error).__name__)
        return 2
    except SystemExit as error:  # of a user's function: without this, half of the work would end with the exit code 0
        print_error(f"a function of the task called sys.exit({error.code!r}): raise an error in its place")
        return 2
    except (RuntimeError, AssertionError, OverflowError) as error:  # torch raises these for devices and numbers
        if "HF_JUDGE_TRACEBACK" in os.environ:
            raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        print_error(f"{first_line} ({type(error).__name__}; HF_JUDGE_TRACEBACK=1 shows where; see `hf-judge doctor`)")
        return 2
    except KeyboardInterrupt:
        print("\nhf-judge: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
