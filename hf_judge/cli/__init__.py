"""Runs the command line, ``hf-judge``. This is the only package that prints."""

from hf_judge.cli.commands import main

__all__ = ["main"]
