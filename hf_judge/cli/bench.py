"""The subcommand bench. Prints, as `cli` does."""

from __future__ import annotations

import argparse
import shutil
import sys

import torch
from tqdm import tqdm
from transformers import CompileConfig

from hf_judge.bench.formula import paper_check, simulate
from hf_judge.bench.run import bench
from hf_judge.cli.options import add_models, command_line, load_work, write_json
from hf_judge.cli.terminal import printable, table
from hf_judge.evaluation.compare import load_models, refusals, setup
from hf_judge.files.durable import check_writable


def add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="measure the speed of a pair on this machine, and what to set")
    add_models(parser)
    parser.add_argument("--lengths", type=int, nargs="+", metavar="M", help="draft lengths")
    parser.add_argument("--thresholds", type=float, nargs="+", metavar="T", help="beside the head's own")
    parser.add_argument("--repeats", type=int, metavar="N", help="of the whole work, interleaved")
    parser.add_argument("--no-compile", action="store_true", help="measure nothing compiled: no waiting for compilers")
    parser.add_argument(
        "--simulate", nargs="+", metavar="NAME=NUMBER", help="predict instead of measuring: m=19.7 M=25 c=0.02 [v=1]"
    )
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> None:
    if args.simulate is not None:
        found = {"simulation": simulate(**simulation_numbers(args.simulate)), "paper": paper_check()}
        print(simulation_text(found))
        write_json(args.json, found)
        return
    n = args.problems if args.problems is not None else 2 if args.quick else 8
    task = load_work(args, n)
    if args.json:
        check_writable(args.json)
    pair = load_models(
        args.target, args.draft, judges=args.judge, dtype=args.dtype, device_map=args.device_map, depth=args.depth
    )
    task, refused = pair.usable(task)
    lengths = tuple(args.lengths or ((16, 32) if args.quick else (8, 16, 32, 48)))
    with tqdm(desc="Measuring", unit="step", leave=False) as bar:

        def on_step(text: str) -> None:
            bar.set_description(text, refresh=False)
            bar.update()

        found = bench(
            pair,
            task,
            lengths=lengths,
            thresholds=tuple(args.thresholds or ()),
            repeats=args.repeats if args.repeats is not None else 2 if args.quick else 5,
            max_new_tokens=args.max_new_tokens,
            compile_config=None if args.quick or args.no_compile or not can_compile() else CompileConfig(),
            quick=args.quick,
            on_step=on_step,
        )
    found["setup"] = setup(pair, command_line(args)) | {"task": task.name, "n": len(task.examples), "seed": args.seed}
    print(bench_table(found["ways"]))
    costs = found["costs"]
    print(
        f"\nOne target forward {1000 * costs['target_seconds']:.1f} ms, one of the draft "
        f"{1000 * costs['draft_seconds']:.1f} ms: cost ratio c = {costs['cost_ratio']:.3f}. Verifying M + 1 tokens "
        "costs v = "
        + ", ".join(f"{cost:.2f} (M={m})" for m, cost in costs["verify_cost"].items())
        + " forwards of one token."
    )
    for name, floor in ({f"M={m}": f for m, f in found["floor"].items()} | {"batch": found["floor_batch8"]}).items():
        print(
            f"Floor, {name}: {1000 * floor['seconds_per_round']:.1f} ms for the forwards of a round; the engine takes "
            f"{1000 * floor['engine_seconds_per_round']:.1f} ms: {floor['share']:.2f} of the floor's speed."
        )
    for warning in refusals("problems", refused):
        print(f"hf-judge: warning: {printable(warning)}", file=sys.stderr)
    for way, why in found["unsupported"].items():
        print(f"Not measured: {way} ({printable(why)})")
    print(f"Upstream's best setting: {found['upstream_setting']}\nRecommended: {found['recommendation']['text']}")
    write_json(args.json, found)


def can_compile() -> bool:
    """Whether torch has what it generates code with: a GPU, or a C++ compiler."""
    return torch.cuda.is_available() or any(map(shutil.which, ("g++", "clang++", "cl")))


def bench_table(ways: list[dict]) -> str:
    """One line per way."""
    rows = [["", "tokens/s", "spread", "to plain", "accepted", "predicted", "with v", "draft/verify/judge/rest"]]
    for way in ways:
        low, high = way["tokens_per_second_spread"]
        shares = way.get("share_of_time", {})
        rows.append(
            [
                way["way"],
                f"{way['tokens_per_second']:.0f}",
                f"{low:.0f}-{high:.0f}",
                f"{way['ratio_to_plain']:.2f}x",
                *(f"{way[key]:.1f}" if key in way else "-" for key in ("accepted_per_forward",)),
                *(f"{way[key]:.2f}x" if key in way else "-" for key in ("predicted", "predicted_with_verify_cost")),
                "/".join(f"{share:.0%}" for share in shares.values()) or "-",
            ]
        )
    return table(rows)


def simulation_numbers(words: list[str]) -> dict[str, float]:
    """``m=19.7 M=25 c=0.02 v=1`` as the arguments of `simulate`; c may come as ``draft=8 target=405``.

    Raises:
        ValueError: an unknown name, no number, or one is missing.
    """
    names = {"m": "accepted", "M": "n_drafted", "c": "cost_ratio", "v": "verify_cost"}
    numbers = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in (*names, "draft", "target"):
            raise ValueError(f"--simulate takes m=, M=, c= (or draft= and target=) and v=, got {word!r}")
        try:
            numbers[name] = float(value)
        except ValueError:
            raise ValueError(f"--simulate: {word!r} is no number") from None
    if "draft" in numbers and "target" in numbers and numbers["target"] > 0:
        numbers["c"] = numbers.pop("draft") / numbers.pop("target")
    missing = [name for name in ("m", "M", "c") if name not in numbers]
    if missing:
        raise ValueError(f"--simulate needs m=, M= and c= (or draft= and target=); missing: {', '.join(missing)}")
    if numbers["M"] != int(numbers["M"]) or numbers["M"] < 1:
        raise ValueError(f"--simulate: M must be a whole number from 1 on, got {numbers['M']:g}")
    numbers["M"] = int(numbers["M"])
    return {names[name]: value for name, value in numbers.items() if name in names}


def simulation_text(found: dict) -> str:
    """The prediction, and the paper's figures beside the formula."""
    one = found["simulation"]
    text = (
        f"(m + 1) / (M c + v) with m = {one['m']:g}, M = {one['M']}, c = {one['c']:.4g}, v = {one['v']:g}: "
        f"{one['speedup']:.2f}x\nThat is a per-token acceptance of {one['acceptance_rate']:.3f}; at the same one the "
        f"best M is {one['best_M']}, with {one['best_speedup']:.2f}x.\n\n"
        "The paper's figures (8B draft, 405B target; c by parameters: 8/405 = 0.0198; the M behind them is not "
        "known):\n\n"
    )
    rows = [["", "M", "m", "published", "formula, c=0.0198", "c that would give it"]]
    for row in found["paper"]:
        rows.append(
            [
                row["figure"],
                str(row["M"]),
                f"{row['m']}",
                f"{row['published']}x",
                f"{row['predicted']:.1f}x",
                f"{row['implied_c']:.3f}",
            ]
        )
    return text + table(rows)
