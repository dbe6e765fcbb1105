"""Compares a judged target over several devices with one device: are the answers equal, and how fast do they come?

    python benchmarks/multi_gpu.py spread                                      # device_map over all GPUs
    torchrun --nproc-per-node 4 benchmarks/multi_gpu.py tensor-parallel        # --shard-draft: the draft too
    torchrun --nproc-per-node 2 benchmarks/multi_gpu.py fully-sharded          # FSDP2, prompts of their own

Without --target it takes the embedded pair, in float32: quick, and right or wrong to the token. With --target, --draft
and --judge it takes yours, and compares with --reference what fits on one device; half precision rounds differently on
one device and on several, so that greedy answers may part at near-ties. Runs on CPUs too (gloo), where its times mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

import hf_judge.tiny
from hf_judge import AutoJudgeModelForCausalLM, judged
from hf_judge.tiny.world import problems

MODES = ("spread", "tensor-parallel", "fully-sharded")
ENGINES = ("ragged", "upstream")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--target", metavar="ID", help="default: the embedded pair")
    parser.add_argument("--draft", metavar="ID")
    parser.add_argument("--judge", metavar="ID")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--shard-draft", action="store_true", help="tensor-parallel: the draft is split as well")
    parser.add_argument("--reference", action="store_true", help="compare with one device; always for the own pair")
    parser.add_argument("--problems", type=int, default=8, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=160, metavar="N")
    parser.add_argument("--num-assistant-tokens", type=int, default=16, metavar="N")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    if args.target and not (args.draft and args.judge):
        parser.error("--target needs --draft and --judge")
    return args


def device() -> torch.device:
    """Return the device of this process."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_target(args: argparse.Namespace, name: str):
    """Load the target in several pieces."""
    if args.mode == "tensor-parallel":
        split = DistributedConfig(tp_size=dist.get_world_size())
        return AutoJudgeModelForCausalLM.from_pretrained(name, dtype=args.dtype, distributed_config=split)
    if args.mode == "fully-sharded":
        target = AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype).to(device())
        for layer in target.model.layers:
            fully_shard(layer)
        return judged(fully_shard(target))
    if torch.cuda.device_count() < 2:  # to try the script: half of the layers, and the embeddings, on disk
        n = AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype).config.num_hidden_layers
        places = {"model.embed_tokens": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
        places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(n)}
        folder = tempfile.mkdtemp()
        return AutoJudgeModelForCausalLM.from_pretrained(
            name, dtype=args.dtype, device_map=places, offload_folder=folder
        )
    return AutoJudgeModelForCausalLM.from_pretrained(name, dtype=args.dtype, device_map="balanced")


def load_draft(args: argparse.Namespace, name: str):
    """Load the draft: on the last device beside a spread target; split beside a parallel one, by option."""
    if args.mode == "tensor-parallel" and args.shard_draft:
        split = DistributedConfig(tp_size=dist.get_world_size())
        return AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype, distributed_config=split)
    draft = AutoModelForCausalLM.from_pretrained(name, dtype=args.dtype)
    last = torch.device("cuda", torch.cuda.device_count() - 1) if torch.cuda.is_available() else torch.device("cpu")
    return draft.to(last if args.mode == "spread" else device())


def answer_all(target, draft, prompts: list[torch.Tensor], args: argparse.Namespace, engine: str) -> dict:
    """Answer all prompts, and return the answers with counts and seconds."""
    answers, stats = [], None
    start = time.perf_counter()
    for ids in prompts:
        out = target.generate(
            ids.to(device()),
            assistant_model=draft,
            judge=args.judge,
            judge_engine=engine,
            max_new_tokens=args.max_new_tokens,
            num_assistant_tokens=args.num_assistant_tokens,
            do_sample=False,
            return_dict_in_generate=True,
        )
        answers.append(out.sequences[0, ids.shape[1] :].tolist())
        stats = out.judge_stats if stats is None else stats + out.judge_stats
    seconds = time.perf_counter() - start
    return {
        "answers": answers,
        "tokens_per_second": sum(map(len, answers)) / seconds,
        "accepted_per_forward": stats.accepted_per_forward,
        "rescued": stats.rescued,
    }


def embedded_pair(args: argparse.Namespace) -> None:
    """Load the embedded pair at the four layers that were trained."""
    args.target, args.draft, args.judge = (str(hf_judge.tiny.HOME / name) for name in ("target", "draft", "judge"))
    args.reference = True


def main() -> None:
    args = arguments()
    rank = 0
    if args.mode != "spread":
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        rank = dist.get_rank()
    if not args.target:
        embedded_pair(args)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    texts = [[{"role": "user", "content": problem.question}] for problem in problems(args.problems, seed=5)]
    prompts = [
        tokenizer.apply_chat_template(text, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        for text in texts
    ]
    if args.mode == "fully-sharded":
        # every process makes equally many calls: within a call they wait for each other, between calls they do not
        n_each = len(prompts) // dist.get_world_size()
        prompts = prompts[rank :: dist.get_world_size()][:n_each]
    target, draft = load_target(args, args.target), load_draft(args, args.draft)
    figures = {"mode": args.mode, "processes": dist.get_world_size() if rank or dist.is_initialized() else 1}
    for engine in ENGINES:
        answer_all(target, draft, prompts[:1], args, engine)  # warm up
        figures[engine] = answer_all(target, draft, prompts, args, engine)
    if args.reference:
        one = AutoJudgeModelForCausalLM.from_pretrained(args.target, dtype=args.dtype).to(device())
        whole = AutoModelForCausalLM.from_pretrained(args.draft, dtype=args.dtype).to(device())
        for engine in ENGINES:
            expected = answer_all(one, whole, prompts, args, engine)["answers"]
            figures[engine]["same_as_one_device"] = figures[engine]["answers"] == expected
    if torch.cuda.is_available():
        figures["peak_gigabytes"] = [torch.cuda.max_memory_allocated(i) / 1e9 for i in range(torch.cuda.device_count())]
    for engine in ENGINES:
        shown = {key: value for key, value in figures[engine].items() if key != "answers"}
        print(f"rank {rank}, {engine}: " + ", ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    if args.json and rank == 0:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
