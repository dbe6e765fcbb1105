"""The subcommands that measure: evaluate, bench. Prints, as `cli` does."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from hf_judge.bench import bench, paper_check, simulate
from hf_judge.evaluation import Decoding
from hf_judge.measuring import compare, load_models, load_texts, setup
from hf_judge.report import write_report
from hf_judge.settings import parse_settings
from hf_judge.tasks import load_task
from hf_judge.terminal import printable, table


def add_measuring_commands(commands) -> None:
    """Add the subcommands to the parser's."""
    add_evaluate(commands)
    add_bench(commands)


def run_evaluate(args: argparse.Namespace) -> None:

    models = {"judges": args.judge, "autojudge": args.autojudge, "dtype": args.dtype, "device_map": args.device_map}
    pair = load_models(args.target, args.draft, **models)
    settings = parse_settings(args.rules, pair.heads, quick=args.quick)
    n = args.problems if args.problems is not None else 8 if args.quick else 200
    task = load_task(args.task, n, seed=args.seed, checker=args.checker, allow_code_execution=args.allow_code_execution)
    decoding = Decoding(args.num_assistant_tokens, args.max_new_tokens, args.temperature, args.seed)
    texts = load_texts(args.texts) if args.texts else []
    journal = args.resume or (Path(args.report) / "answers" if args.report else None)
    with tqdm(total=len(settings) * len(task.examples), desc="Answering", unit="answer", leave=False) as bar:
        found = compare(
            pair,
            task,
            settings,
            decoding,
            command=command_line(args),
            journal_dir=journal,
            texts=texts,
            n_curve_examples=8 if args.quick else 30,
            on_answer=bar.update,
        )
    for warning in found["warnings"]:
        print(f"hf-judge: warning: {printable(warning)}", file=sys.stderr)
    print(evaluation_table(found["rules"]))
    print("\n" + "\n".join(printable(line) for line in found["summary"]))
    if found["text_rules"]:
        print("\nGiven text:\n\n" + texts_table(found["text_rules"]))
    write_json(args.json, found)
    if args.report:
        files = write_report(found, args.report, plots=not args.no_plots)
        print("\nWrote " + ", ".join(str(file) for file in files))


def evaluation_table(rules: list[dict]) -> str:
    """One line per setting."""
    rows = [["", "accuracy", "95% interval", "gained/lost", "speed-up", "tokens/s", "tokens/answer", "forwards/answer"]]
    rows[0] += ["tokens/forward", "rescued"]
    for row in rules:
        low, high = row["accuracy_interval"]
        rescued = row["rescued_per_answer"]
        rows.append(
            [
                row["rule"] if row["threshold"] is None else f"{row['rule']} {row['number']} {row['threshold']:g}",
                f"{row['accuracy']:.1%}",
                f"{low:.1%}-{high:.1%}",
                f"{row['gained']}/{row['lost']}",
                f"{row['speedup']:.2f}x",
                f"{row['tokens_per_second']:.0f}",
                f"{row['answer_tokens']:.1f}",
                f"{row['forwards_per_answer']:.1f}",
                f"{row['tokens_per_forward']:.2f}",
                "-" if rescued is None else f"{rescued:.1f}",
            ]
        )
    return table(rows)


def texts_table(rules: list[dict]) -> str:
    """One line per rule: how far it follows given text."""
    rows = [["", "first stretch", "mean stretch", "rescued", "rejected"]]
    for row in rules:
        name = row["rule"] if row["threshold"] is None else f"{row['rule']} {row['number']} {row['threshold']:g}"
        stretches = [f"{row['first_accepted']:.1f}", f"{row['mean_accepted']:.1f}"]
        rows.append([name, *stretches, f"{row['rescued']:.1%}", f"{row['rejected']:.1%}"])
    return table(rows)


def run_bench(args: argparse.Namespace) -> None:
    if args.simulate is not None:
        found = {"simulation": simulate(**simulation_numbers(args.simulate)), "paper": paper_check()}
        print(simulation_text(found))
        write_json(args.json, found)
        return
    pair = load_models(args.target, args.draft, judges=args.judge, dtype=args.dtype, device_map=args.device_map)
    task = load_task(args.task, args.problems or (2 if args.quick else 6), seed=args.seed)
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
            repeats=args.repeats or (2 if args.quick else 5),
            max_new_tokens=args.max_new_tokens,
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
    for way, why in found["unsupported"].items():
        print(f"Not measured: {way} ({printable(why)})")
    print(f"Upstream's best setting: {found['upstream_setting']}\nRecommended: {found['recommendation']['text']}")
    write_json(args.json, found)


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


def command_line(args: argparse.Namespace) -> str:
    """The command as it was given."""
    return shlex.join(["hf-judge", *args.argv])


def write_json(path: str | None, found: dict) -> None:
    """Write the figures where `--json` says."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(found, indent=1) + "\n")
        print(f"\nThe same figures are in {path}")


def add_models(parser) -> None:
    parser.add_argument("--target", metavar="MODEL", help="Hub id or directory (default: the embedded pair)")
    parser.add_argument("--draft", metavar="MODEL", help="Hub id or directory")
    parser.add_argument(
        "--judge", action="append", metavar="DIR", help="a judge head; further ones are compared as judge:NAME"
    )
    parser.add_argument("--dtype", default="auto", help="of both models (default: auto)")
    parser.add_argument("--device-map", metavar="MAP", help="of both models, e.g. auto")
    parser.add_argument("--task", default="world", metavar="TASK", help="world (default), or a JSONL file")
    parser.add_argument("--problems", type=int, metavar="N", help="how many problems")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="per answer (default: 256)")
    parser.add_argument("--seed", type=int, default=1000, metavar="S", help="which problems (default: 1000)")
    parser.add_argument("--json", metavar="FILE", help="write every figure to this file")
    parser.add_argument("--quick", action="store_true", help="less of everything: under 3 minutes on 2 cores")


def add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="compare acceptance rules: accuracy beside speed, with a report")
    add_models(evaluate)
    evaluate.add_argument(
        "--rules", nargs="+", default=[], metavar="RULE[=V,V]", help="e.g. judge=0.5,0.9 top-k=2 (default: all)"
    )
    evaluate.add_argument("--autojudge", metavar="DIR", help="the head of the rule autojudge")
    evaluate.add_argument("--checker", metavar="CHECKER", help="of a JSONL task: numeric, regex:PATTERN, choice, ...")
    evaluate.add_argument("--allow-code-execution", action="store_true", help="for the checker unit_tests")
    evaluate.add_argument("--texts", metavar="FILE", help="JSONL with prompt and response: given text under every rule")
    evaluate.add_argument(
        "--num-assistant-tokens", type=int, default=16, metavar="M", help="drafted tokens per round (default: 16)"
    )
    evaluate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    evaluate.add_argument("--report", metavar="DIR", help="write the page, JSON, CSV and plots there")
    evaluate.add_argument("--no-plots", action="store_true", help="no PNG files, which need matplotlib")
    evaluate.add_argument("--resume", metavar="DIR", help="keep answers there (default: answers/ in --report)")
    evaluate.set_defaults(run=run_evaluate)


def add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="measure the speed of a pair on this machine, and what to set")
    add_models(parser)
    parser.add_argument("--lengths", type=int, nargs="+", metavar="M", help="draft lengths")
    parser.add_argument("--thresholds", type=float, nargs="+", metavar="T", help="beside the head's own")
    parser.add_argument("--repeats", type=int, metavar="N", help="of the whole work, interleaved")
    parser.add_argument(
        "--simulate", nargs="+", metavar="NAME=NUMBER", help="predict instead of measuring: m=19.7 M=25 c=0.02 [v=1]"
    )
    parser.set_defaults(run=run_bench)
