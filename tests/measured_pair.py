"""A random pair with a tokenizer of single characters and a task, for the tests of measurements."""

from __future__ import annotations

import copy

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_judge import JudgeConfig, JudgeHead
from hf_judge.evaluation.answers import Pair
from hf_judge.evaluation.tasks import Example, Task

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!+-*=<>/()[]{}'\"&\x1b"
WIDTH = 32


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<s>": 1, "<pad>": 2, "</s>": 3} | {c: i + 4 for i, c in enumerate(CHARACTERS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}:"
    return fast


def model(seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 4, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=3,
        pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    made, generator = LlamaForCausalLM(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * parameter.shape[-1] ** -0.5)
        made.model.embed_tokens.weight.mul_(4)
    return made.requires_grad_(False)


def noisy(target: LlamaForCausalLM, noise: float = 0.1) -> LlamaForCausalLM:
    draft, generator = copy.deepcopy(target), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.dim() > 1:
                parameter += torch.randn(parameter.shape, generator=generator) * parameter.std() * noise
    return draft


def head(bias: float = 0.0) -> JudgeHead:
    made = JudgeHead(JudgeConfig(hidden_size=WIDTH))
    with torch.no_grad():
        made.weight.copy_(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(5)) * 0.4)
        made.bias.fill_(bias)
    return made.requires_grad_(False)


def pair() -> Pair:
    target = model()
    return Pair(target, noisy(target), tokenizer(), {"judge": head()}, name="a random pair")


def task(n: int = 4) -> Task:
    """An answer is right where it holds more lower-case letters than the alphabet's share."""

    def is_right(text: str) -> bool:
        return sum(map(str.islower, text)) > 8

    messages = [[{"role": "user", "content": f"What is {i} plus {3 * i}?"}] for i in range(n)]
    return Task("letters", [Example(str(i), messages[i], is_right) for i in range(n)])
