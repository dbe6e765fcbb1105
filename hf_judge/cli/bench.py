"""Measures speed: the subcommand ``bench``."""

from __future__ import annotations

import argparse
import shutil

import torch
from tqdm import tqdm
from transformers import CompileConfig

from hf_judge.bench.run import BenchOptions, bench
from hf_judge.cli.inputs import command_line, load_work, loading_options, note_on_card, write_json
from hf_judge.cli.terminal import printable, table, warn
from hf_judge.evaluation.compare import setup, usable_work
from hf_judge.evaluation.loading import load_models
from hf_judge.publishing.record import benched


def run_bench(args: argparse.Namespace) -> None:
    n = args.problems if args.problems is not None else 2 if args.quick else 8
    task = load_work(args, n, needs_answers=False)
    pair = load_models(args.target, args.draft, judges=args.judge, **loading_options(args))
    options = BenchOptions(
        lengths=tuple(args.lengths or ((16, 32) if args.quick else (8, 16, 32, 48))),
        thresholds=tuple(args.thresholds or ()),
        repeats=args.repeats if args.repeats is not None else 2 if args.quick else 5,
        max_new_tokens=args.max_new_tokens,
        compile_config=None if args.quick or args.no_compile or not can_compile() else CompileConfig(),
        quick=args.quick,
    )
    work = usable_work(pair, task)
    with tqdm(desc="Measuring", unit="step", leave=False) as bar:

        def on_step(text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update()

        found = bench(pair, work.task, options, on_step=on_step)
    n = len(work.task.examples)
    found["setup"] = setup(pair, command_line(args)) | {"task": work.task.name, "n": n, "seed": args.seed}
    warn(work.warnings)
    print(bench_table(found["ways"]))
    print("\n".join(findings(found)))
    write_json(args.json, found)
    if args.judge:  # bench measures the first one
        args.judge = args.judge[:1]
        note_on_card(args, "bench", work.task, lambda rule, threshold: benched(found))


def can_compile() -> bool:
    """Return whether torch can compile: it needs a GPU or a C++ compiler."""
    return torch.cuda.is_available() or any(map(shutil.which, ("g++", "clang++", "cl")))


def bench_table(methods: list[dict]) -> str:
    """Return a table with one line per method."""
    rows = [["", "tokens/s", "spread", "to plain", "accepted", "predicted", "with v", "draft/verify/judge/rest"]]
    for row in methods:
        low, high = row["tokens_per_second_spread"]
        shares = row.get("share_of_time", {})
        rows.append(
            [
                row["way"],
                f"{row['tokens_per_second']:.0f}",
                f"{low:.0f}-{high:.0f}",
                f"{row['ratio_to_plain']:.2f}x",
                f"{row['accepted_per_forward']:.1f}",
                *(f"{row[key]:.2f}x" if key in row else "-" for key in ("predicted", "predicted_with_verify_cost")),
                "/".join(f"{share:.0%}" for share in shares.values()) or "-",
            ]
        )
    return table(rows)


def findings(found: dict) -> list[str]:
    """Return the lines under the table: costs, floors, what was not measured, and the recommendation."""
    costs, floors = found["costs"], {f"M={m}": floor for m, floor in found["floor"].items()}
    verify_costs = ", ".join(f"{cost:.2f} (M={m})" for m, cost in costs["verify_cost"].items())
    lines = [
        "",
        f"One target forward {1000 * costs['target_seconds']:.1f} ms, one of the draft "
        f"{1000 * costs['draft_seconds']:.1f} ms: cost ratio c = {costs['cost_ratio']:.3f}. Verifying M + 1 tokens "
        f"costs v = {verify_costs} forwards of one token.",
    ]
    for name, floor in (floors | {"batch": found["floor_batch8"]}).items():
        lines.append(
            f"Floor, {name}: {1000 * floor['seconds_per_round']:.1f} ms for the forwards of a round; the engine takes "
            f"{1000 * floor['engine_seconds_per_round']:.1f} ms: {floor['share']:.2f} of the floor's speed."
        )
    lines += [f"Not measured: {name} ({printable(why)})" for name, why in found["unsupported"].items()]
    lines.append(f"Upstream's best setting: {found['upstream_setting']}")
    return [*lines, f"Recommended: {found['recommendation']['text']}"]
