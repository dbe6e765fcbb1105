"""A key-value cache whose rows have lengths of their own.

New keys are scattered at each row's own offset and a 4-D mask hides what lies behind it, so that rolling back rejected
tokens
is nothing but not advancing the length: no copies, no crop, no holes. Under any model of transformers that takes
    `position_ids`
and a 4-D mask and attends fully (5.19 to 5.23). Knows nothing about drafts or rules.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

STEP = 64  # attention sees this many keys more at a time: few shapes, and short answers do not pay for long caches


class RaggedLayer(CacheLayerMixin):
    """One layer's keys and values, (batch, heads, capacity, head_dim)."""

    is_compileable = True
    is_sliding = False

    def __init__(self, cache: RaggedCache):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self._cache.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Write (batch, heads, n, head_dim) at the planned positions; return all that may be visible."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.keys.shape[2] < self._cache.capacity:
            self.keys, self.values = (_grown(t, self._cache.capacity) for t in (self.keys, self.values))
        positions = self._cache.positions
        if positions.shape[0] == 1:
            self.keys.index_copy_(2, positions[0], key_states)
            self.values.index_copy_(2, positions[0], value_states)
        else:
            at = positions[:, None, :, None]
            self.keys.scatter_(2, at.expand(key_states.shape), key_states)
            self.values.scatter_(2, at.expand(value_states.shape), value_states)
        visible = self._cache.visible
        return self.keys[:, :, :visible], self.values[:, :, :visible]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.visible, 0

    def get_seq_length(self) -> int:
        return 0  # positions and masks are passed to the model, which need not count

    def get_max_length(self) -> int:
        return self._cache.capacity


class RaggedCache(Cache):
    """A cache for `batch_size` rows; the caller says where each row's new tokens go.

    Args:
        n_layers: layers of the model.
        batch_size: rows.
        device: where positions and masks are made.

    Attributes:
        positions: (batch, n) long, where the tokens of the coming forward go.
        visible: how many keys the coming forward attends over, at most.
        capacity: how many keys there is room for.
    """

    def __init__(self, n_layers: int, batch_size: int, device: torch.device):
        super().__init__(layers=[RaggedLayer(self) for _ in range(n_layers)])
        self.n_rows, self._device = batch_size, device
        self.positions: torch.Tensor | None = None
        self.visible = self.capacity = 0

    def plan(self, starts: list[int], n_new: int) -> torch.Tensor:
        """Get ready for a forward of `n_new` tokens per row, row r's first one at position `starts[r]`.

        What lies at or behind that position is overwritten: a rollback is a smaller start.

        Returns:
            (batch, n_new) long, the position ids.
        """
        first = torch.tensor(starts, dtype=torch.long).to(self._device, non_blocking=True)
        # a start of -1 feeds a row's only token twice, to the same place
        self.positions = (first[:, None] + torch.arange(n_new, device=self._device)).clamp_(min=0)
        self.visible = -(-(max(starts) + n_new) // STEP) * STEP
        if self.visible > self.capacity:
            self.capacity = max(self.visible, 2 * self.capacity)
        return self.positions

    def mask(self, dtype: torch.dtype, *, additive: bool) -> torch.Tensor:
        """Which keys the planned tokens attend to: all up to their own position.

        Returns:
            (batch, 1, n_new, visible): bool, True where visible; or `dtype`, 0 where visible and the minimum elsewhere.
        """
        allowed = self.positions[:, None, :, None] >= torch.arange(self.visible, device=self._device)
        if not additive:
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype, device=self._device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self._device)
        self.n_rows = len(rows)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys = layer.keys.index_select(0, index.to(layer.keys.device))
                layer.values = layer.values.index_select(0, index.to(layer.values.device))

    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        return sum(t.nbytes for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values))


def _grown(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
    grown = tensor.new_zeros(*tensor.shape[:2], capacity, tensor.shape[3])
    grown[:, :, : tensor.shape[2]] = tensor
    return grown
