"""A key-value cache whose rows have lengths of their own.

New keys are scattered at each row's own offset and a 4-D mask hides what lies behind it, so that rolling back rejected
tokens is nothing but a smaller start the next time: no copies, no crop, no holes. Under any model of transformers that
takes `position_ids` and a 4-D mask and attends fully (5.19 to 5.23). Knows nothing about drafts or rules.
"""

from __future__ import annotations

import sys

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

STEP = 64  # keys; the smallest cache


def bucket(n: int, *, coarse: bool = False) -> int:
    """The length of a cache that holds `n` keys: a short answer does not pay for a long cache.

    64, 128, 192, 256, then quarter octaves (320, 384, 448, 512, 640, ...). `coarse`, where every length is compiled
    for: 256, 512, 1024, ...
    """
    octave = 1 << (n - 1).bit_length()  # the next power of two
    if coarse:
        return max(4 * STEP, octave)
    step = max(STEP, octave // 8)
    return -(-n // step) * step


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, (batch, heads, length, head_dim)."""

    is_compileable = True
    is_sliding = False

    def __init__(self, cache: RaggedCache):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self._cache.length, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Write (batch, heads, n, head_dim) at the positions of the forward; return what it attends over."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        positions = self._cache.positions.to(key_states.device)
        if positions.shape[0] == 1:
            self.keys.index_copy_(2, positions[0], key_states)
            self.values.index_copy_(2, positions[0], value_states)
        else:
            # scatter_ says the same, but inductor copies the whole cache for it, there and back
            rows = torch.arange(self.keys.shape[0], device=positions.device)[:, None]
            for cached, states in ((self.keys, key_states), (self.values, value_states)):
                cached.transpose(1, 2).index_put_((rows, positions), states.transpose(1, 2))
        return self.keys[:, :, : self._cache.n_seen], self.values[:, :, : self._cache.n_seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.n_seen, 0

    def get_seq_length(self) -> int:
        return 0  # positions and masks are passed to the model, which need not count

    def get_max_length(self) -> int:
        return self._cache.length


class RaggedCache(Cache):
    """A cache for `n_rows` rows; the caller says where each row's new tokens go.

    Args:
        n_layers: layers of the model.
        n_rows: rows.
        coarse: few lengths, for compiled models.
        limit: keys that no row will have more of, as far as is known; a cache that is not coarse gets no longer.

    Attributes:
        positions: (n_rows, n) long, where the tokens of the running forward go.
        length: keys of every row that there is room for.
        n_seen: the first keys of every row, which a forward attends over.
    """

    def __init__(self, n_layers: int, n_rows: int, *, coarse: bool = False, limit: int = sys.maxsize):
        super().__init__(layers=[RaggedLayer(self) for _ in range(n_layers)])
        self.n_rows, self.length, self.n_seen = n_rows, 0, 0
        self.coarse, self.limit = coarse, limit
        self.positions: torch.Tensor | None = None

    def reserve(self, n_keys: int) -> None:
        """Make room for `n_keys` keys per row, layer by layer, and let forwards attend over no more than these."""
        if n_keys > self.length:
            self._grow(n_keys)
        self.n_seen = min(-(-n_keys // STEP) * STEP, self.length)

    def mask(self, dtype: torch.dtype, *, additive: bool) -> torch.Tensor:
        """Which keys the running forward's tokens attend to: all up to their own position.

        Returns:
            (n_rows, 1, n, n_seen): bool, True where visible; or `dtype`, 0 where visible and the minimum elsewhere.
        """
        keys = torch.arange(self.n_seen, device=self.positions.device)
        allowed = self.positions[:, None, :, None] >= keys
        if not additive:
            return allowed
        hidden = torch.finfo(dtype).min
        return torch.zeros(allowed.shape, dtype=dtype, device=keys.device).masked_fill(~allowed, hidden)

    def keep(self, rows: list[int]) -> None:
        """Hold these rows only, in this order; a row may be named twice."""
        self.n_rows = len(rows)
        for layer in self._filled():
            index = torch.tensor(rows, device=layer.keys.device)
            layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)

    def blank(self, length: int) -> RaggedCache:
        """A cache of the same layers and rows, of another length, for trying a model on."""
        other = RaggedCache(len(self.layers), self.n_rows, coarse=self.coarse)
        other.length = other.n_seen = length
        for mine, layer in zip(self.layers, other.layers, strict=True):
            if mine.is_initialized:
                layer.lazy_initialization(mine.keys[:, :, :1], mine.values[:, :, :1])
        return other

    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        return sum(t.nbytes for layer in self._filled() for t in (layer.keys, layer.values))

    def _grow(self, n_keys: int) -> None:
        length = bucket(n_keys, coarse=self.coarse)
        self.length = length if self.coarse else min(length, max(n_keys, self.limit))
        for layer in self._filled():
            room = (0, 0, 0, self.length - layer.keys.shape[2])
            layer.keys = torch.nn.functional.pad(layer.keys, room)
            layer.values = torch.nn.functional.pad(layer.values, room)

    def _filled(self) -> list[RaggedLayer]:
        return [layer for layer in self.layers if layer.is_initialized]
