"""Load the embedded pair, at any depth of its target."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from hf_judge.modeling.mixin import JudgeLlamaForCausalLM

HOME = Path(__file__).parent


@dataclass(frozen=True)
class TinyPair:
    """Holds all that judged generation needs."""

    target: JudgeLlamaForCausalLM
    """The target, in evaluation mode."""
    draft: LlamaForCausalLM
    """The draft, in evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer of both models, with a chat template."""
    judge: str
    """Directory of the judge head."""


def load_pair(
    num_hidden_layers: int = 24, dtype: torch.dtype = torch.float32, *, directory: str | Path = HOME
) -> TinyPair:
    """Load the embedded pair, or another one that examples/tiny_pair made.

    Args:
        num_hidden_layers: depth of the target, which was trained with 4 layers. Further layers add exactly nothing to
            the residual stream, so every depth gives the same logits bit for bit, but takes as long as a model of that
            depth. Drafting pays only where the target is slow.
        dtype: dtype of both models; the weights are stored in float16.
        directory: folder of `target`, `draft` and `judge`.

    Returns:
        The pair, on the CPU.

    Raises:
        ValueError: there are fewer layers than were trained.
    """
    directory = Path(directory)
    target = JudgeLlamaForCausalLM.from_pretrained(directory / "target", dtype=dtype)
    deepen(target, num_hidden_layers)
    draft = LlamaForCausalLM.from_pretrained(directory / "draft", dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(directory / "target")
    return TinyPair(target.eval(), draft.eval(), tokenizer, str(directory / "judge"))


def deepen(model: LlamaForCausalLM, num_hidden_layers: int) -> None:
    """Append layers whose attention and MLP run like any other but end in zero projections."""
    trained = model.config.num_hidden_layers
    if num_hidden_layers < trained:
        raise ValueError(f"num_hidden_layers: expected {trained} (as trained) or more, received {num_hidden_layers}")
    for i in range(trained, num_hidden_layers):
        layer = copy.deepcopy(model.model.layers[i % trained])
        layer.self_attn.layer_idx = i
        layer.self_attn.config = model.config
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        model.model.layers.append(layer)
    model.config.num_hidden_layers = num_hidden_layers
