"""Compares acceptance rules: the subcommand ``evaluate``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hf_judge.cli.options import add_measured, command_line, load_work, note_on_card, write_json
from hf_judge.cli.terminal import printable, table, warn
from hf_judge.evaluation.compare import compare, usable_work
from hf_judge.evaluation.evaluate import Decoding
from hf_judge.evaluation.figures import label
from hf_judge.evaluation.loading import load_models, load_texts
from hf_judge.evaluation.report import write_report
from hf_judge.files.durable import check_writable
from hf_judge.publishing.record import evaluated
from hf_judge.rules.by_name import parse_settings


def add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="compare acceptance rules: accuracy beside speed, with a report")
    add_measured(evaluate)
    evaluate.add_argument(
        "--rules", nargs="+", default=[], metavar="RULE[=V,V]", help="e.g. judge=0.5,0.9 top-k=2 (default: all)"
    )
    evaluate.add_argument("--autojudge", metavar="DIR", help="the head of the rule autojudge")
    evaluate.add_argument("--texts", metavar="FILE", help="JSONL of prompt and response: verified under every rule")
    evaluate.add_argument(
        "--num-assistant-tokens", type=int, default=16, metavar="M", help="drafted tokens per round (default: 16)"
    )
    evaluate.add_argument("--batch-size", type=int, default=1, metavar="N", help="answers at once (default: 1)")
    evaluate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    evaluate.add_argument("--report", metavar="DIR", help="write page, JSON, CSV and plots to this directory")
    evaluate.add_argument("--strict", action="store_true", help="stop at a problem or text that the models refuse")
    evaluate.add_argument("--no-plots", action="store_true", help="write no PNG files")
    evaluate.add_argument(
        "--resume", metavar="DIR", help="keep answers there and continue from them (default: answers/ in --report)"
    )
    evaluate.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    if args.json:
        check_writable(args.json)
    if args.report:
        check_writable(Path(args.report) / "report.html")
    n = args.problems if args.problems is not None else 6 if args.quick else 200
    task = load_work(args, n)
    texts = load_texts(args.texts) if args.texts else []
    pair = load_models(
        args.target,
        args.draft,
        judges=args.judge,
        autojudge=args.autojudge,
        dtype=args.dtype,
        device_map=args.device_map,
        depth=args.depth,
    )
    settings = parse_settings(args.rules, pair.heads, quick=args.quick)
    decoding = Decoding(args.num_assistant_tokens, args.max_new_tokens, args.temperature, args.seed, args.batch_size)
    if args.batch_size > 1 and not args.rules:
        settings = [setting for setting in settings if setting.rule != "assisted"]  # serves one prompt at a time
    work = usable_work(pair, task, texts, strict=args.strict)
    with tqdm(total=len(settings) * len(work.task.examples), desc="Answering", unit="answer", leave=False) as bar:
        found = compare(
            pair,
            work,
            settings,
            decoding,
            command=command_line(args),
            journal_dir=args.resume or (Path(args.report) / "answers" if args.report else None),
            n_curve_examples=8 if args.quick else 30,
            on_answer=bar.update,
        )
    warn(found["warnings"])
    print(evaluation_table(found["rules"]))
    print("\n" + "\n".join(printable(line) for line in found["summary"]))
    if found["text_rules"]:
        print("\nGiven text:\n\n" + texts_table(found["text_rules"]))
    write_json(args.json, found)
    note_on_card(args, "evaluate", work.task, partial(evaluated, found))
    if args.report:
        files = write_report(found, args.report, plots=not args.no_plots)
        print("\nWrote " + ", ".join(str(file) for file in files))


def evaluation_table(rules: list[dict]) -> str:
    """Return a table with one line per setting."""
    rows = [["", "accuracy", "95% interval", "gained/lost", "speed-up", "tokens/s", "tokens/answer", "forwards/answer"]]
    rows[0] += ["tokens/forward", "rescued"]
    for row in rules:
        low, high = row["accuracy_interval"]
        rescued = row["rescued_per_answer"]
        rows.append(
            [
                label(row),
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
    """Return a table with one line per rule: how far the rule accepts given text."""
    rows = [["", "first stretch", "mean stretch", "rescued", "rejected"]]
    for row in rules:
        stretches = [f"{row['first_accepted']:.1f}", f"{row['mean_accepted']:.1f}"]
        rows.append([label(row), *stretches, f"{row['rescued']:.1%}", f"{row['rejected']:.1%}"])
    return table(rows)
