"""Runs one model with a ragged cache: prefill, and forwards that start anywhere, eager or compiled."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hf_judge.ragged.cache import RaggedCache, bucket
from hf_judge.ragged.compiling import Compiled, give_back, take_buffers
from hf_judge.upstream.forward import sent, with_cache
from hf_judge.upstream.private_names import ModelOutput

PREFILL_CHUNK = 256  # tokens read at once, so that a long prompt needs little memory beside the cache


def run_ragged(
    model, cache: RaggedCache, ids: torch.LongTensor, first: torch.LongTensor, **model_kwargs
) -> ModelOutput:
    """Run new tokens in every row of the cache.

    Args:
        model: the model.
        cache: its cache, with room for the tokens.
        ids: (n_rows, n) long.
        first: (n_rows,) long, the position of each row's first new token. What the row holds from there on is
            overwritten. -1 feeds the only token of a row twice, to the same place.
        **model_kwargs: arguments of the model's forward.
    """
    cache.positions = (first[:, None] + torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
    last = cache.last_position
    outputs = model(
        input_ids=ids,
        # positions after the last one of an answer are never used, but a table of positions may end there
        position_ids=cache.positions.clamp(max=last) if last < sys.maxsize else cache.positions,
        attention_mask=cache.mask(model.dtype),
        use_cache=True,
        **with_cache(cache),
        **model_kwargs,
    )
    cache.positions = None  # a CUDA graph's memory must not be held on to
    return outputs


def draft_step(model, cache: RaggedCache, ids: torch.LongTensor, first: torch.LongTensor):
    """Run one step of a draft; return the logits (n_rows, V) after the last token, and their argmax (n_rows, 1)."""
    logits = run_ragged(model, cache, ids, first, logits_to_keep=1).logits[:, -1]
    return logits, logits.argmax(dim=-1, keepdim=True)


class RaggedModel:
    """A model and its ragged cache, which has one row for each prompt of the batch.

    When prompts finish, their rows are dropped. Compiled forwards exist for few numbers of rows, so there finished
    prompts keep their rows until a quarter of them have finished.

    Args:
        model: a model that takes `position_ids`, a 4-D mask and a cache, and attends fully.
        n_rows: size of the batch.
        step: the forward to run: [`run_ragged`] or [`draft_step`].
        compiled: compiles `step`; None: it runs eagerly.
        device: device of the ids where the model has none of its own, because its embeddings are offloaded.
        limit: the largest number of keys that a row can need, as far as is known.
        last_position: the last position of any token that counts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        n_rows: int,
        step=run_ragged,
        compiled: Compiled | None = None,
        device: torch.device | None = None,
        limit: int = sys.maxsize,
        last_position: int = sys.maxsize,
    ):
        self.model, self.compiled = model, compiled
        embeddings = model.get_input_embeddings().weight.device
        self.device = device if embeddings.type == "meta" else embeddings
        n_layers = model.config.get_text_config().num_hidden_layers
        buffers = None if compiled is None else take_buffers(model, step)
        self.cache = RaggedCache(n_layers, n_rows, coarse=compiled is not None, limit=limit, buffers=buffers)
        self._last_position = self.cache.last_position = last_position
        self._step = step if compiled is None else compiled.of(step)
        self._plain_step = step
        self._rows = list(range(n_rows))  # the row of each unfinished prompt
        # both None: prompt i is row i
        self._row_of_prompt: torch.Tensor | None = None
        self._prompt_of_row: torch.Tensor | None = None  # 0 for rows of finished prompts

    def prefill(
        self, ids: torch.LongTensor, lengths: list[int], *, n_more: int = 0, in_one: bool = False, **model_kwargs
    ) -> None:
        """Read all but the last token of every prompt (of a prompt of one token, that one).

        Args:
            ids: (n_rows, n) long, packed to the left. What lies after the length of a prompt is overwritten later.
            lengths: tokens of each prompt.
            n_more: tokens that come next, to make room for at once.
            in_one: whether to run a single forward, however long: processes that wait for each other count forwards.
            **model_kwargs: arguments of the model's forward.
        """
        n = max(max(lengths) - 1, 1)
        self.cache.reserve(n + n_more)
        first = torch.zeros(len(lengths), dtype=torch.long, device=self.device)
        read = 0
        for chunk in ids[:, :n].to(self.device).split(n if in_one else PREFILL_CHUNK, dim=1):
            self.cache.reserve(read + chunk.shape[1])
            run_ragged(self.model, self.cache, chunk, first + read, logits_to_keep=1, **model_kwargs)
            read += chunk.shape[1]

    def idle(self) -> None:
        """Run a dummy forward, so that other processes can finish their collective operations."""
        self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)

    def run(self, ids: torch.LongTensor, first: torch.LongTensor, *, eagerly: bool = False, **model_kwargs):
        """Run new tokens (batch, n) of the unfinished prompts; the cache must have room for them.

        Args:
            ids: (batch, n) long.
            first: (batch,) long, the position of each prompt's first new token.
            eagerly: whether to run without compiling.
            **model_kwargs: arguments of the model's forward.

        Returns:
            What `step` returns, for the unfinished prompts.
        """
        if self._prompt_of_row is not None:
            ids, first = ids[self._prompt_of_row], first[self._prompt_of_row]
        step = self._plain_step if eagerly else self._step
        self.cache.last_position = self._last_position
        if self.compiled is not None and not eagerly:
            self.cache.n_seen = self.cache.length  # one shape, however many keys the rows hold
            self.cache.last_position = sys.maxsize  # a number that changes from call to call would be compiled in
        found = step(self.model, self.cache, ids, first, **model_kwargs)
        return found if self._row_of_prompt is None else _rows_of(found, self._row_of_prompt)

    def of_prompts(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of the unfinished prompts from a tensor over all rows of the cache."""
        return tensor if self._row_of_prompt is None else tensor[self._row_of_prompt]

    def keep(self, kept: list[int]) -> None:
        """Go on with the unfinished prompts at the places `kept`."""
        self._rows = [self._rows[i] for i in kept]
        room = len(kept) if self.compiled is None else _room(len(kept))
        if room < self.cache.n_rows:
            self.cache.keep(self._rows, room)
            self._rows = list(range(len(kept)))
        self._prompt_of_row = self._row_of_prompt = None
        if len(self._rows) < self.cache.n_rows:
            prompts = {row: i for i, row in enumerate(self._rows)}
            self._prompt_of_row = sent([prompts.get(row, 0) for row in range(self.cache.n_rows)], self.device)
            self._row_of_prompt = sent(self._rows, self.device)

    def close(self, *, failed: bool = False) -> None:
        """Free the cache. The next call of a compiled model uses the same memory, unless this call has failed."""
        if self.compiled is not None and not failed:
            give_back(self.model, self._plain_step, self.cache.buffers)
        self.cache.layers.clear()

    def warm_up(self, widths: list[int], n_keys: int, desc: str, **model_kwargs) -> None:
        """Compile forwards of these widths for every length of the cache, from now up to `n_keys` keys.

        Args:
            widths: numbers of new tokens in each row.
            n_keys: keys of the longest row to come.
            desc: label of the progress bar.
            **model_kwargs: as in `run`.
        """
        lengths = [self.cache.length]
        while lengths[-1] < n_keys:
            lengths.append(bucket(lengths[-1] + 1, coarse=True))
        todo = [
            (length, width)
            for length in lengths
            for width in widths
            if self.compiled.is_new(
                self.model, self._plain_step, (self.cache.n_rows, length, width, repr(model_kwargs))
            )
        ]
        self.cache.last_position = sys.maxsize
        with self.compiled.compiling(), tqdm(todo, desc=desc, unit="shape", disable=not todo) as bar:
            for length, width in bar:
                ids = torch.zeros(self.cache.n_rows, width, dtype=torch.long, device=self.device)
                first = torch.zeros(self.cache.n_rows, dtype=torch.long, device=self.device)
                if length > self.cache.length:
                    cache, undone = self.cache.blank(length), nullcontext()
                else:
                    cache, undone = self.cache, self.cache.unchanged(width)
                    cache.n_seen = length
                with undone:
                    for _ in range(2):  # CUDA graphs are recorded the second time
                        self._step(self.model, cache, ids, first, **model_kwargs)


def _room(n_rows: int) -> int:
    """Return the number of rows that a forward is compiled for: 1, 2, 4, 6, 8, 12, 16, 24, ..."""
    octave = 1 << (n_rows - 1).bit_length()
    return 3 * octave // 4 if octave >= 8 and n_rows <= 3 * octave // 4 else octave


def _rows_of(found, rows: torch.Tensor):
    """Return the given rows of every tensor."""
    if isinstance(found, torch.Tensor):
        return found[rows]
    if isinstance(found, ModelOutput):
        hidden = found.get("hidden_states")
        chosen = {"logits": found.logits[rows]}
        if hidden is not None:
            # upstream leaves None where a layer's state was not asked for
            chosen["hidden_states"] = tuple(None if state is None else state[rows] for state in hidden)
        return type(found)(**chosen)
    return tuple(_rows_of(part, rows) for part in found)
