"""Train one model of the tiny pair from scratch: next-token loss on the answers alone."""

import random
import time
from collections.abc import Callable, Iterator

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_judge.tiny.mistakes import MISTAKES, correct, solve_wrongly
from hf_judge.tiny.world import DRAFT_STYLE, TARGET_STYLE, Problem, Style, first_mistake, make_problem, solve

IGNORED = -100
# The target reads every wording and prefers its own in all of them: an author is drawn for each story.
AUTHORS = (Style(target=0.8), Style(target=0.4, draft=0.3), Style(target=0.5, draft=0.4), Style())
AUTHOR_WEIGHTS = (0.25, 0.3, 0.25, 0.2)
WRONG, CORRECTED, CORRECTED_LATE = 0.5, 0.38, 0.06  # of all stories; of the wrong ones


def target_story(problem: Problem, rng: random.Random) -> str:
    """Any wording; half of the stories have a mistake, most of which nobody notices."""
    style = rng.choices(AUTHORS, AUTHOR_WEIGHTS)[0]
    if rng.random() >= WRONG:
        return solve(problem, rng, style)
    text, _ = solve_wrongly(problem, rng, style, kind=rng.choice(MISTAKES))
    draw = rng.random()
    if draw < CORRECTED + CORRECTED_LATE:
        return correct(problem, rng, text, style, late=draw >= CORRECTED)
    return text


def draft_story(problem: Problem, rng: random.Random) -> str:
    """The draft's own wording, now and then another; always right."""
    return solve(problem, rng, Style(draft=0.85))


def model_config(tokenizer: PreTrainedTokenizerFast, n_layers: int, hidden_size: int) -> LlamaConfig:
    """A Llama with heads of 64, tied embeddings and the tokenizer's special tokens."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 16 * 16,
        num_hidden_layers=n_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def encode_story(tokenizer, problems: list[Problem], texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompt and answer, and the same ids as labels: the prompt and a first mistake are not learned."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p.question}], add_generation_prompt=True, tokenize=False)
        for p in problems
    ]
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    answers = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = [], []
    for problem, text, prompt, answer, offsets in zip(
        problems, texts, prompt_ids, answers.input_ids, answers.offset_mapping, strict=True
    ):
        start, end = first_mistake(problem, text) or (len(text), len(text))
        learned = [IGNORED if a < end and b > start else t for t, (a, b) in zip(answer, offsets, strict=True)]
        ids.append(prompt + answer + [tokenizer.eos_token_id])
        labels.append([IGNORED] * len(prompt) + learned + [tokenizer.eos_token_id])
    return ids, labels


def batches(
    tokenizer, story: Callable[[Problem, random.Random], str], batch_size: int, part: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels), each (batch, longest) int64, padded on the right; stories of like length go together."""
    rng = random.Random(part)
    while True:
        problems = [make_problem(rng) for _ in range(batch_size * 16)]
        rows = list(zip(*encode_story(tokenizer, problems, [story(p, rng) for p in problems]), strict=True))
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        rng.shuffle(groups)
        for group in groups:
            shape = (batch_size, max(len(ids) for ids, _ in group))
            ids, labels = torch.full(shape, tokenizer.pad_token_id), torch.full(shape, IGNORED)
            for i, (row_ids, row_labels) in enumerate(group):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                labels[i, : len(row_labels)] = torch.tensor(row_labels)
            yield ids, labels


def train(
    config: LlamaConfig,
    tokenizer: PreTrainedTokenizerFast,
    story: Callable[[Problem, random.Random], str],
    *,
    part: str,
    n_steps: int,
    learning_rate: float,
    batch_size: int = 32,
    log: Callable[[str], None] = print,
) -> LlamaForCausalLM:
    """Train for `n_steps` batches under one cycle of the learning rate.

    Eager attention in bfloat16 autocast: with heads of 64 several times faster on a CPU than scaled_dot_product.
    """
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=n_steps, pct_start=0.1)
    started, stream = time.monotonic(), batches(tokenizer, story, batch_size, part)
    for step in range(n_steps):
        ids, labels = next(stream)
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
    return model.eval()
