"""Shows the embedded pair at work: the subcommand ``demo``."""

from __future__ import annotations

import argparse
import dataclasses

from tqdm import tqdm

from hf_judge.cli.inputs import write_json
from hf_judge.cli.terminal import table
from hf_judge.cli.verdicts import VerdictPrinter, describe, use_colour
from hf_judge.evaluation.demo import METHODS, demo_figures
from hf_judge.evaluation.evaluate import Decoding, Method, evaluate
from hf_judge.evaluation.loading import load_models
from hf_judge.tasks.load import load_task


def run_demo(args: argparse.Namespace) -> None:
    if args.problems < 1:
        raise ValueError(f"--problems must be at least 1, got {args.problems}")
    decoding = Decoding(args.num_assistant_tokens)
    pair, task = load_models(), load_task("world", args.problems + 1, seed=args.seed)
    first, *others = task.examples
    printer = VerdictPrinter(pair.tokenizer, colour=use_colour())
    print("The embedded pair: a 24-layer target (4 trained layers, the others add zero) and a 2-layer draft.\n")
    print(f"Question: {first.prompt[0]['content']}\n\nJudged answer, as it is decoded:\n")
    output = Method(pair, METHODS["judged"], decoding).generate([pair.encode(first.prompt)[0]], streamer=printer)
    print(f"\n{printer.legend()}\n\n{describe(output.judge_stats)}\n")
    with tqdm(total=len(METHODS) * args.problems, desc="Answering by three methods", unit="answer", leave=False) as bar:
        others = dataclasses.replace(task, examples=others)
        figures = demo_figures(evaluate(pair, others, [*METHODS.values()], decoding=decoding, on_answer=bar.update))
    print(demo_table(figures, args.problems))
    write_json(args.json, figures)


def demo_table(figures: dict[str, dict[str, float]], n_problems: int) -> str:
    """Return the demo's table, one line per method."""
    names = {"plain": "plain generate", "assisted": "assisted (upstream)", "judged": "judged"}
    rows = [["", f"accuracy ({n_problems})", "tokens/forward", "accepted/forward", "tokens/s", "ratio to plain"]]
    for name, values in figures.items():
        accepted = f"{values['accepted_per_forward']:.1f}" if "accepted_per_forward" in values else "-"
        rows.append(
            [
                names[name],
                f"{values['accuracy']:.1%}",
                f"{values['tokens_per_forward']:.1f}",
                accepted,
                f"{values['tokens_per_second']:.0f}",
                f"{values['ratio_to_plain']:.2f}x",
            ]
        )
    return table(rows)
