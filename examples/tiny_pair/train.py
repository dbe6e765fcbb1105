"""Train one model of the tiny pair from scratch: next-token loss on the answers alone."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_judge.tiny.mistakes import MISTAKES, correct, solve_wrongly
from hf_judge.tiny.world import Problem, Style, first_mistake, make_problem, solve

IGNORED = -100
# The target reads every wording and prefers its own in all of them: an author is drawn for each story.
AUTHORS = (Style(target=0.8), Style(target=0.4, draft=0.3), Style(target=0.5, draft=0.4), Style())
AUTHOR_WEIGHTS = (0.25, 0.3, 0.25, 0.2)


@dataclass(frozen=True)
class Lesson:
    """What the target reads in one stage of its training, and how much it minds mistakes."""

    wrong: float
    """Share of stories with a mistake."""
    corrected: float
    """Share of these in which "Wait" follows the mistake at once. Below the probability of the likeliest way to go
    on, so that the target, decoding greedily, carries a mistake on: what is wrong then shows in the answer."""
    corrected_late: float
    """Share of these in which it follows at the end of the sentence."""
    emphasis: float
    """Weight of the loss at the token right after a mistake. Weighing by context changes nothing that the target is to
    predict there, but there is one such token in a story of 120: unweighted, noticing mistakes is learned last."""
    kinds: tuple[str, ...] = MISTAKES

    def __call__(self, problem: Problem, rng: random.Random) -> str:
        """Write a story in any wording, with or without a mistake."""
        style = rng.choices(AUTHORS, AUTHOR_WEIGHTS)[0]
        if rng.random() >= self.wrong:
            return solve(problem, rng, style)
        text, _ = solve_wrongly(problem, rng, style, kind=rng.choice(self.kinds))
        draw = rng.random()
        if draw < self.corrected + self.corrected_late:
            return correct(problem, rng, text, style, late=draw >= self.corrected)
        return text


READING = Lesson(wrong=0.5, corrected=0.38, corrected_late=0.06, emphasis=1.0)
NOTICING = Lesson(
    wrong=0.9, corrected=0.25, corrected_late=0.05, emphasis=20.0, kinds=MISTAKES + ("value", "op", "amount", "result")
)


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


def encode_stories(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], texts: list[str], emphasis: float
) -> list[tuple[list[int], list[int], list[float]]]:
    """Token ids, labels and loss weights of prompts and answers: the prompt and a first mistake are not learned."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.question}], add_generation_prompt=True, tokenize=False
        )
        for p in problems
    ]
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    answers = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    rows = []
    for problem, text, prompt, ids, offsets in zip(
        problems, texts, prompt_ids, answers.input_ids, answers.offset_mapping, strict=True
    ):
        start, end = first_mistake(problem, text) or (len(text), len(text))
        wrong = [a < end and b > start for a, b in offsets]
        ids = [*ids, tokenizer.eos_token_id]
        labels = [IGNORED if w else t for w, t in zip([*wrong, False], ids, strict=True)]
        weights = [emphasis if w else 1.0 for w in [False, *wrong]]
        rows.append((prompt + ids, [IGNORED] * len(prompt) + labels, [0.0] * len(prompt) + weights))
    return rows


def batches(
    tokenizer: PreTrainedTokenizerFast,
    story: Callable[[Problem, random.Random], str],
    *,
    batch_size: int,
    part: str,
    emphasis: float,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels, weights), each (batch, longest), padded on the right; like lengths go together."""
    rng = random.Random(part)
    while True:
        problems = [make_problem(rng) for _ in range(batch_size * 16)]
        rows = encode_stories(tokenizer, problems, [story(p, rng) for p in problems], emphasis)
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        rng.shuffle(groups)
        for group in groups:
            shape = (batch_size, max(len(ids) for ids, _, _ in group))
            batch = torch.full(shape, tokenizer.pad_token_id), torch.full(shape, IGNORED), torch.zeros(shape)
            for i, row in enumerate(group):
                for tensor, values in zip(batch, row, strict=True):
                    tensor[i, : len(values)] = torch.tensor(values, dtype=tensor.dtype)
            yield batch


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    story: Callable[[Problem, random.Random], str],
    *,
    part: str,
    n_steps: int,
    learning_rate: float,
    batch_size: int = 32,
    emphasis: float = 1.0,
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
        emphasis: Weight of the token right after a mistake.
        log: Gets a line now and then.
    """
    model.train().set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=n_steps, pct_start=0.1)
    started = time.monotonic()
    stream = batches(tokenizer, story, batch_size=batch_size, part=part, emphasis=emphasis)
    for step, (ids, labels, weights) in zip(range(n_steps), stream, strict=False):
        learned = labels[:, 1:] != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][learned])
        losses = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][learned], reduction="none")
        loss = (losses * weights[:, 1:][learned]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == n_steps - 1:
            log(f"{part}: step {step} of {n_steps}, loss {loss.item():.4f}, {time.monotonic() - started:.0f} s")
    model.eval()
