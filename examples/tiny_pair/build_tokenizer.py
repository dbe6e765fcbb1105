"""Train the tokenizer of the tiny pair on the world's own text."""

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_judge.tiny.mistakes import MISTAKES, correct, solve_wrongly
from hf_judge.tiny.world import problems, solve

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
# The whole format of a prompt: what training writes and what users get from apply_chat_template.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('the tiny pair knows the roles user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(n_problems: int = 3000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a token of its own; it adds no special tokens by itself."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,  # an upper bound: there are fewer merges than that
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(n_problems), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _texts(n_problems: int) -> Iterator[str]:
    rng = random.Random("tokenizer")
    for i, problem in enumerate(problems(n_problems, seed=0, part="tokenizer")):
        yield problem.question
        yield solve(problem, rng)
        yield correct(problem, rng, solve_wrongly(problem, rng, kind=MISTAKES[i % len(MISTAKES)])[0])
