"""Times the engines on a GPU, at the shapes of real pairs: random weights, replayed acceptance.

    python benchmarks/gpu.py --json out/gpu.json

Tokens per second of plain decoding, of judged decoding on upstream's caches (its dynamic cache and its assisted
drafting) and of the ragged engine, eager and compiled, beside the bandwidth floor: every round reads the draft's
weights M times and the target's once. Acceptance is the embedded pair's (recorded here) and the paper's mean of 19.7
tokens. On a CPU, `--shapes tiny` tries the script.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from replay import ReplayedJudge, constant_trace, nbytes, random_llama, record_trace
from transformers import CompileConfig

from hf_judge.modeling.keywords import constant_drafts

PAPER = 19.7  # accepted tokens, 2501.19309, table 1


def llama(hidden, layers, heads, kv_heads, mlp, vocab=128256, tied=False, head_dim=128) -> dict:
    """Return a shape as keywords of LlamaConfig."""
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": mlp, "vocab_size": vocab, "head_dim": head_dim,
        "tie_word_embeddings": tied, "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }  # fmt: skip


# config.json of meta-llama/Llama-3.2-1B, Llama-3.1-8B; the 32B has Qwen2.5-32B's sizes and Llama 3's vocabulary
SHAPES = {
    "1B": llama(2048, 16, 32, 8, 8192, tied=True, head_dim=64),
    "8B": llama(4096, 32, 32, 8, 14336),
    "32B": llama(5120, 64, 40, 8, 27648),
    "tiny": llama(64, 2, 2, 2, 128, vocab=512, head_dim=32),
    "tiny target": llama(128, 4, 2, 2, 256, vocab=512, head_dim=64),
}
PAIRS = {"1B/8B": ("1B", "8B"), "8B/32B": ("8B", "32B"), "tiny": ("tiny", "tiny target")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(PAIRS), default=["1B/8B", "8B/32B"], metavar="PAIR")
    parser.add_argument("--lengths", type=int, nargs="+", default=[25, 32], metavar="M", help="draft lengths")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--bandwidth", type=float, help="of the memory in GB/s (default: measured by a copy)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    bandwidth = args.bandwidth or measured_bandwidth(device)
    rows = []
    for name in args.shapes:
        rows += measure_pair(name, args, dtype, device, bandwidth)
        print_table(rows)
    found = {
        "rows": rows,
        "bandwidth_gb_per_s": bandwidth,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def measure_pair(name: str, args, dtype, device: str, bandwidth: float) -> list[dict]:
    """Time every method for one pair, repeats interleaved."""
    small, large = (SHAPES[shape] for shape in PAIRS[name])
    target, draft = random_llama(large, dtype, device), random_llama(small, dtype, device)
    compiled = {"compile_config": CompileConfig()}
    ways = {("plain", 0, 1, "-"): (target, args, {"judge": False}, None)}
    for m in args.lengths:
        traces = {"embedded pair": record_trace(m), f"paper, {PAPER}": constant_trace(PAPER, m)}
        for label, trace in traces.items():
            for batch in args.batch_sizes:
                for engine, more in (("upstream", {}), ("ragged", {}), ("ragged, compiled", compiled)):
                    if (engine == "upstream" and batch > 1) or (more and args.no_compile):
                        continue
                    judge = ReplayedJudge(large["hidden_size"], trace, device)
                    kwargs = constant_drafts(draft, judge, m) | {"judge_engine": engine.split(",")[0]} | more
                    ways[engine, m, batch, label] = (target, args, kwargs, judge)
    rates = {key: [] for key in ways}
    for i in range(args.repeats + 1):
        for key, (model, settings, kwargs, judge) in ways.items():
            rate = tokens_per_second(model, settings, kwargs, key[2], device)
            if i:  # the first round warms up
                rates[key].append(rate)
            elif judge is not None:
                judge.stats = type(judge.stats)()
    plain = statistics.median(rates["plain", 0, 1, "-"])
    rows = []
    for (engine, m, batch, label), (*_, judge) in ways.items():
        accepted = judge.stats.accepted_per_forward if judge else 0.0
        floor = 1e9 * bandwidth * batch * (accepted + 1) / (m * nbytes(draft) + nbytes(target))
        rate = statistics.median(rates[engine, m, batch, label])
        rows.append(
            {
                "pair": name, "engine": engine, "M": m, "batch_size": batch, "acceptance": label,
                "accepted_per_forward": accepted, "tokens_per_second": rate,
                "spread": [min(rates[engine, m, batch, label]), max(rates[engine, m, batch, label])],
                "to_plain": rate / plain, "floor_tokens_per_second": floor, "share_of_floor": rate / floor,
            }
        )  # fmt: skip
    del ways, target, draft
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return rows


def tokens_per_second(model, args, kwargs: dict, batch: int, device: str) -> float:
    """Answer every prompt once and return the tokens per second, prefill included."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 500, (batch, args.prompt_tokens), generator=generator).to(device)
    synchronize(device)
    start = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=args.new_tokens,
        do_sample=False,
        pad_token_id=0,
        **kwargs,
    )
    synchronize(device)
    return batch * (out.shape[1] - ids.shape[1]) / (time.perf_counter() - start)


def measured_bandwidth(device: str, n_bytes: int = 1 << 30) -> float:
    """Measure the GB/s of a copy, read and write counted."""
    source = torch.empty(n_bytes if device == "cuda" else n_bytes // 8, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds) / 1e9


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def print_table(rows: list[dict]) -> None:
    """Print a table in Markdown, ready for docs/benchmarks.md."""
    print("| pair | engine | M | batch | acceptance | accepted | tokens/s | to plain | of the bandwidth floor |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['pair']} | {row['engine']} | {row['M'] or '-'} | {row['batch_size']} | {row['acceptance']} | "
            f"{row['accepted_per_forward']:.1f} | {row['tokens_per_second']:.1f} | {row['to_plain']:.2f}x | "
            f"{row['share_of_floor']:.2f} |"
        )


if __name__ == "__main__":
    main()
