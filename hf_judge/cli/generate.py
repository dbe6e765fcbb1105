"""Answers a prompt, streaming, every token marked by its verdict: the subcommand ``generate``."""

from __future__ import annotations

import argparse
import sys

import torch
from transformers import AutoModelForCausalLM

from hf_judge.cli.terminal import warn
from hf_judge.cli.verdicts import VerdictPrinter, describe, use_colour
from hf_judge.decoding.loop import JudgeDecoderOnlyOutput
from hf_judge.evaluation.loading import load_draft_tokenizer, load_tokenizer, loading
from hf_judge.files.jsonl import decode_text
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.labelling.prompts import encode_prompt
from hf_judge.modeling.classes import AutoJudgeModelForCausalLM
from hf_judge.upstream.forward import input_device
from hf_judge.upstream.generation import tokenizer_arguments

LOOKUP_TOKENS = 10  # drafted by prompt lookup where there is no draft model


def run_generate(args: argparse.Namespace) -> None:
    prompt = read_standard_input() if args.prompt == "-" else args.prompt
    tokenizer = load_tokenizer(args.tokenizer or args.target)
    asked = [{"role": "user", "content": prompt}] if args.chat else prompt
    ids = torch.tensor([encode_prompt(tokenizer, asked)[1]])
    with loading(f"the model '{args.target}'"):
        target = AutoJudgeModelForCausalLM.from_pretrained(args.target, dtype=args.dtype, device_map=args.device_map)
    options = {"max_new_tokens": args.max_new_tokens, "do_sample": args.sample}
    if args.draft:
        with loading(f"the model '{args.draft}'"):
            draft = AutoModelForCausalLM.from_pretrained(args.draft, dtype=args.dtype, device_map=args.device_map)
        options["assistant_model"] = draft
        options |= tokenizer_arguments(
            target, draft, tokenizer, load_draft_tokenizer(args.draft_tokenizer or args.draft, tokenizer)
        )
    elif args.judge is not None or target.resolve_judge(None) is not None:
        warn([f"no --draft: drafting by prompt lookup, {LOOKUP_TOKENS} tokens at most"])
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
    if isinstance(output, JudgeDecoderOnlyOutput):
        print(f"\n{printer.legend()}\n\n{describe(output.judge_stats)}")


def read_standard_input() -> str:
    """Read all of standard input, by the rules for every other text of a user.

    Raises:
        ValueError: the input is not UTF-8.
    """
    raw = getattr(sys.stdin, "buffer", None)  # an object in its place may have text only
    return sys.stdin.read().removeprefix("\ufeff") if raw is None else decode_text(raw.read(), "standard input")
