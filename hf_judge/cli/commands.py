"""Runs the command line ``hf-judge``: its parser, the subcommands ``generate`` and ``push``, and its errors."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import sys
import typing
import webbrowser

import torch
from safetensors import SafetensorError

import hf_judge
from hf_judge.cli.bench import add_bench
from hf_judge.cli.demo import add_demo
from hf_judge.cli.doctor import add_doctor
from hf_judge.cli.evaluate import add_evaluate, add_tasks_command
from hf_judge.cli.judges.make import add_make
from hf_judge.cli.options import write_json
from hf_judge.cli.terminal import positive, printable, warn
from hf_judge.cli.train import add_training_commands
from hf_judge.cli.verdicts import VerdictPrinter, describe, use_colour
from hf_judge.evaluation.loading import load_draft_tokenizer, load_tokenizer, loading
from hf_judge.files.durable import check_writable
from hf_judge.files.jsonl import decode_text
from hf_judge.head.adapter import Adapter
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.labelling.prompts import encode_prompt
from hf_judge.publishing.dry_run import dry_run
from hf_judge.publishing.search import find_heads
from hf_judge.upstream.forward import input_device
from hf_judge.upstream.generation import tokenizer_arguments


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in the same way as every other error; subcommands inherit it."""

    def error(self, message: str) -> typing.NoReturn:
        command = self.prog.removeprefix("hf-judge").strip()
        print_error(f"{f'{command}: ' if command else ''}{message} (see {self.prog} --help)")
        self.exit(2)


LOOKUP_TOKENS = 10  # drafted by prompt lookup where there is no draft model


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all subcommands."""
    parser = _Parser(prog="hf-judge", description="Judge Decoding for Hugging Face generate().")
    parser.add_argument("--version", action="version", version=f"hf-judge {hf_judge.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    add_demo(commands)
    add_doctor(commands)
    add_make(commands)
    add_training_commands(commands)
    add_tasks_command(commands)
    add_evaluate(commands)
    add_bench(commands)
    add_generate(commands)
    add_push(commands)
    add_search(commands)
    return parser


def add_generate(commands) -> None:
    generate = commands.add_parser("generate", help="answer a prompt, streaming, every token marked by its verdict")
    generate.add_argument("--model", required=True, metavar="ID", help="the target: Hub id or directory")
    generate.add_argument("--assistant", metavar="ID", help="the draft model (with a judge, default: prompt lookup)")
    generate.add_argument(
        "--judge", metavar="ID", help="the judge head: Hub id or directory (default: the model's own)"
    )
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="what to answer; - reads standard input")
    generate.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    generate.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="limit (default: 256)")
    generate.add_argument("--num-assistant-tokens", type=int, metavar="M", help="drafted tokens per round")
    generate.add_argument(
        "--judge-threshold", type=float, metavar="T", help="0 accepts every token, 1 rescues none (default: the head's)"
    )
    generate.add_argument("--sample", action="store_true", help="sample (default: greedy)")
    generate.add_argument("--device-map", default="auto", metavar="MAP", help="as in from_pretrained (default: auto)")
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
    elif args.judge is not None or target.resolve_judge(None) is not None:
        warn([f"no --assistant: drafting by prompt lookup, {LOOKUP_TOKENS} tokens at most"])
        options["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
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
    """Read all of standard input, by the rules for every other text of a user.

    Raises:
        ValueError: the input is not UTF-8.
    """
    raw = getattr(sys.stdin, "buffer", None)  # an object in its place may have text only
    return sys.stdin.read().removeprefix("\ufeff") if raw is None else decode_text(raw.read(), "standard input")


def add_push(commands) -> None:
    push = commands.add_parser("push", help="publish a judge head with a card, and an entry for custom_generate")
    push.add_argument("head", metavar="DIR", help="directory of the head")
    push.add_argument("repo_id", metavar="USER/REPO", help="repository on the Hub")
    push.add_argument("--base", metavar="ID", help="Hub id of the target, if the head does not name it")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument("--revision", metavar="BRANCH", help="branch to write to (default: main)")
    push.add_argument("--commit-message", metavar="TEXT", help="message of the commit (default: Publish a judge head)")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of writing to the branch")
    push.add_argument(
        "--base-unknown",
        action="store_true",
        help="publish a head of a local or private target: the card says that its commit is unknown",
    )
    push.add_argument(
        "--dry-run", action="store_true", help="send nothing: write the repository and the card's page to a folder"
    )
    push.add_argument("--output-dir", default="dry-run", metavar="DIR", help="folder of the dry run (default: dry-run)")
    push.set_defaults(run=run_push)


def run_push(args: argparse.Namespace) -> None:
    head = hf_judge.JudgeHead.from_pretrained(args.head)
    if args.base:
        head.config.base_model_name_or_path, head.config.revision = args.base, None
    if args.dry_run:
        adapter = Adapter(head.config, head.weight, head.bias)
        written = dry_run(adapter, args.repo_id, args.output_dir, base_unknown=args.base_unknown)
        print(f"nothing was sent; the repository would hold {written.repository}\nits card: {written.page}")
        if sys.stdout.isatty():
            webbrowser.open(written.page.resolve().as_uri())
        return
    done = head.push_to_hub(
        args.repo_id,
        commit_message=args.commit_message,
        private=args.private,
        revision=args.revision,
        create_pr=args.create_pr,
        base_unknown=args.base_unknown,
    )
    print(done.pr_url or done.commit_url)


def add_search(commands) -> None:
    search = commands.add_parser("search", help="list the published judge heads for a target")
    search.add_argument("target", metavar="TARGET", help="the target's repository on the Hub, as user/repo")
    search.add_argument("--limit", type=positive, default=20, metavar="N", help="most heads to list (default: 20)")
    search.add_argument("--json", metavar="FILE", help="write the list to this file")
    search.set_defaults(run=run_search)


def run_search(args: argparse.Namespace) -> None:
    if args.json:
        check_writable(args.json)
    heads = find_heads(args.target, limit=args.limit)
    if not heads:
        print(f"no published judge head for {args.target}: train one (docs/train-a-judge.md)")
    for head in heads:
        auc = "not stated"
        if head.auc is not None:
            tokens = f"{head.n_acceptable} good and {head.n_mistaken} mistaken tokens"
            auc = f"{head.auc:.3f} over the {tokens} on which it decides"
        lines = [
            f"{head.repo_id}@{head.commit[:12]}  {head.changed}, {head.downloads} downloads",
            f"  certificate: {head.certificate or 'none'}",
            f"  threshold {head.threshold:g}; AUC {auc}",
            f"  draft: {head.draft or 'not stated'}; quantisation of the target: {head.quantization or 'not stated'}",
        ]
        print(printable("\n".join(lines)))
    write_json(args.json, {"target": args.target, "heads": [dataclasses.asdict(head) for head in heads]})


def print_error(message: str) -> None:
    """Print an error as one line on stderr, whatever the message quotes."""
    print(f"hf-judge: error: {printable(' '.join(message.split()))}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        0; 2 after an error that a user can mend, which is one line on stderr; what the command itself returns.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may support fewer characters than a model
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    args.argv = sys.argv[1:] if argv is None else argv
    try:
        return args.run(args) or 0
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        print_error(str(error) or type(error).__name__)
        return 2
    except SystemExit as error:  # of a user's function: without this, half of the work would end with the exit code 0
        print_error(f"a function of the task called sys.exit({error.code!r}): raise an error in its place")
        return 2
    except (RuntimeError, AssertionError, OverflowError) as error:  # torch raises these for devices and numbers
        if "HF_JUDGE_TRACEBACK" in os.environ:
            raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        print_error(f"{first_line} ({type(error).__name__}; HF_JUDGE_TRACEBACK=1 shows where; see `hf-judge doctor`)")
        return 2
    except KeyboardInterrupt:
        print("\nhf-judge: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
