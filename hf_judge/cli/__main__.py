"""Runs the command line as ``python -m hf_judge.cli``."""

import sys

from hf_judge.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
