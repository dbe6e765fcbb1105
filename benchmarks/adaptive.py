"""Compares adaptive draft lengths with constant ones, for drafts that pay and drafts that do not.

    python benchmarks/adaptive.py --json out/adaptive.json    # ten minutes on 2 cores
    python benchmarks/adaptive.py --new-tokens 1000 --no-constant --drafts wrong "right and expensive"

The embedded target writes long texts (its stop token is off) with its own draft, judged and strict; with a draft of
the same cost that is never right; with one that is never right and as expensive as the target; and with a copy of
itself, which is always right and too expensive. All ways are interleaved; medians of tokens per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from replay import random_llama
from transformers import CompileConfig

from hf_judge import StrictVerifier
from hf_judge.tiny import TinyPair, load_pair
from hf_judge.tiny.world import problems

# draft -> constant lengths beside the adaptive one
DRAFTS = {
    "judged": (8, 16, 32),
    "strict": (4, 8, 16, 32),
    "wrong": (4, 16),
    "wrong and expensive": (4,),
    "right and expensive": (4, 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drafts", nargs="+", choices=DRAFTS, default=list(DRAFTS))
    parser.add_argument("--new-tokens", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24, help="layers of the target")
    parser.add_argument("--no-constant", action="store_true", help="adaptive lengths and plain decoding only")
    parser.add_argument("--compile", action="store_true", help="compile the engine, which takes minutes more")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    pair = load_pair(args.layers)
    for model in (pair.target, pair.draft):  # texts longer than in training: only their time counts
        model.config.max_position_embeddings = max(model.config.max_position_embeddings, args.new_tokens + 200)
    pair.target.generation_config.eos_token_id = pair.draft.generation_config.eos_token_id = None
    rows = []
    print("| draft | way | tokens/s | to plain | accepted per forward |\n|---|---|---|---|---|")
    for name in args.drafts:
        for row in measure(pair, name, args):
            rows.append(row)
            print(
                f"| {name} | {row['way']} | {row['tokens_per_second']:.0f} | {row['ratio_to_plain']:.2f}x "
                f"({row['ratio_spread'][0]:.2f} to {row['ratio_spread'][1]:.2f}) | {row['accepted_per_forward']:.1f} |",
                flush=True,
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def measure(pair: TinyPair, name: str, args) -> list[dict]:
    """Time every method with one draft; the methods take turns."""
    common = {"do_sample": False, "max_new_tokens": args.new_tokens, "pad_token_id": 0}
    drafted = common | {"assistant_model": draft_model(pair, name), "assistant_confidence_threshold": 0.0}
    drafted |= {"judge": pair.judge if name == "judged" else StrictVerifier()}
    if args.compile:
        drafted["compile_config"] = CompileConfig()
    schedule = "num_assistant_tokens_schedule"
    ways = {"plain": common | {"judge": False}}
    lengths = () if args.no_constant else DRAFTS[name]
    ways |= {f"M={m}": drafted | {"num_assistant_tokens": m, schedule: "constant"} for m in lengths}
    ways["adaptive"] = drafted | {schedule: "adaptive"}
    rates, accepted = {way: [] for way in ways}, {}
    questions = [problem.question for problem in problems(args.repeats + 1, seed=0)]
    for i, question in enumerate(questions):
        inputs = pair.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        for way, kwargs in ways.items():
            start = time.perf_counter()
            out = pair.target.generate(**inputs, **kwargs, return_dict_in_generate=True)
            seconds = time.perf_counter() - start
            if i:  # the first text warms up
                rates[way].append((out.sequences.shape[1] - inputs["input_ids"].shape[1]) / seconds)
                stats = getattr(out, "judge_stats", None)
                accepted.setdefault(way, []).append(0.0 if stats is None else stats.accepted_per_forward)
    rows = []
    for way, found in rates.items():
        ratios = [rate / plain for rate, plain in zip(found, rates["plain"], strict=True)]
        rows.append(
            {
                "draft": name,
                "way": way,
                "tokens_per_second": statistics.median(found),
                "ratio_to_plain": statistics.median(ratios),
                "ratio_spread": [min(ratios), max(ratios)],
                "accepted_per_forward": statistics.mean(accepted[way]),
            }
        )
    return rows


def draft_model(pair: TinyPair, name: str):
    """Make the draft of a case."""
    if name == "right and expensive":
        return pair.target
    if name.startswith("wrong"):
        like = pair.draft.config if name == "wrong" else pair.target.config
        keys = (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "vocab_size", "max_position_embeddings",
        )  # fmt: skip
        return random_llama({key: getattr(like, key) for key in keys}, torch.float32, "cpu")
    return pair.draft


if __name__ == "__main__":
    main()
