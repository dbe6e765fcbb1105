"""The command line, ``hf-judge``. The only package that prints."""

from hf_judge.cli.commands import main

__all__ = ["main"]
