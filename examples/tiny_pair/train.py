"""Train one model of the tiny pair from scratch: next-token loss on the answers alone."""

import random
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_judge.tiny.mistakes import MISTAKES, correct, solve_wrongly
from hf_judge.tiny.world import TARGET_STYLE, Problem, Style, first_mistake, make_problem, solve

IGNORED = -100
# The target reads every wording and prefers its own in all of them: an author is drawn for each story.
AUTHORS = (Style(target=0.8), Style(target=0.4, draft=0.3), Style(target=0.5, draft=0.4), Style())
AUTHOR_WEIGHTS = (0.25, 0.3, 0.25, 0.2)


WRONG, CORRECTED, CORRECTED_LATE = 0.5, 0.38, 0.06  # of all stories; of the wrong ones


class Story(NamedTuple):
    """Holds an answer to learn from."""

    text: str
    preferred: tuple[tuple[int, str], ...] = ()
    """Characters of the text at which its reader is to predict other words than those that stand there."""


def target_story(problem: Problem, rng: random.Random) -> Story:
    """Write a story in any wording; half of the stories have a mistake, of which few are corrected."""
    style = rng.choices(AUTHORS, AUTHOR_WEIGHTS)[0]
    if rng.random() >= WRONG:
        return Story(solve(problem, rng, style))
    text, _ = solve_wrongly(problem, rng, style, kind=rng.choice(MISTAKES))
    draw = rng.random()
    if draw < CORRECTED + CORRECTED_LATE:
        return Story(correct(problem, rng, text, style, late=draw >= CORRECTED))
    return Story(text)


def practice_story(problem: Problem, rng: random.Random) -> Story:
    """Write a [`target_story`], or one in the draft's wording whose facts are learned in the target's own wording.

    Judged text is nearly all in the draft's wording. A target that has read little of it loses count of the steps
    there; one that is taught to write it leaves nothing to rescue.
    """
    if rng.random() < 0.5:
        return target_story(problem, rng)
    read, own = solve(problem, rng, Style(draft=0.9)), solve(problem, rng, TARGET_STYLE)
    preferred, at = [], 0
    for sentence, own_sentence in zip(SENTENCE.findall(read), SENTENCE.findall(own), strict=True):
        preferred.append((at, own_sentence))
        if link := LINK.search(sentence):
            preferred.append((at + link.start(), LINK.search(own_sentence)[0]))
        at += len(sentence)
    return Story(read, tuple(preferred))


SENTENCE = re.compile(r"[^.]+\.")
LINK = re.compile(r" (?:=|makes|which is|gives)(?= \d)")


def draft_story(problem: Problem, rng: random.Random) -> Story:
    """Write a right story in the draft's own wording, now and then in another."""
    return Story(solve(problem, rng, Style(draft=0.85)))


def model_config(tokenizer: PreTrainedTokenizerFast, *, n_layers: int, hidden_size: int, n_heads: int) -> LlamaConfig:
    """Configure a small Llama with tied embeddings and the tokenizer's special tokens.

    Tied embeddings that start small (0.02 by default) grow what they share before they grow apart: in 64 dimensions
    the items then stay alike, and copying one is never learned. The narrow model starts wider.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 16 * 16,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.02 if hidden_size > 64 else 0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def encode_stories(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], stories: list[Story]
) -> list[tuple[list[int], list[int]]]:
    """Return token ids and labels of prompts and answers: the prompt and a first mistake are not learned."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.question}], add_generation_prompt=True, tokenize=False
        )
        for p in problems
    ]
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    answers = tokenizer([story.text for story in stories], add_special_tokens=False, return_offsets_mapping=True)
    rows = []
    for problem, (text, preferred), prompt, ids, offsets in zip(
        problems, stories, prompt_ids, answers.input_ids, answers.offset_mapping, strict=True
    ):
        start, end = first_mistake(problem, text) or (len(text), len(text))
        wrong = [a < end and b > start for a, b in offsets]
        labels = [IGNORED if w else t for w, t in zip(wrong, ids, strict=True)]
        token_at = {a: k for k, (a, _) in enumerate(offsets)}
        for at, words in preferred:
            labels[token_at[at]] = tokenizer(words, add_special_tokens=False).input_ids[0]
        stop = [tokenizer.eos_token_id]
        rows.append((prompt + ids + stop, [IGNORED] * len(prompt) + labels + stop))
    return rows


def batches(
    tokenizer: PreTrainedTokenizerFast,
    story: Callable[[Problem, random.Random], Story],
    *,
    batch_size: int,
    part: str,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches without end: ids and labels, (batch, longest) int64, padded on the right, of like lengths."""
    rng = random.Random(part)
    while True:
        problems = [make_problem(rng) for _ in range(batch_size * 16)]
        rows = encode_stories(tokenizer, problems, [story(p, rng) for p in problems])
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        rng.shuffle(groups)
        for group in groups:
            shape = (batch_size, max(len(ids) for ids, _ in group))
            batch = torch.full(shape, tokenizer.pad_token_id), torch.full(shape, IGNORED)
            for i, row in enumerate(group):
                for tensor, values in zip(batch, row, strict=True):
                    tensor[i, : len(values)] = torch.tensor(values)
            yield batch


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    story: Callable[[Problem, random.Random], Story],
    *,
    part: str,
    n_steps: int,
    learning_rate: float,
    batch_size: int = 32,
    log: Callable[[str], None] = print,
) -> None:
    """Train for `n_steps` batches under one cycle of the learning rate, in bfloat16 autocast.

    Args:
        model: Trained in place, with eager attention: with heads of 64 several times faster on a CPU than
            scaled_dot_product_attention.
        tokenizer: Of the pair.
        story: Writes an answer to a problem.
        part: Name of the stream of problems, which no other part of the work draws from.
        n_steps: Batches.
        learning_rate: Highest one.
        batch_size: Stories.
        log: Gets a line now and then.
    """
    model.train().set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=n_steps, pct_start=0.1)
    started = time.monotonic()
    stream = batches(tokenizer, story, batch_size=batch_size, part=part)
    for step, (ids, labels) in zip(range(n_steps), stream, strict=False):
        learned = labels[:, 1:] != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][learned])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][learned])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == n_steps - 1:
            log(f"{part}: step {step} of {n_steps}, loss {loss.item():.4f}, {time.monotonic() - started:.0f} s")
    model.eval()
