"""Compares acceptance rules: the subcommand ``evaluate``; and lists the work: ``tasks``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hf_judge.cli.inputs import command_line, load_work, loading_options, note_on_card, write_json
from hf_judge.cli.terminal import printable, table, warn
from hf_judge.evaluation.calibrated.findings import calibration_sentences
from hf_judge.evaluation.calibrated.values import choose
from hf_judge.evaluation.compare import Work, compare, usable_work
from hf_judge.evaluation.evaluate import Decoding
from hf_judge.evaluation.figures import label
from hf_judge.evaluation.loading import load_models, load_texts
from hf_judge.evaluation.report import write_report
from hf_judge.publishing.record import evaluated
from hf_judge.rules.by_name import Setting, parse_settings
from hf_judge.tasks.table import TASKS


def run_evaluate(args: argparse.Namespace) -> None:
    calibrated = _calibration(args)
    if args.batch_size > 1 and any(rule.partition("=")[0] == "assisted" for rule in args.rules):
        raise ValueError(
            f"the rule assisted is transformers' own loop, which serves one prompt at a time; got --batch-size "
            f"{args.batch_size}: leave out --batch-size, or the rule"
        )
    n = args.problems if args.problems is not None else 6 if args.quick else 200
    if args.calibration_problems is None:
        args.calibration_problems = n
    task = load_work(args, n + args.calibration_problems if calibrated else n)
    texts = load_texts(args.texts) if args.texts else []
    pair = load_models(
        args.target,
        args.draft,
        judges=args.judge,
        autojudge=args.autojudge,
        diversed=args.diversed,
        takes_eagle3=True,
        **loading_options(args),
    )
    settings = parse_settings(args.rules, pair.heads, quick=args.quick)
    if args.batch_size > 1 and set(args.rules) <= {"all"}:
        settings = [setting for setting in settings if setting.rule != "assisted"]  # serves one prompt at a time
    work = usable_work(pair, task, texts, strict=args.strict)
    temperatures = args.temperature or ([0.0, 1.0] if calibrated else [0.0])
    runs = []
    for temperature in temperatures:
        # with several temperatures, a batch size is of greedy decoding: sampling serves one problem at a time
        batch_size = 1 if temperature > 0 and len(temperatures) > 1 else args.batch_size
        decoding = Decoding(args.num_assistant_tokens, args.max_new_tokens, temperature, args.seed, batch_size)
        folder = f"temperature-{temperature:g}" if len(temperatures) > 1 else ""
        runs.append(_measure(args, pair, work, settings, decoding, folder))
    write_json(args.json, runs[0] if len(runs) == 1 else {"runs": runs})


def _calibration(args: argparse.Namespace) -> bool:
    """Tell whether values are to be chosen.

    Raises:
        ValueError: the options of the choice do not fit together.
    """
    if args.calibrate_to_loss is None:
        if args.calibration_problems is not None:
            raise ValueError("--calibration-problems needs --calibrate-to-loss POINTS")
        return False
    if not 0 <= args.calibrate_to_loss <= 100:
        raise ValueError(f"--calibrate-to-loss must be between 0 and 100 points, got {args.calibrate_to_loss}")
    if args.problems == 0:
        raise ValueError("--calibrate-to-loss needs to know how many problems measure: pass --problems N, at least 1")
    return True


def _measure(args: argparse.Namespace, pair, work: Work, settings: list[Setting], decoding: Decoding, folder: str):
    """Run and show one comparison, and write its report; return its figures."""
    report = Path(args.report) / folder if args.report else None
    journal_dir = Path(args.resume) / folder if args.resume else report / "answers" if report else None
    calibration = None
    if args.calibrate_to_loss is not None:
        work, settings, calibration = choose(
            pair, work, settings, decoding, args.calibrate_to_loss, args.calibration_problems, journal_dir=journal_dir
        )
    with tqdm(total=len(settings) * len(work.task.examples), desc="Answering", unit="answer", leave=False) as bar:
        found = compare(
            pair,
            work,
            settings,
            decoding,
            command=command_line(args),
            journal_dir=journal_dir,
            n_curve_examples=8 if args.quick else 30,
            on_answer=bar.update,
        )
    if calibration is not None:
        found["calibration"] = calibration
        found["summary"] += calibration_sentences(calibration, found["rules"])
    warn(found["warnings"])
    if folder:
        print(f"\nTemperature {decoding.temperature:g}\n")
    print(evaluation_table(found["rules"]))
    print("\n" + "\n".join(printable(line) for line in found["summary"]))
    if found["text_rules"]:
        print("\nGiven text:\n\n" + texts_table(found["text_rules"]))
    if report:
        files = write_report(found, report, plots=not args.no_plots)
        print("\nWrote " + ", ".join(str(file) for file in files))
    if not folder or decoding.temperature == 0:
        note_on_card(args, "evaluate", work.task, partial(evaluated, found))
    return found


def evaluation_table(rules: list[dict]) -> str:
    """Return a table with one line per setting."""
    rows = [
        ["", "accuracy", "95% interval", "gained/lost", "p", "speed-up", "tokens/s", "tokens/answer", "forwards/answer"]
    ]
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
                f"{row['mcnemar_p']:.2g}",
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


def run_tasks(args: argparse.Namespace) -> None:
    width = max(map(len, TASKS))
    for name, spec in TASKS.items():
        kinds = "".join(f", {kind}" for kind, _ in spec.kinds)
        print(f"{name:<{width}}  {spec.source}, split {spec.split}{kinds}; licence {spec.licence}")
        print(f"{'':<{width}}  columns {', '.join(spec.columns)}; checker {spec.checker or 'none: speed alone'}")
    print(
        "\nNAME[@COMMIT][:split][:n], for example gsm8k:train:300. Datasets come from the Hub with `datasets`; "
        "without @COMMIT the newest commit is used and named in the record of the run.\nBesides: world (the embedded "
        "pair's), a JSONL file, or a task of your own as TASK.yaml or TASK.py (docs/tasks.md)."
    )
