"""Decode several texts at once, greedily: apart from near-ties, a text does not depend on the rest of its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from hf_judge.upstream.forward import input_device, of_width, readable, vocabulary_rows

PASS_VALUES = 1 << 28  # logits held at once by a pass over whole texts
# Units in the last place of the largest logit. In another batch we measured shifts of up to 15 units in float32, and of
# 2.2 in the half precisions, where sums are kept in float32 and rounded once. The limits are about twice that.
ROUNDING = {torch.float64: 32, torch.float32: 32}
HALF_ROUNDING = 4
# Arguments of `generate` for callers that read the result: a checkpoint's generation_config may set how a result comes
# about and is returned, and these replace that. What it says about the text (penalties, suppressed tokens) stays.
ANSWER_ALONE = {
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_time": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
}


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: list[list[int]],
    limits: list[int],
    *,
    noise: LogitsProcessor | None = None,
    n_tokens: int | None = None,
) -> list[tuple[list[int], float]]:
    """Continue several prefixes at once.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        prefixes: token ids, of any lengths.
        limits: largest number of new tokens for each prefix.
        noise: processor that changes the logits first.
        n_tokens: bound that written ids are below; None: the model's number of tokens.

    Returns:
        For each prefix its new ids, with the stop token, and the smallest [`closeness`] at which any was chosen.
    """
    longest = max(map(len, prefixes))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prefixes], device=input_device(model))
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prefixes], device=input_device(model))
    gaps = _Gaps(model.dtype)
    first = [] if n_tokens is None or n_tokens >= vocabulary_rows(model) else [_Below(n_tokens)]
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max(limits),
        **ANSWER_ALONE,
        pad_token_id=pad,
        logits_processor=LogitsProcessorList([*first, *([] if noise is None else [noise]), gaps]),
    )
    stop_tokens, results = stop_tokens_of(model), []
    seen = torch.stack(gaps.rows, dim=1)  # (batch, steps)
    for i, row in enumerate(output[:, longest:].tolist()):
        n = next((j + 1 for j, token in enumerate(row) if token in stop_tokens), len(row))
        n = min(n, limits[i])
        results.append((row[:n], seen[i, :n].min().item()))
    return results


def closeness(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Measure the gap between the two best logits in units of what rounding may move.

    From 1 down, another batch size or another device may choose the other token. Rounding grows with the logits, so the
    unit is n units in the last place of the largest one: ``gap / (n * eps * max |z|)``, with n from `ROUNDING`. Half
    precisions are coarse: values below 1 are common there.

    Args:
        logits: (..., V) float.
        dtype: dtype in which the model computed the logits.

    Returns:
        (...) float32.
    """
    logits = logits.float()
    best = logits.topk(2, dim=-1).values
    scale = torch.where(logits.isfinite(), logits.abs(), 0.0).amax(dim=-1)
    unit = ROUNDING.get(dtype, HALF_ROUNDING) * torch.finfo(dtype).eps * scale
    return (best[..., 0] - best[..., 1]) / unit.clamp(min=torch.finfo(torch.float32).tiny)


class _Below(LogitsProcessor):
    """Rules out ids that are no words of the tokenizer, or that another model lacks."""

    def __init__(self, n_tokens: int):
        self._n_tokens = n_tokens

    def __call__(self, input_ids, scores):
        return of_width(scores[:, : self._n_tokens], scores.shape[-1])


class _Gaps(LogitsProcessor):
    """Keeps the closeness of the two best logits of every step."""

    def __init__(self, dtype: torch.dtype):
        self.rows, self._dtype = [], dtype

    def __call__(self, input_ids, scores):
        self.rows.append(closeness(scores, self._dtype).cpu())
        return scores


class GumbelNoise(LogitsProcessor):
    """Makes the argmax a sample: argmax(z / T + Gumbel noise) is distributed as softmax(z / T).

    Every prompt has a random stream of its own, so a sample does not depend on the rest of the batch.

    Args:
        seeds: names of the streams, one for each prompt; None: no noise.
        temperature: T.
    """

    def __init__(self, seeds: list[str | None], temperature: float):
        self._temperature = temperature
        self._streams = [None if s is None else torch.Generator().manual_seed(_number(s)) for s in seeds]

    def __call__(self, input_ids, scores):
        scores = scores.float().clone()
        for row, stream in zip(scores, self._streams, strict=True):
            if stream is not None:
                uniform = torch.rand(row.shape, generator=stream, dtype=torch.float64).clamp(min=1e-300)
                row.div_(self._temperature).sub_(uniform.log().neg().log().to(row))
        return scores


@torch.no_grad()
def greedy_choices(
    model: PreTrainedModel, texts: list[tuple[list[int], list[int]]], *, n_tokens: int | None = None
) -> Iterator[tuple[list[int], list[float]]]:
    """Choose the model's own token at every position of given responses, in one forward pass.

    Args:
        model: the model.
        texts: pairs of a prompt's ids and a response's ids.
        n_tokens: bound that chosen ids are below; None: the model's number of tokens.

    Yields:
        For each text, the chosen tokens at the positions of its response, and their [`closeness`].
    """
    vocabulary = vocabulary_rows(model)
    while texts:
        longest = max(len(prompt) + len(response) for prompt, response in texts)
        n = max(1, PASS_VALUES // (longest * vocabulary))
        group, texts = texts[:n], texts[n:]
        sequences = [prompt + response for prompt, response in group]
        longest = max(map(len, sequences))
        # padded on the right: causal attention never looks there
        ids = torch.tensor([s + [0] * (longest - len(s)) for s in sequences], device=input_device(model))
        ids = readable(model, ids)  # another model may have more rows
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=input_device(model))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[..., :n_tokens]
        tokens, gaps = logits.argmax(dim=-1).cpu(), closeness(logits, model.dtype).cpu()
        for i, (prompt, response) in enumerate(group):
            # position j predicts token j + 1
            first, last = len(prompt) - 1, len(prompt) + len(response) - 1
            yield tokens[i, first:last].tolist(), gaps[i, first:last].tolist()


def stop_tokens_of(model: PreTrainedModel) -> set[int]:
    """Return the tokens that end an answer of the model."""
    stop = model.generation_config.eos_token_id
    return set() if stop is None else {stop} if isinstance(stop, int) else set(stop)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
