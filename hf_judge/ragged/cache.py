"""Stores keys and values of rows that have lengths of their own.

New keys are written at each row's own offset, and a 4-D mask hides what lies after it. Rollback is free: the next
write starts earlier (`first` in `RaggedBackend.forward`), without copies, crops or holes. The cache works with every
decoder of transformers (5.19 to 5.24) that takes `position_ids` and a 4-D mask and attends fully.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo

from hf_judge.upstream.forward import sent
from hf_judge.upstream.private_names import Cache, CacheLayerMixin

STEP = 64  # keys; the smallest cache


def bucket(n: int, *, coarse: bool = False) -> int:
    """Return the length of a cache that holds `n` keys, so that a short answer does not pay for a long cache.

    Lengths are 64, 128, 192, 256, then quarter octaves (320, 384, 448, 512, 640, ...). With `coarse`, for models that
    compile once for each length: 256, 512, 1024, ...
    """
    octave = 1 << (n - 1).bit_length()  # the next power of two
    if coarse:
        return max(4 * STEP, octave)
    step = max(STEP, octave // 8)
    return -(-n // step) * step


class Buffers:
    """Memory for the keys and values of one cache at a time.

    It is handed from call to call and stays at its address, since a CUDA graph reads and writes at fixed addresses. Old
    content is zeroed, because even a masked key must not be NaN.
    """

    def __init__(self):
        self._flat: dict[tuple[int, str], torch.Tensor] = {}

    def take(self, layer: int, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Return zeros for the `name` ("keys", "values") of a layer, at the old address where they fit."""
        n, flat = math.prod(shape), self._flat.get((layer, name))
        if flat is None or flat.numel() < n or (flat.dtype, flat.device) != (like.dtype, like.device):
            with torch.inference_mode(False):  # else no later call could write to it outside of that mode
                self._flat[layer, name] = flat = like.new_zeros(n)
        else:
            flat[:n].zero_()
        return flat[:n].view(shape)


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, (batch, heads, length, head_dim)."""

    is_compileable = True
    is_sliding = False

    def __init__(self, cache: RaggedCache, index: int):
        super().__init__()
        self._cache, self._index = cache, index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._hold(self._room("keys", key_states), self._room("values", value_states))
        self.is_initialized = True

    def grow(self) -> None:
        """Change to the length that the cache has now."""
        grown = []
        for name, old in (("keys", self.keys), ("values", self.values)):
            saved = old.clone()  # the new place may begin where the old one does
            grown.append(self._room(name, old))
            grown[-1][:, :, : old.shape[2]] = saved
        self._hold(*grown)

    def keep(self, rows: list[int], first: int, n_rows: int) -> None:
        """Shrink to `n_rows` rows: the first `first` stay, the given ones follow."""
        index = sent(rows, self.keys.device)
        for tensor in (self.keys, self.values):
            tensor[first : first + len(rows)] = tensor[index]
        self._hold(self.keys[:n_rows], self.values[:n_rows])

    def _room(self, name: str, like: torch.Tensor) -> torch.Tensor:
        shape = (*like.shape[:2], self._cache.length, like.shape[3])
        return self._cache.buffers.take(self._index, name, shape, like)

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values
        for tensor in (keys, values):
            # without it torch makes no CUDA graph of a forward that writes to them
            torch._dynamo.mark_static_address(tensor, guard=False)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Write (batch, heads, n, head_dim) at the positions of the forward; return what it attends over."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        positions = self._cache.positions.to(key_states.device)
        if positions.shape[0] == 1:
            self.keys.index_copy_(2, positions[0], key_states)
            self.values.index_copy_(2, positions[0], value_states)
        else:
            # scatter_ gives the same result, but inductor copies the whole cache twice for it
            rows = torch.arange(self.keys.shape[0], device=positions.device)[:, None]
            for cached, states in ((self.keys, key_states), (self.values, value_states)):
                cached.transpose(1, 2).index_put_((rows, positions), states.transpose(1, 2))
        return self.keys[:, :, : self._cache.n_seen], self.values[:, :, : self._cache.n_seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.n_seen, 0

    def get_seq_length(self) -> int:
        return 0  # positions and masks are passed to the model, which needs no length

    def get_max_length(self) -> int:
        return self._cache.length


class RaggedCache(Cache):
    """A cache whose caller says where the new tokens of each row go.

    Args:
        n_layers: number of layers of the model.
        n_rows: number of rows.
        coarse: whether to use few lengths, for compiled models.
        limit: the largest number of keys that a row can need, as far as is known; only a coarse cache gets longer.
        buffers: memory for keys and values; None: memory of its own.

    Attributes:
        positions: (n_rows, n) long, where the tokens of the running forward go.
        length: number of keys that each row has room for.
        n_seen: number of keys, from the first, that a forward attends over.
        last_position: the largest position passed to the model; nothing after it is ever read.
    """

    def __init__(
        self,
        n_layers: int,
        n_rows: int,
        *,
        coarse: bool = False,
        limit: int = sys.maxsize,
        buffers: Buffers | None = None,
    ):
        super().__init__(layers=[RaggedLayer(self, i) for i in range(n_layers)])
        self.buffers = Buffers() if buffers is None else buffers
        self.n_rows, self.length, self.n_seen = n_rows, 0, 0
        self.coarse, self.limit = coarse, limit
        self.positions: torch.Tensor | None = None
        self.last_position = sys.maxsize

    def reserve(self, n_keys: int) -> None:
        """Make room for `n_keys` keys in each row, layer by layer, and let forwards attend over no more than these."""
        if n_keys > self.length:
            self._grow(n_keys)
        self.n_seen = min(-(-n_keys // STEP) * STEP, self.length)

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask of the running forward, in which a token attends to all keys up to its own position.

        Returns:
            (n_rows, 1, n, n_seen) `dtype`, 0 where visible and the dtype's minimum elsewhere, to be added to the
            scores. (sdpa takes bool too, and converts it in every layer.)
        """
        keys = torch.arange(self.n_seen, device=self.positions.device)
        hidden = self.positions[:, None, :, None] < keys
        return torch.zeros(hidden.shape, dtype=dtype, device=keys.device).masked_fill_(hidden, torch.finfo(dtype).min)

    def keep(self, rows: list[int], n_rows: int) -> None:
        """Shrink to `n_rows` rows; the given ones, in ascending order, become the first."""
        n_unmoved = next((new for new, row in enumerate(rows) if row != new), len(rows))
        for layer in self._filled():
            layer.keep(rows[n_unmoved:], n_unmoved, n_rows)
        self.n_rows = n_rows

    @contextmanager
    def unchanged(self, n_keys: int) -> Iterator[None]:
        """Restore the first `n_keys` keys of every row afterwards, over which forwards write meanwhile."""
        places = [tensor[:, :, :n_keys] for layer in self._filled() for tensor in (layer.keys, layer.values)]
        saved = [place.clone() for place in places]
        yield
        for place, tensor in zip(places, saved, strict=True):
            place.copy_(tensor)

    def blank(self, length: int) -> RaggedCache:
        """Return an empty cache of the same layers and rows with another length, to try a model on."""
        other = RaggedCache(len(self.layers), self.n_rows, coarse=self.coarse)
        other.length = other.n_seen = length
        for mine, layer in zip(self.layers, other.layers, strict=True):
            if mine.is_initialized:
                layer.lazy_initialization(mine.keys[:, :, :1], mine.values[:, :, :1])
        return other

    def nbytes(self) -> int:
        """Return the memory of all keys and values in bytes."""
        return sum(t.nbytes for layer in self._filled() for t in (layer.keys, layer.values))

    def _grow(self, n_keys: int) -> None:
        length = bucket(n_keys, coarse=self.coarse)
        self.length = length if self.coarse else min(length, max(n_keys, self.limit))
        for layer in self._filled():
            layer.grow()

    def _filled(self) -> list[RaggedLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
