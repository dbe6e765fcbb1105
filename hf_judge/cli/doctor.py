"""Prints one line per check, with a remedy where something is wrong: the subcommand ``doctor``."""

from __future__ import annotations

import argparse

from hf_judge.cli.inputs import write_json
from hf_judge.cli.terminal import printable
from hf_judge.doctor.run import diagnose

MARKS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def run_doctor(args: argparse.Namespace) -> int:
    names = ("dtype", "device_map", "tokenizer", "draft_tokenizer")
    found = diagnose(args.target, args.draft, args.judge, **{name: getattr(args, name) for name in names})
    for check in found.checks:
        print(f"{MARKS[check.status]:8}{check.name}: {printable(check.message)}")
        if check.remedy is not None and check.status != "ok":
            print(f"{'':8}  -> {printable(check.remedy)}")
    print("\nusable" if found.usable else "\nnot usable: see the lines marked PROBLEM")
    write_json(args.json, found.json())
    return 0 if found.usable else 1
