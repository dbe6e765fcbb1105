"""One model over the rows of a ragged cache: prefill, and forwards that start anywhere, as they are or compiled."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hf_judge.ragged.cache import RaggedCache, bucket
from hf_judge.ragged.compiling import Compiled, give_back, taken_buffers
from hf_judge.upstream.devices import sent
from hf_judge.upstream.forward import with_cache
from hf_judge.upstream.names import ModelOutput

PREFILL_CHUNK = 256  # tokens read at once: what a long prompt needs beside the cache stays small


def forward_rows(model, cache: RaggedCache, ids: torch.LongTensor, first: torch.LongTensor, **more) -> ModelOutput:
    """Run new tokens of every row.

    Args:
        model: the model.
        cache: of its rows, with room for the tokens.
        ids: (n_rows, n) long.
        first: (n_rows,) long, each row's position of its first token. What lies there and behind is overwritten; -1
            feeds a row's only token twice, to the same place.
        **more: arguments of the model's forward.
    """
    cache.positions = (first[:, None] + torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
    last = cache.last_position
    outputs = model(
        input_ids=ids,
        # what lies behind the last position of an answer is never read, but a table of positions may end there
        position_ids=cache.positions.clamp(max=last) if last < sys.maxsize else cache.positions,
        attention_mask=cache.mask(model.dtype),
        use_cache=True,
        **with_cache(cache),
        **more,
    )
    cache.positions = None  # a CUDA graph's memory must not be held on to
    return outputs


def draft_step(model, cache: RaggedCache, ids: torch.LongTensor, first: torch.LongTensor):
    """One forward of a draft: logits (n_rows, V) behind the last token, their argmax (n_rows, 1)."""
    logits = forward_rows(model, cache, ids, first, logits_to_keep=1).logits[:, -1]
    return logits, logits.argmax(dim=-1, keepdim=True)


class ModelRows:
    """A model and the cache of its rows.

    Compiled forwards have few shapes: rows that have finished stay, unused, until a quarter of the rows have.

    Args:
        model: takes `position_ids`, a 4-D mask and a cache; attends fully.
        n_rows: rows of the batch.
        step: what a forward is: `forward_rows` or `draft_step`.
        compiled: compiles `step`; None: it runs as it is.
        device: of the ids, where the model has no place of its own: its embeddings are offloaded.
        limit: keys that no row will have more of, as far as is known.
        last_position: of any token that counts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        n_rows: int,
        step=forward_rows,
        compiled: Compiled | None = None,
        device: torch.device | None = None,
        limit: int = sys.maxsize,
        last_position: int = sys.maxsize,
    ):
        self.model, self.compiled = model, compiled
        embeddings = model.get_input_embeddings().weight.device
        self.device = device if embeddings.type == "meta" else embeddings
        n_layers = model.config.get_text_config().num_hidden_layers
        buffers = None if compiled is None else taken_buffers(model, step)
        self.cache = RaggedCache(n_layers, n_rows, coarse=compiled is not None, limit=limit, buffers=buffers)
        self._last_position = self.cache.last_position = last_position
        self._step = step if compiled is None else compiled.of(step)
        self._plain_step = step
        self._live = list(range(n_rows))  # rows of the cache that are in work
        self._spread: torch.Tensor | None = None  # for each row of the cache the row in work that stands there
        self._places: torch.Tensor | None = None

    def prefill(
        self, ids: torch.LongTensor, lengths: list[int], *, n_more: int = 0, in_one: bool = False, **more
    ) -> None:
        """Read all but the last token of every prompt (and a prompt's only token).

        Args:
            ids: (n_rows, n) long, packed to the left. What lies behind a row's length is overwritten later.
            lengths: tokens of every row.
            n_more: tokens that come next, to make room for at once.
            in_one: in a single forward, however long: processes that wait for each other count forwards.
            **more: arguments of the model's forward.
        """
        n = max(max(lengths) - 1, 1)
        self.cache.reserve(n + n_more)
        first = torch.zeros(len(lengths), dtype=torch.long, device=self.device)
        read = 0
        for chunk in ids[:, :n].to(self.device).split(n if in_one else PREFILL_CHUNK, dim=1):
            self.cache.reserve(read + chunk.shape[1])
            forward_rows(self.model, self.cache, chunk, first + read, logits_to_keep=1, **more)
            read += chunk.shape[1]

    def idle(self) -> None:
        """A forward that no row sees, for processes that wait for others."""
        self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)

    def run(self, ids: torch.LongTensor, first: torch.LongTensor, *, eagerly: bool = False, **more):
        """Run (n_live, n) new tokens, row r's first at position `first[r]`; there must be room for them.

        Returns:
            What `step` gives, for the rows in work.
        """
        if self._spread is not None:
            ids, first = ids[self._spread], first[self._spread]
        step = self._plain_step if eagerly else self._step
        self.cache.last_position = self._last_position
        if self.compiled is not None and not eagerly:
            self.cache.n_seen = self.cache.length  # one shape, whatever there is to see
            self.cache.last_position = sys.maxsize  # a number that changes from call to call would be compiled in
        found = step(self.model, self.cache, ids, first, **more)
        return found if self._places is None else _rows_of(found, self._places)

    def in_work(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows in work of a tensor over the rows of the cache."""
        return tensor if self._places is None else tensor[self._places]

    def keep(self, rows: list[int]) -> None:
        """Go on with these of the rows in work."""
        self._live = [self._live[r] for r in rows]
        room = len(rows) if self.compiled is None else _room(len(rows))
        if room < self.cache.n_rows:
            self.cache.keep(self._live, room)
            self._live = list(range(len(rows)))
        self._spread = self._places = None
        if len(self._live) < self.cache.n_rows:
            at = {place: r for r, place in enumerate(self._live)}
            self._spread = sent([at.get(place, 0) for place in range(self.cache.n_rows)], self.device)
            self._places = sent(self._live, self.device)

    def close(self, *, failed: bool = False) -> None:
        """Forget all rows; a compiled model's next call goes on in the same memory, unless this one has failed."""
        if self.compiled is not None and not failed:
            give_back(self.model, self._plain_step, self.cache.buffers)
        self.cache.layers.clear()

    def warm_up(self, widths: list[int], n_keys: int, desc: str, **more) -> None:
        """Compile for forwards of these widths on every length of cache between now and `n_keys` keys.

        Args:
            widths: tokens per row.
            n_keys: keys of the longest row to come.
            desc: of the progress bar.
            **more: as in `run`.
        """
        lengths = [self.cache.length]
        while lengths[-1] < n_keys:
            lengths.append(bucket(lengths[-1] + 1, coarse=True))
        todo = [
            (length, width)
            for length in lengths
            for width in widths
            if self.compiled.is_new(self.model, self._plain_step, (self.cache.n_rows, length, width, repr(more)))
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
                        self._step(self.model, cache, ids, first, **more)


def _room(n_rows: int) -> int:
    """Rows that a compiled forward is made for: 1, 2, 4, 6, 8, 12, 16, 24, ..."""
    octave = 1 << (n_rows - 1).bit_length()
    return 3 * octave // 4 if octave >= 8 and n_rows <= 3 * octave // 4 else octave


def _rows_of(found, places: torch.Tensor):
    """The given rows of every tensor."""
    if isinstance(found, torch.Tensor):
        return found[places]
    if isinstance(found, ModelOutput):
        hidden = found.get("hidden_states")
        chosen = {"logits": found.logits[places]}
        if hidden is not None:
            # upstream leaves None where a layer's state was not asked for
            chosen["hidden_states"] = tuple(None if state is None else state[places] for state in hidden)
        return type(found)(**chosen)
    return tuple(_rows_of(part, places) for part in found)
