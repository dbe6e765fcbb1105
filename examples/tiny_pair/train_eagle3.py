"""Train an EAGLE-3 draft for the embedded target: one decoder layer, with training-time test (arXiv 2503.01840).

python examples/tiny_pair/train_eagle3.py --out hf_judge/tiny/eagle3
"""

import argparse
import random
import time

import torch
from train import Story, encode_stories
from transformers import LlamaConfig, PreTrainedModel

from hf_judge.speculators.config import Eagle3Config
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.tiny.pair import load_pair
from hf_judge.tiny.world import TARGET_STYLE, make_problem, solve
from hf_judge.upstream.states import StateReader


class TrainingCache:
    """Keeps the keys and values of every step side by side: step s adds one key to what each position sees."""

    def __init__(self, n_layers: int):
        self._layers = [None] * n_layers

    def update(self, layer, keys, values, positions, n_keys):
        """Append; see [`hf_judge.speculators.model.Eagle3Cache.update`]."""
        held = self._layers[layer]
        if held is not None:
            keys, values = torch.cat([held[0], keys], dim=2), torch.cat([held[1], values], dim=2)
        self._layers[layer] = keys, values
        return keys, values


def loss_of(
    draft: Eagle3DraftModel,
    ids: torch.Tensor,
    states: torch.Tensor,
    logits: torch.Tensor,
    learned: torch.Tensor,
    n_steps: int,
) -> torch.Tensor:
    """Return the mean loss over the steps of training-time test: each step reads the states that the one before gave.

    Args:
        draft: the draft.
        ids: (batch, n) long.
        states: (batch, n, n_aux * width), the target's joined states.
        logits: (batch, n, V), the target's logits over its vocabulary: what the draft learns to say.
        learned: (batch, n) bool, positions whose predictions count.
        n_steps: steps, 1 or more.
    """
    n, total = ids.shape[1] - 1, 0.0
    cache, causal = TrainingCache(len(draft.layers)), torch.ones(n, n, dtype=torch.bool).tril()
    own = torch.eye(n, dtype=torch.bool)
    state, positions = draft.fuse(states[:, :n]), torch.arange(n).expand(ids.shape[0], n)
    padded = torch.nn.functional.pad(ids, (0, n_steps))
    for step in range(n_steps):
        mask = torch.cat([causal, *[own] * step], dim=1)[None, None]
        # the pair at position i reads token i+1+step and predicts the next one
        state = draft(padded[:, 1 + step : 1 + step + n], state, positions + step, cache, mask)
        used = n - step
        found = draft.logits(state[:, :used]).float().log_softmax(dim=-1)
        wanted = logits[:, 1 + step : 1 + step + used]
        wanted = wanted if draft.ids is None else wanted[..., draft.ids]
        counted = learned[:, 1 + step : 1 + step + used].float()
        each = -(wanted.float().softmax(dim=-1) * found).sum(dim=-1)
        total = total + 0.8**step * (each * counted).sum() / counted.sum().clamp(min=1)
    return total / sum(0.8**step for step in range(n_steps))


@torch.no_grad()
def read_target(
    target: PreTrainedModel, ids: torch.Tensor, layers: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target's joined states (batch, n, n_aux * width) and logits (batch, n, V) at every token."""
    with StateReader(target, None, layers) as reader:
        logits = target(input_ids=ids, use_cache=False).logits
        return reader.read_layers(), logits


def train(
    draft: Eagle3DraftModel,
    target: PreTrainedModel,
    texts: list[torch.Tensor],
    *,
    n_steps: int = 3,
    epochs: int = 3,
    learning_rate: float = 1e-3,
    log=print,
) -> None:
    """Train the draft on texts like the target's own.

    Args:
        draft: trained in place; an embedding of its own is not trained.
        target: the target.
        texts: batches of ids, (batch, n) long, padded with -1.
        n_steps: steps of training-time test.
        epochs: passes over the texts.
        learning_rate: the highest one of a single cycle.
        log: gets a line now and then.
    """
    draft.train().requires_grad_(True)
    if draft.embed_tokens is not None:
        draft.embed_tokens.requires_grad_(False)
    parameters = [p for p in draft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95))
    total, started = epochs * len(texts), time.monotonic()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=total, pct_start=0.1)
    order = random.Random(0)
    for step in range(total):
        if step % len(texts) == 0:
            order.shuffle(texts)
        batch = texts[step % len(texts)]
        learned, ids = batch >= 0, batch.clamp(min=0)
        states, logits = read_target(target, ids, draft.eagle_config.aux_layers)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(draft, ids, states, logits, learned, n_steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == total - 1:
            log(f"step {step} of {total}, loss {loss.item():.4f}, {time.monotonic() - started:.0f} s")
    draft.eval().requires_grad_(False)


def stories(tokenizer, n_problems: int, batch_size: int) -> list[torch.Tensor]:
    """Return problems with right answers in the target's own wording, in batches of ids padded with -1."""
    rng = random.Random("eagle3")
    problems = [make_problem(rng) for _ in range(n_problems)]
    rows = encode_stories(tokenizer, problems, [Story(solve(p, rng, TARGET_STYLE)) for p in problems])
    ids = sorted((torch.tensor(ids) for ids, _ in rows), key=len)
    groups = [ids[start : start + batch_size] for start in range(0, n_problems, batch_size)]
    return [torch.nn.utils.rnn.pad_sequence(group, batch_first=True, padding_value=-1) for group in groups]


def new_draft(target: PreTrainedModel, layers: tuple[int, ...], intermediate_size: int) -> Eagle3DraftModel:
    """Return an untrained draft of the target's width, which reads the target's embedding."""
    config = target.config
    own = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
    )
    draft = Eagle3DraftModel(Eagle3Config(own, config.vocab_size, config.hidden_size, layers), None, target)
    for parameter in draft.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return draft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="directory for the draft")
    parser.add_argument("--problems", type=int, default=3600)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    pair = load_pair(4)  # as trained: deeper targets add nothing
    draft = new_draft(pair.target, (1, 2, 4), intermediate_size=256)
    texts = stories(pair.tokenizer, args.problems, args.batch_size)
    train(draft, pair.target, texts, epochs=args.epochs, learning_rate=args.learning_rate)
    draft.half().save_pretrained(args.out)


if __name__ == "__main__":
    main()
