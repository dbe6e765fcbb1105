"""Times the engines on a GPU, at the shapes of real pairs: random weights, replayed acceptance.

    python benchmarks/gpu.py --json out/gpu.json

Tokens per second of plain decoding (eager and compiled), of upstream's assisted decoding, of judged decoding on
upstream's caches (its dynamic cache and its assisted drafting) and of the ragged engine, eager and compiled, beside the
bandwidth floor: every round reads the draft's weights M times and the target's once. Acceptance is the embedded pair's
(recorded here) and the paper's mean of 19.7 tokens. Random models accept nothing from each other, so upstream's
assisted decoding is timed per round, and its tokens per second are those of the paper's mean of 6.3 accepted tokens
("replayed" in the table). The first call of each way is timed alone: it compiles. On a CPU, `--shapes tiny` tries the
script.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from recording import Recording
from replay import ReplayedJudge, constant_trace, nbytes, random_llama, record_trace
from transformers import CompileConfig

from hf_judge.evaluation.instruments import count_forwards
from hf_judge.modeling.keywords import constant_drafts

PAPER = 19.7  # accepted tokens, 2501.19309, table 1
PAPER_STRICT = 6.3  # the same with standard verification
STRICT_LENGTHS = (7, 12)  # draft lengths at which that may be fastest


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
    recording, rows = Recording(args.json), []
    recording.put(bandwidth_gb_per_s=bandwidth)
    for name in args.shapes:
        found = []
        for found in measure_pair(name, args, dtype, device, bandwidth):
            recording.put(rows=rows + found)
        rows += found
        print_table(rows)
    recording.finish()


@dataclass
class Way:
    """One way to decode, and what it measured."""

    engine: str
    kwargs: dict  # keywords of generate()
    n_drafted: int = 0
    batch_size: int = 1
    acceptance: str = "-"
    judge: ReplayedJudge | None = None
    first_seconds: float = 0.0  # of the first call, which compiles
    peak_bytes: int | None = None  # of the device's memory during a call
    rates: list[float] = field(default_factory=list)  # tokens per second of every repeat

    @property
    def accepted(self) -> float:
        """Accepted tokens per forward."""
        if self.engine == "upstream assisted":
            return min(PAPER_STRICT, self.n_drafted)
        return self.judge.stats.accepted_per_forward if self.judge else 0.0


def ways_of(draft, large: dict, args, device: str) -> list[Way]:
    """Return the ways to decode, those that say most first: a run may be stopped."""
    compiled = {"compile_config": CompileConfig()}
    ways = [Way("plain", {"judge": False})]
    if not args.no_compile:
        ways.append(Way("plain, compiled", {"judge": False, "cache_implementation": "static"} | compiled))
    for m in STRICT_LENGTHS:
        kwargs = constant_drafts(draft, False, m)
        ways.append(Way("upstream assisted", kwargs, m, acceptance=f"replayed, {PAPER_STRICT}"))
    for m in args.lengths:
        traces = {f"paper, {PAPER}": constant_trace(PAPER, m), "embedded pair": record_trace(m)}
        for label, trace in traces.items():
            for batch in args.batch_sizes:
                for engine, more in (("ragged, compiled", compiled), ("ragged", {}), ("upstream", {})):
                    if (engine == "upstream" and batch > 1) or (more and args.no_compile):
                        continue
                    judge = ReplayedJudge(large["hidden_size"], trace, device)
                    kwargs = constant_drafts(draft, judge, m) | {"judge_engine": engine.split(",")[0]} | more
                    ways.append(Way(engine, kwargs, m, batch, label, judge))
    return ways


def measure_pair(name: str, args, dtype, device: str, bandwidth: float) -> Iterator[list[dict]]:
    """Time every way for one pair, repeats interleaved; yield all rows so far after each timing."""
    small, large = (SHAPES[shape] for shape in PAIRS[name])
    target, draft = random_llama(large, dtype, device), random_llama(small, dtype, device)
    read, ways = (nbytes(draft), nbytes(target)), ways_of(draft, large, args, device)
    for i in range(args.repeats + 1):
        for way in ways:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            rate = timed(target, args, way, device)
            if i:  # the first round warms up
                way.rates.append(rate)
                way.peak_bytes = torch.cuda.max_memory_allocated() if device == "cuda" else None
            elif way.judge is not None:
                way.judge.stats = type(way.judge.stats)()
            yield [row(name, way, ways[0], read, bandwidth) for way in ways if way.rates]
    del ways, target, draft
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def row(name: str, way: Way, plain: Way, read: tuple[int, int], bandwidth: float) -> dict:
    """Return what was measured of one way, beside plain decoding and the bandwidth floor."""
    m, rate = way.n_drafted, statistics.median(way.rates)
    floor = 1e9 * bandwidth * way.batch_size * (way.accepted + 1) / (m * read[0] + read[1])
    more = None if way.peak_bytes is None or plain.peak_bytes is None else way.peak_bytes - plain.peak_bytes
    return {
        "pair": name, "engine": way.engine, "M": m, "batch_size": way.batch_size, "acceptance": way.acceptance,
        "accepted_per_forward": way.accepted, "tokens_per_second": rate, "spread": [min(way.rates), max(way.rates)],
        "to_plain": rate / statistics.median(plain.rates), "floor_tokens_per_second": floor,
        "share_of_floor": rate / floor, "first_call_seconds": way.first_seconds, "peak_bytes_over_plain": more,
    }  # fmt: skip


def timed(model, args, way: Way, device: str) -> float:
    """Answer every prompt once and return the tokens per second; upstream's assisted rounds are scaled (see above)."""
    with count_forwards(model) if way.engine == "upstream assisted" else nullcontext() as forwards:
        started = time.perf_counter()
        rate = tokens_per_second(model, args, way.kwargs, way.batch_size, device)
        seconds = time.perf_counter() - started
    way.first_seconds = way.first_seconds or seconds
    return rate if forwards is None else forwards.count * (way.accepted + 1) / seconds


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
