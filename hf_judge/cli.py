"""The command line, ``hf-judge``: parses, calls the library, prints. The only module of the package that prints."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import hf_judge
from hf_judge.decoding import VerdictStreamer
from hf_judge.stats import JudgeStats, VerdictCode

# how a token of each verdict is marked, with and without colour
MARKS = {
    VerdictCode.MATCHED: ("", ""),
    VerdictCode.RESCUED: ("[", "]"),
    VerdictCode.CORRECTED: ("<", ">"),
    VerdictCode.BONUS: ("{", "}"),
}
COLOURS = {
    VerdictCode.MATCHED: "",
    VerdictCode.RESCUED: "\033[1;32m",
    VerdictCode.CORRECTED: "\033[1;31m",
    VerdictCode.BONUS: "\033[36m",
}
MEANINGS = {
    VerdictCode.MATCHED: "matched: drafted, the target says the same",
    VerdictCode.RESCUED: "rescued: drafted, different, and the judge accepts it",
    VerdictCode.CORRECTED: "corrected: the target's own token in place of a rejected one",
    VerdictCode.BONUS: "bonus: the target's own token after a whole draft",
}


class VerdictPrinter(VerdictStreamer):
    """Prints tokens as they come, marked by verdict.

    Args:
        tokenizer: decodes the tokens.
        colour: mark with colours as well.
    """

    def __init__(self, tokenizer, *, colour: bool):
        self._tokenizer, self._colour = tokenizer, colour
        self._prompt_seen = False
        self._codes = []
        self._pending = []  # tokens whose text is not complete yet: a character may span several

    def put_verdicts(self, codes: torch.Tensor) -> None:
        self._codes += codes.tolist()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate() sends the prompt first
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self._pending.append(token)
            code = self._codes.pop(0) if self._codes else VerdictCode.BONUS
            text = self._tokenizer.decode(self._pending, skip_special_tokens=True)
            if text and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                print(self.mark(text, VerdictCode(code)), end="", flush=True)
                self._pending = []

    def end(self) -> None:
        print(flush=True)

    def mark(self, text: str, code: VerdictCode) -> str:
        """The text with its marks; leading blanks stay outside them."""
        text = printable(text)
        word = text.lstrip(" ")
        left, right = MARKS[code]
        marked = text[: len(text) - len(word)] + left + word + right
        colour = COLOURS[code] if self._colour else ""
        return f"{colour}{marked}\033[0m" if colour else marked

    def legend(self) -> str:
        """One line per verdict."""
        return "\n".join("  " + self.mark(meaning, code) for code, meaning in MEANINGS.items())


def printable(text: str) -> str:
    """Model text without control characters, which could drive the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c.isprintable()))


def table(rows: list[list[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def run_demo(args: argparse.Namespace) -> None:
    from hf_judge.demo import compare, stream_problem
    from hf_judge.tiny import load_pair
    from hf_judge.tiny.world import problems

    if args.problems < 1:
        raise ValueError(f"--problems must be at least 1, got {args.problems}")
    pair = load_pair()
    held_out = problems(args.problems + 1, seed=args.seed)
    printer = VerdictPrinter(pair.tokenizer, colour=use_colour())
    print("The embedded pair: a 24-layer target (4 trained layers, the others add zero) and a 2-layer draft.\n")
    print(f"Question: {held_out[0].question}\n\nJudged answer, as it is decoded:\n")
    stats = stream_problem(pair, held_out[0], printer, args.num_assistant_tokens)
    print(f"\n{printer.legend()}\n\n{describe(stats)}\n")
    with tqdm(total=3 * args.problems, desc="Answering in three ways", unit="answer", leave=False) as bar:
        figures = compare(
            pair, held_out[1:], num_assistant_tokens=args.num_assistant_tokens, on_answer=lambda: bar.update()
        )
    print(demo_table(figures, args.problems))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
        print(f"\nThe same figures are in {args.json}")


def describe(stats: JudgeStats) -> str:
    """One sentence about a generation."""
    return (
        f"{stats.new_tokens} tokens in {stats.target_forwards} target forwards "
        f"({stats.tokens_per_forward:.1f} per forward; {stats.rescued} rescued, {stats.corrected} corrected)"
    )


def demo_table(figures: dict[str, dict[str, float]], n_problems: int) -> str:
    """The demo's table."""
    names = {"plain": "plain generate", "assisted": "assisted (upstream)", "judged": "judged"}
    rows = [["", f"accuracy ({n_problems})", "tokens/forward", "accepted/forward", "tokens/s", "ratio to plain"]]
    for way, values in figures.items():
        accepted = f"{values['accepted_per_forward']:.1f}" if "accepted_per_forward" in values else "-"
        rows.append(
            [
                names[way],
                f"{values['accuracy']:.1%}",
                f"{values['tokens_per_forward']:.1f}",
                accepted,
                f"{values['tokens_per_second']:.0f}",
                f"{values['ratio_to_plain']:.2f}x",
            ]
        )
    return table(rows)


def run_evaluate(args: argparse.Namespace) -> None:
    from hf_judge.evaluation import Decoding
    from hf_judge.measuring import compare, load_models, load_texts
    from hf_judge.report import write_report
    from hf_judge.settings import parse_settings
    from hf_judge.tasks import load_task

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
    from hf_judge.bench import bench, paper_check, simulate
    from hf_judge.measuring import load_models, setup
    from hf_judge.tasks import load_task

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


def use_colour() -> bool:
    """Colour on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand."""
    parser = argparse.ArgumentParser(prog="hf-judge", description="Judge Decoding for Hugging Face generate().")
    parser.add_argument("--version", action="version", version=f"hf-judge {hf_judge.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    add_demo(commands)
    add_evaluate(commands)
    add_bench(commands)
    return parser


def add_demo(commands) -> None:
    demo = commands.add_parser(
        "demo", help="see the embedded pair at work: one streamed answer, then three ways compared"
    )
    demo.add_argument("--problems", type=int, default=20, metavar="N", help="held-out problems to answer (default: 20)")
    demo.add_argument(
        "--num-assistant-tokens", type=int, default=32, metavar="M", help="drafted tokens per round (default: 32)"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="which held-out problems (default: 0)")
    demo.add_argument("--json", metavar="PATH", help="write the figures to this file")
    demo.set_defaults(run=run_demo)


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
    bench = commands.add_parser("bench", help="measure the speed of a pair on this machine, and what to set")
    add_models(bench)
    bench.add_argument("--lengths", type=int, nargs="+", metavar="M", help="draft lengths")
    bench.add_argument("--thresholds", type=float, nargs="+", metavar="T", help="beside the head's own")
    bench.add_argument("--repeats", type=int, metavar="N", help="of the whole work, interleaved")
    bench.add_argument(
        "--simulate", nargs="+", metavar="NAME=NUMBER", help="predict instead of measuring: m=19.7 M=25 c=0.02 [v=1]"
    )
    bench.set_defaults(run=run_bench)


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors a user can mend are one line on stderr and exit code 2."""
    args = build_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"hf-judge: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhf-judge: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
