"""Shows where the time of a round goes: kernels, launches, and gaps in which the GPU waits for the host.

    python benchmarks/gpu_profile.py --json out/profile.json

Ragged engine, eager and compiled, batch 1, acceptance replayed. One call warms up, a second is profiled.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from gpu import PAIRS, PAPER, SHAPES, synchronize
from recording import Recording
from replay import ReplayedJudge, constant_trace, random_llama
from torch.profiler import ProfilerActivity, profile
from transformers import CompileConfig

from hf_judge.modeling.keywords import constant_drafts

N_DRAFTED, N_NEW = 25, 120
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize",
         "cudaEventSynchronize")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=sorted(PAIRS), default="1B/8B", metavar="PAIR")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    small, large = (SHAPES[shape] for shape in PAIRS[args.shapes])
    target, draft = random_llama(large, dtype, device), random_llama(small, dtype, device)
    ways = {"eager": {}} if args.no_compile else {"eager": {}, "compiled": {"compile_config": CompileConfig()}}
    recording, found = Recording(args.json), {}
    for name, more in ways.items():
        judge = ReplayedJudge(large["hidden_size"], constant_trace(PAPER, N_DRAFTED), device)
        found[name] = profiled(target, draft, judge, more, device)
        print(name, {key: value for key, value in found[name].items() if key != "operators"}, flush=True)
        recording.put(profiles=found)
    recording.finish()


def profiled(target, draft, judge: ReplayedJudge, more: dict, device: str) -> dict:
    """Profile one call, and return its seconds and counts per round."""
    ids = torch.randint(10, 500, (1, 64), generator=torch.Generator().manual_seed(0)).to(device)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0}
    settings |= constant_drafts(draft, judge, N_DRAFTED) | {"judge_engine": "ragged"} | more

    def call() -> float:
        judge.stats = type(judge.stats)()
        synchronize(device)
        started = time.perf_counter()
        target.generate(ids, **settings)
        synchronize(device)
        return time.perf_counter() - started

    call()
    seconds = call()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        call()
    rounds, stats = judge.stats.rounds, judge.stats
    events = profiler.key_averages()
    busy = sum(event.self_device_time_total for event in events if "CUDA" in str(event.device_type))  # microseconds
    longest = sorted(events, key=lambda event: -(event.self_device_time_total or event.self_cpu_time_total))[:25]
    return {
        "rounds": rounds,
        "ms_per_round": 1e3 * seconds / rounds,
        "device_busy_ms_per_round": busy / 1e3 / rounds if device == "cuda" else None,
        "host_ms_per_round": {
            part: 1e3 * getattr(stats, f"seconds_{part}") / rounds
            for part in ("drafting", "verifying", "judging", "rest")
        },
        "launches_per_round": sum(e.count for e in events if "Launch" in e.key) / rounds,
        "waits_per_round": {e.key: e.count / rounds for e in events if e.key in WAITS},
        "operators": [
            {"name": e.key, "per_round": e.count / rounds, "host_us": e.self_cpu_time_total / rounds,
             "device_us": e.self_device_time_total / rounds}
            for e in longest
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
