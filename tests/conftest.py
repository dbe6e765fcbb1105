"""Tiny models of any architecture, noisy drafts, prompts and heads: built from configs in memory, offline."""

from __future__ import annotations

import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from threads, and workers share the cores

import accelerate
import pytest
import torch
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_judge import JudgeConfig, JudgeHead, judged

torch.set_num_threads(1)

VOCAB = 64
WIDTH = 32
EOS = 3

WHOLLY_OFFLOADED = pytest.mark.skipif(
    Version(accelerate.__version__) < Version("1.15"), reason="this accelerate puts no whole model on disk"
)

# what an architecture needs beside the common sizes
ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 8},  # shorter than the prompts below: the window is exceeded
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {"rotary_pct": 0.5},
    "phi3": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.7},
    "bloom": {"n_layer": 2, "n_head": 4},
}


def tiny_model(
    architecture: str = "llama", *, seed: int = 0, attention: str | None = None, **overrides
) -> PreTrainedModel:
    """A random float32 model of about 30,000 weights whose greedy continuations are varied."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": None,  # else generate() takes it for padding wherever it stands in the ids
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(architecture, **settings | ARCHITECTURES.get(architecture, {}) | overrides)
    config._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(config).eval()
    return randomize(model, seed)


def randomize(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Give every matrix of the model unit gain, so that depth and context matter to the argmax."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = 1.0 if id(parameter) in embeddings else 1.5 * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.requires_grad_(False)


def noisy_copy(model: PreTrainedModel, *, noise: float = 0.06, seed: int = 1) -> PreTrainedModel:
    """A draft: the target plus noise in every matrix, relative to that matrix."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.dim() > 1:
                parameter += torch.randn(parameter.shape, generator=generator) * parameter.std() * noise
    return draft


def random_head(*, width: int = WIDTH, bias: float = 0.0, scale: float = 1.0, seed: int = 2, **config) -> JudgeHead:
    """A head whose logits spread by about `scale` around `bias` on states of unit variance."""
    head = JudgeHead(JudgeConfig(hidden_size=width, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, width, generator=generator) * scale * width**-0.5)
        head.bias.fill_(bias)
    return head.requires_grad_(False)


def always_head(width: int = WIDTH) -> JudgeHead:
    """A head that accepts whatever it sees, below threshold 1."""
    return random_head(width=width, bias=20.0, scale=0.0)


def prompt(seed: int, length: int = 12) -> torch.LongTensor:
    """(1, length) long, random ids that are no special tokens."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(4, VOCAB, (1, length), generator=generator)


def repetitive_prompt(seed: int = 0, length: int = 24, period: int = 4) -> torch.LongTensor:
    """(1, length) long, a random motif over and over: what prompt lookup finds drafts in from the first round on."""
    return prompt(seed, period).repeat(1, length // period)


@pytest.fixture(scope="session")
def target() -> PreTrainedModel:
    """The Judge class over a stock tiny Llama."""
    return judged(tiny_model())


@pytest.fixture(scope="session")
def draft() -> PreTrainedModel:
    """A stock model that agrees with `target` about half of the time."""
    return noisy_copy(tiny_model())
