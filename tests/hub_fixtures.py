"""A tiny target with a tokenizer, a noisy draft and a head, for the tests of adapters and the Hub."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import hf_judge
from hf_judge import JudgeConfig, JudgeHead

if importlib.util.find_spec("hf_judge.hub_cards") is None:
    # an uninstalled checkout: setup.cfg maps the folder into the package
    hf_judge.__path__.append(str(Path(hf_judge.__file__).parent.parent))

VOCAB, WIDTH = 64, 32
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"


def tiny_target(seed: int = 0, **overrides) -> LlamaForCausalLM:
    """A random Llama whose greedy continuations are varied."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | overrides)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                scale = 1.0 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        model.lm_head.weight[:3] = 0  # no answer ends early
    return model.requires_grad_(False)


def noisy_draft(model: LlamaForCausalLM, noise: float = 0.3) -> LlamaForCausalLM:
    """A draft that agrees with the target now and then."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.dim() > 1:
                parameter += torch.randn(parameter.shape, generator=generator) * parameter.std() * noise
    return draft


def random_head(seed: int = 2, *, bias: float = 0.5, **config) -> JudgeHead:
    """A head that accepts somewhat more than half of what it sees."""
    head = JudgeHead(JudgeConfig(hidden_size=WIDTH, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, WIDTH, generator=generator) * WIDTH**-0.5)
        head.bias.fill_(bias)
    return head.requires_grad_(False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token, w4 to w63, and a chat template."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT,
    )


def prompt(seed: int = 0, length: int = 10) -> torch.LongTensor:
    """(1, length) long, random ids that are no special tokens."""
    return torch.randint(4, VOCAB, (1, length), generator=torch.Generator().manual_seed(1000 + seed))


def save_pair(folder: Path) -> tuple[Path, Path]:
    """A target and its draft on disk, each with the tokenizer; the folders."""
    target = tiny_target()
    for name, model in (("base", target), ("draft", noisy_draft(target))):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder / "base", folder / "draft"
