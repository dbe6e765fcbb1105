"""The command line, ``hf-judge``: parses, calls the library, prints. The only module of the package that prints."""

from __future__ import annotations

import argparse
import io
import os
import sys
import typing

import torch
from safetensors import SafetensorError
from tqdm import tqdm

import hf_judge
from hf_judge.cli.bench import add_bench
from hf_judge.cli.doctor import add_doctor
from hf_judge.cli.evaluate import add_evaluate
from hf_judge.cli.options import write_json
from hf_judge.cli.terminal import positive, printable, table
from hf_judge.cli.train import add_training_commands
from hf_judge.decoding.loop import VerdictStreamer
from hf_judge.evaluation.detokenizer import Detokenizer
from hf_judge.evaluation.loading import load_draft_tokenizer, load_tokenizer, loading
from hf_judge.files.durable import check_writable
from hf_judge.files.jsonl import decode_text
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.labelling.prompts import encode_prompt
from hf_judge.upstream.devices import input_device
from hf_judge.upstream.generation import tokenizer_arguments
from hf_judge.verify.stats import JudgeStats, VerdictCode

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
        self._texts, self._colour = Detokenizer(tokenizer), colour
        self._prompt_seen = False
        self._codes = []  # of tokens that are to come
        self._waiting = []  # codes of tokens whose text is not settled yet: a character may span several

    def put_verdicts(self, codes: torch.Tensor) -> None:
        self._codes += codes.tolist()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate() sends the prompt first
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self._waiting.append(self._codes.pop(0) if self._codes else VerdictCode.BONUS)
            self._print(self._texts.put(token))

    def end(self) -> None:
        self._print(self._texts.end())
        print(flush=True)

    def _print(self, texts: list[str]) -> None:
        for text in texts:
            print(self.mark(text, VerdictCode(self._waiting.pop(0))), end="", flush=True)

    def mark(self, text: str, code: VerdictCode) -> str:
        """The text with its marks; leading blanks stay outside them."""
        text = printable(text)
        word = text.lstrip(" ")
        if not word:
            return text
        left, right = MARKS[code]
        marked = text[: len(text) - len(word)] + left + word + right
        colour = COLOURS[code] if self._colour else ""
        return f"{colour}{marked}\033[0m" if colour else marked

    def legend(self) -> str:
        """One line per verdict."""
        return "\n".join("  " + self.mark(meaning, code) for code, meaning in MEANINGS.items())


def run_demo(args: argparse.Namespace) -> None:
    from hf_judge.evaluation.demo import compare, stream_problem
    from hf_judge.tiny.pair import load_pair
    from hf_judge.tiny.world import problems

    if args.problems < 1:
        raise ValueError(f"--problems must be at least 1, got {args.problems}")
    if args.json:
        check_writable(args.json)
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
    write_json(args.json, figures)


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


def use_colour() -> bool:
    """Colour on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line as every other error is said; subcommands inherit it."""

    def error(self, message: str) -> typing.NoReturn:
        command = self.prog.removeprefix("hf-judge").strip()
        print_error(f"{f'{command}: ' if command else ''}{message} (see {self.prog} --help)")
        self.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand."""
    parser = _Parser(prog="hf-judge", description="Judge Decoding for Hugging Face generate().")
    parser.add_argument("--version", action="version", version=f"hf-judge {hf_judge.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    add_demo(commands)
    add_doctor(commands)
    add_training_commands(commands)
    add_evaluate(commands)
    add_bench(commands)
    add_generate(commands)
    add_push(commands)
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


def add_generate(commands) -> None:
    generate = commands.add_parser("generate", help="answer a prompt, streaming, every token marked by its verdict")
    generate.add_argument("--model", required=True, metavar="ID", help="the target: Hub id or directory")
    generate.add_argument("--assistant", metavar="ID", help="the draft model (default: prompt lookup)")
    generate.add_argument(
        "--judge", metavar="ID", help="the judge head: Hub id or directory (default: the model's own)"
    )
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what to answer; - reads standard input")
    generate.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    generate.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="default: 256")
    generate.add_argument("--num-assistant-tokens", type=int, metavar="M", help="drafted tokens per round")
    generate.add_argument(
        "--judge-threshold", type=float, metavar="T", help="0 lenient, 1 strict (default: the head's)"
    )
    generate.add_argument("--sample", action="store_true", help="sample (default: greedy)")
    generate.add_argument("--device-map", default="auto", metavar="MAP", help="where the models go (default: auto)")
    generate.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> None:
    from transformers import AutoModelForCausalLM

    prompt = read_standard_input() if args.prompt == "-" else args.prompt
    tokenizer = load_tokenizer(args.model)
    asked = [{"role": "user", "content": prompt}] if args.chat else prompt
    ids = torch.tensor([encode_prompt(tokenizer, asked)[1]])
    with loading(f"the model '{args.model}'"):
        target = hf_judge.AutoJudgeModelForCausalLM.from_pretrained(args.model, device_map=args.device_map)
    options = {"max_new_tokens": args.max_new_tokens, "do_sample": args.sample}
    if args.assistant:
        with loading(f"the model '{args.assistant}'"):
            draft = AutoModelForCausalLM.from_pretrained(args.assistant, device_map=args.device_map)
        options["assistant_model"] = draft
        options |= tokenizer_arguments(target, draft, tokenizer, load_draft_tokenizer(args.assistant, tokenizer))
    else:
        options["prompt_lookup_num_tokens"] = 10
    for name in ("judge", "judge_threshold", "num_assistant_tokens"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    ids = ids.to(input_device(target))
    printer = VerdictPrinter(tokenizer, colour=use_colour())
    output = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        streamer=printer,
        **ANSWER_ALONE | {"return_dict_in_generate": True} | options,
    )
    if isinstance(output, hf_judge.JudgeDecoderOnlyOutput):
        print(f"\n{printer.legend()}\n\n{describe(output.judge_stats)}")


def read_standard_input() -> str:
    """All of standard input, read by the rules of every other text of a user.

    Raises:
        ValueError: it is no UTF-8.
    """
    raw = getattr(sys.stdin, "buffer", None)  # a stand-in may have text alone
    return sys.stdin.read().removeprefix("\ufeff") if raw is None else decode_text(raw.read(), "standard input")


def add_push(commands) -> None:
    push = commands.add_parser("push", help="publish a judge head with a card, and an entry for custom_generate")
    push.add_argument("head", metavar="DIR", help="directory of the head")
    push.add_argument("repo_id", metavar="USER/REPO", help="where to")
    push.add_argument("--base", metavar="ID", help="Hub id of the target, where the head does not name it")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--revision", metavar="BRANCH", help="branch to write to (default: main)")
    push.add_argument("--commit-message", metavar="TEXT", help="default: Publish a judge head")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of writing to the branch")
    push.set_defaults(run=run_push)


def run_push(args: argparse.Namespace) -> None:
    head = hf_judge.JudgeHead.from_pretrained(args.head)
    if args.base:
        head.config.base_model_name_or_path, head.config.revision = args.base, None
    done = head.push_to_hub(
        args.repo_id,
        commit_message=args.commit_message,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
    )
    print(done.pr_url or done.commit_url)


def print_error(message: str) -> None:
    """One line on stderr, whatever the message quotes."""
    print(f"hf-judge: error: {printable(' '.join(message.split()))}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors a user can mend are one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters than a model
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        return args.run(args) or 0
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        print_error(str(error) or type(error).__name__)
        return 2
    except KeyboardInterrupt:
        print("\nhf-judge: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
