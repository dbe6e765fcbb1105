"""Prints one line per check, with a remedy where something is wrong: the subcommand ``doctor``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_judge.cli.options import add_pair
from hf_judge.cli.terminal import printable
from hf_judge.doctor.run import diagnose

MARKS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def add_doctor(commands) -> None:
    doctor = commands.add_parser(
        "doctor", help="check versions, devices and a pair of models; what a bug report starts with"
    )
    add_pair(
        doctor,
        target_help="the large model: Hub id or directory (default: the embedded pair)",
        draft_help="the small model: Hub id or directory (default: the target itself)",
    )
    doctor.add_argument("--judge", metavar="ID", help="the judge head: Hub id or directory")
    doctor.add_argument("--json", metavar="FILE", help="write everything that was found to this file")
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    if args.json:
        Path(args.json).touch()  # an unwritable file is refused now, not after the work is done
    found = diagnose(args.target, args.draft, args.judge, dtype=args.dtype, device_map=args.device_map)
    for check in found.checks:
        print(f"{MARKS[check.status]:8}{check.name}: {printable(check.message)}")
        if check.remedy is not None and check.status != "ok":
            print(f"{'':8}  -> {printable(check.remedy)}")
    print("\nusable" if found.usable else "\nnot usable: see the lines marked PROBLEM")
    if args.json:
        Path(args.json).write_text(json.dumps(found.json(), indent=1) + "\n", encoding="utf-8")
        print(f"Everything is in {args.json}")
    return 0 if found.usable else 1
