"""Measures what a token costs as the context grows, and what the engine keeps in memory.

    python benchmarks/long_context.py --json out/context.json --plot out/context.png    # two minutes on 2 cores

A random target and draft of the embedded pair's widths (a target of 24 layers), acceptance replayed. Seconds per token
of judged decoding behind contexts of 1k to 8k tokens, beside what attention alone takes for the same rows and keys. The
memory: what a call adds at its peak, beside the two caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from replay import ReplayedJudge, constant_trace, random_llama

from hf_judge.modeling.keywords import constant_drafts
from hf_judge.ragged.model import RaggedModel

CONTEXTS = (1024, 2048, 4096, 8192)
TARGET = {
    "hidden_size": 256, "num_hidden_layers": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 672, "vocab_size": 483, "max_position_embeddings": 16384,
}  # fmt: skip
DRAFT = TARGET | {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 160,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--num-assistant-tokens", type=int, default=32, metavar="M")
    parser.add_argument("--accepted", type=float, default=27.0, help="per forward")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="of every context, in turn")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG; needs matplotlib")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = TARGET | {"num_hidden_layers": args.layers}
    target, draft = (random_llama(s, torch.float32, device) for s in (shape, DRAFT))
    rows = []
    measure(target, draft, 128, args, device)  # what a process allocates once is not a call's
    measured = {n: [] for n in args.contexts}
    for n in args.contexts * args.repeats:
        measured[n].append(measure(target, draft, n, args, device))
    for found in measured.values():
        row = {key: max(one[key] for one in found) for key in found[0]}
        row |= {key: statistics.median(one[key] for one in found) for key in row if "seconds" in key}
        n = row["context"]
        rows.append(row)
        print(
            f"{n:6d} tokens: {1000 * row['seconds_per_token']:.2f} ms a token, attention alone "
            f"{1000 * row['attention_seconds_per_token']:.2f} ms; caches {row['cache_bytes'] / 2**20:.0f} MiB, "
            f"peak of a call {row['peak_bytes'] / 2**20:.0f} MiB"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    if args.plot:
        plot(rows, args.plot)


def measure(target, draft, n: int, args, device: str) -> dict:
    """Measure one context length."""
    m = args.num_assistant_tokens
    judge = ReplayedJudge(target.config.hidden_size, constant_trace(args.accepted, m), device)
    ids = torch.randint(10, 400, (1, n), generator=torch.Generator().manual_seed(0)).to(device)
    sizes, close = [], RaggedModel.close

    def remember(rows, **options):
        sizes.append(rows.cache.nbytes())
        close(rows, **options)

    RaggedModel.close = remember
    before = reset_peak(device)
    try:
        target.generate(
            ids, attention_mask=torch.ones_like(ids), **constant_drafts(draft, judge, m), judge_engine="ragged",
            max_new_tokens=args.new_tokens, do_sample=False, prefill_chunk_size=None,
        )  # fmt: skip
    finally:
        RaggedModel.close = close
    peak, stats = peak_bytes(device) - before, judge.stats
    n_keys = n + args.new_tokens // 2
    attention = attention_seconds(target, m + 1, n_keys, device) + m * attention_seconds(draft, 1, n_keys, device)
    return {
        "context": n,
        "seconds_per_token": stats.seconds / max(stats.accepted + stats.row_forwards, 1),
        "attention_seconds_per_token": attention / (stats.accepted_per_forward + 1),
        "cache_bytes": sum(sizes),
        "weight_bytes": sum(p.nbytes for model in (target, draft) for p in model.parameters()),
        "peak_bytes": peak,
    }


@torch.no_grad()
def attention_seconds(model, n_rows: int, n_keys: int, device: str) -> float:
    """Time all layers' attention of `n_rows` tokens over `n_keys` keys, by torch's own kernel.

    Every layer has keys of its own; keys of a single layer would stay in the processor's cache.
    """
    config = model.config
    heads, width = config.num_attention_heads, config.head_dim
    q = torch.randn(1, heads, n_rows, width, device=device)
    layers = [torch.randn(2, 1, heads, n_keys, width, device=device) for _ in range(config.num_hidden_layers)]
    mask = torch.ones(1, 1, n_rows, n_keys, dtype=torch.bool, device=device)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        for k, v in layers:
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def reset_peak(device: str) -> int:
    """Start to watch memory, and return what is in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again
    return peak_bytes(device)


def peak_bytes(device: str) -> int:
    """Return the most memory that was in use since `reset_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def plot(rows: list[dict], path: Path) -> None:
    """Draw both costs over the context: where the lines are parallel, only attention grows."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    contexts = [row["context"] for row in rows]
    for key, label, colour in (
        ("seconds_per_token", "judged decoding", "#0072b2"),
        ("attention_seconds_per_token", "its attention alone", "#d55e00"),
    ):
        costs = [1000 * row[key] for row in rows]
        axes.plot(contexts, costs, marker="o", color=colour)
        axes.annotate(label, (contexts[-1], costs[-1]), (8, -3), textcoords="offset points", color=colour)
    axes.set(xlabel="context (tokens)", ylabel="ms per token", ylim=(0, None))
    axes.set_xticks(contexts, [f"{n / 1024:g}k" for n in contexts])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
