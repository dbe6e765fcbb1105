"""Writes a benchmark's JSON as it goes, so that a run which is stopped leaves what it had measured."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from pathlib import Path

import torch
import transformers

import hf_judge


class Recording:
    """A JSON file with the device, versions and command of this run, and one entry for each thing measured.

    Args:
        path: file to write; None: nothing is written.
    """

    def __init__(self, path: Path | None):
        cuda = torch.cuda.is_available()
        self._path = path
        self._found = {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
            "cuda": torch.version.cuda if cuda else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "hf_judge": hf_judge.__version__,
            "command": shlex.join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
            "complete": False,
        }

    def put(self, **entries) -> None:
        """Add or replace entries, and write the file."""
        self._found |= entries
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")  # a run may be killed while it writes
        partial.write_text(json.dumps(self._found, indent=1) + "\n")
        partial.replace(self._path)

    def finish(self) -> None:
        """Note that nothing is missing."""
        self.put(complete=True)
