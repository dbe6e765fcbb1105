"""One model over the rows of a ragged cache: prefill, and forwards that start anywhere."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_judge.ragged.cache import RaggedCache


class ModelRows:
    """A model and the cache of its rows.

    Args:
        model: takes `position_ids`, a 4-D mask and a cache; attends fully.
        n_rows: rows of the batch.
    """

    def __init__(self, model: PreTrainedModel, n_rows: int):
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        self.cache = RaggedCache(model.config.get_text_config().num_hidden_layers, n_rows, self.device)
        # eager attention adds the mask to the scores; sdpa takes a bool, which says the same
        self._additive = model.config._attn_implementation == "eager"

    def prefill(self, ids: torch.LongTensor, lengths: list[int]) -> None:
        """Read all but the last token of every prompt.

        Args:
            ids: (n_rows, n) long, packed to the left. What lies behind a row's length is overwritten later.
            lengths: tokens of every row.
        """
        n = max(lengths) - 1
        if n > 0:
            self.forward(ids[:, :n].to(self.device), [0] * len(lengths), n_logits=1)

    def forward(self, ids: torch.LongTensor, starts: list[int], *, n_logits: int, **more) -> ModelOutput:
        """Run (n_rows, n) new tokens, row r's first at position `starts[r]`; logits for the last `n_logits`."""
        positions = self.cache.plan(starts, ids.shape[1])
        return self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self.cache.mask(self.model.dtype, additive=self._additive),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=n_logits,
            **more,
        )
