"""Computes the bytes of target, draft and judge, weights and caches, and the judge's share of a verification step.

    python benchmarks/sizing.py                    # the tables of docs/scale.md, from the models' configs; instant
    python benchmarks/sizing.py --measure-layer    # one decoder layer of the 405B beside its head, on this machine

P = 2 V D + L (2 D H d + 2 D G d + 3 D F + 2 D) + D       weights: vocabulary V, width D, L layers, H heads and G
                                                          key-value heads of d numbers each, MLP width F (Llama, untied)
cache = 2 L G d                                           numbers per token and sequence
head = (D + 1) * 4 bytes, float32
share of a step = D / P                                   multiply-adds per token: D in the head, P in the target
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from hf_judge import JudgeConfig, JudgeHead


class Size(NamedTuple):
    """Numbers of a model's public config.json."""

    name: str
    width: int  # D, hidden_size
    layers: int  # L, num_hidden_layers
    heads: int  # H, num_attention_heads
    kv_heads: int  # G, num_key_value_heads
    mlp: int  # F, intermediate_size
    head_dim: int = 128  # d
    vocabulary: int = 128256  # V, vocab_size

    @property
    def weights(self) -> int:
        """Number of parameters."""
        attention = 2 * self.width * self.heads * self.head_dim + 2 * self.width * self.kv_heads * self.head_dim
        layer = attention + 3 * self.width * self.mlp + 2 * self.width
        return 2 * self.vocabulary * self.width + self.layers * layer + self.width

    @property
    def cache(self) -> int:
        """Cached numbers per token of a sequence."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def judge_bytes(self) -> int:
        """Bytes of the head in float32."""
        return 4 * (self.width + 1)


LLAMA_8B = Size("Llama 3.1 8B", 4096, 32, 32, 8, 14336)
LLAMA_70B = Size("Llama 3.1 70B", 8192, 80, 64, 8, 28672)
LLAMA_405B = Size("Llama 3.1 405B", 16384, 126, 128, 8, 53248)
CONTEXT = 8192  # tokens of one sequence
DRAFT_LENGTH = 32


def table() -> str:
    """Return a table of both pairs: bfloat16 weights and caches, in decimal gigabytes."""
    lines = [
        "| pair | weights: target + draft, bf16 | target in 8 bits, draft bf16 | in 4 bits | caches: one sequence of "
        f"{CONTEXT:,} tokens | logits of a round, k = {DRAFT_LENGTH} | judge head | "
        "the judge's share of a verification step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target in (LLAMA_70B, LLAMA_405B):
        draft = LLAMA_8B
        weights = [(bits / 8 * target.weights + 2 * draft.weights) / 1e9 for bits in (16, 8, 4)]
        caches = [2 * size.cache * CONTEXT / 1e9 for size in (target, draft)]
        # raw and processed scores of k+1 rows, scores of k drafted tokens, float32
        logits = 4 * target.vocabulary * (2 * (DRAFT_LENGTH + 1) + DRAFT_LENGTH) / 1e6
        lines.append(
            f"| {draft.name.split()[-1]} / {target.name.split()[-1]} | {2 * target.weights / 1e9:.1f} + "
            f"{2 * draft.weights / 1e9:.1f} = {weights[0]:.1f} GB | {weights[1]:.1f} GB | {weights[2]:.1f} GB | "
            f"{caches[0]:.2f} + {caches[1]:.2f} GB | {logits:.0f} MB | {target.judge_bytes:,} bytes | "
            f"{target.width / target.weights:.1e} |"
        )
    return "\n".join(lines)


def measure_layer(size: Size, n_rows: int, repeats: int) -> tuple[float, float]:
    """Measure the median seconds of one decoder layer over `n_rows` tokens, and of the judge over the same tokens."""
    config = LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        num_hidden_layers=1,
        vocab_size=8,
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0).to(torch.bfloat16)
    layer = layer.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1e-3)
    head = JudgeHead(JudgeConfig(hidden_size=size.width))
    hidden = torch.randn(1, n_rows, size.width, dtype=torch.bfloat16)
    positions = LlamaRotaryEmbedding(config)(hidden, torch.arange(n_rows)[None])
    seconds = ([], [])
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            layer(hidden, position_embeddings=positions)
            middle = time.perf_counter()
            head(hidden[:, 1:]).sigmoid().gt(0.5).tolist()
            seconds[0].append(middle - start)
            seconds[1].append(time.perf_counter() - middle)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure-layer", action="store_true", help="needs 7 GB of memory and some minutes")
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    print(table())
    for size in (LLAMA_8B, LLAMA_70B, LLAMA_405B):
        print(f"{size.name}: {size.weights:,} weights, {2 * size.cache:,} bytes of cache per token in bf16")
    if args.measure_layer:
        size = LLAMA_405B
        layer, judge = measure_layer(size, DRAFT_LENGTH + 1, args.repeats)
        print(
            f"one of {size.layers} layers over {DRAFT_LENGTH + 1} rows: {layer:.3f} s; the judge over {DRAFT_LENGTH}: "
            f"{judge * 1e6:.0f} microseconds, {judge / (layer * size.layers):.1e} of all layers"
        )


if __name__ == "__main__":
    main()
