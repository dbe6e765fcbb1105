"""What `return_dict_in_generate` asked for: one entry per new token, as in plain decoding.

Knows nothing about rules; it only splits a round's tensors into tokens.
"""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from hf_judge.upstream.forward import cache_of
from hf_judge.upstream.names import ModelOutput


class Record:
    """What `return_dict_in_generate` asked for, one entry per new token as in plain decoding."""

    def __init__(self, config: GenerationConfig):
        wanted = config.return_dict_in_generate
        self.score_rows = () if wanted and config.output_scores else None
        self._logit_rows = () if wanted and config.output_logits else None
        self._attentions = () if wanted and config.output_attentions else None
        self._hidden_states = () if wanted and config.output_hidden_states else None
        self._is_first = True

    def scores(self, logits: torch.Tensor, scores: torch.Tensor) -> None:
        if self.score_rows is not None:
            self.score_rows += (scores,)
        if self._logit_rows is not None:
            self._logit_rows += (logits,)

    def states(self, outputs: ModelOutput, k: int, n_new: int) -> None:
        # some models run sdpa only and return None for their attentions
        if self._attentions is not None and outputs.attentions and outputs.attentions[0] is not None:
            self._attentions += _attentions_per_token(
                outputs.attentions, _windows(cache_of(outputs), len(outputs.attentions)), k, n_new, self._is_first
            )
        if self._hidden_states is not None:
            self._hidden_states += _states_per_token(outputs.hidden_states, k, n_new, self._is_first)
        self._is_first = False

    def collected(self) -> dict[str, tuple | None]:
        """The fields of upstream's output."""
        return {
            "scores": self.score_rows,
            "logits": self._logit_rows,
            "attentions": self._attentions,
            "hidden_states": self._hidden_states,
        }


def merged(records: list[Record]) -> dict[str, tuple | None]:
    """The fields of upstream's output for a batch: scores and logits as one (batch, V) per step.

    They are zero where a row had ended.
    """
    if len(records) == 1:
        return records[0].collected()
    fields = [record.collected() for record in records]
    merged_fields = {"attentions": None, "hidden_states": None}
    for name in ("scores", "logits"):
        rows = [field[name] for field in fields]
        merged_fields[name] = None if rows[0] is None else _steps(rows)
    return merged_fields


def _steps(rows: list[tuple]) -> tuple:
    ended = torch.zeros_like(rows[0][0])
    n_steps = max(len(row) for row in rows)
    return tuple(torch.cat([row[i] if i < len(row) else ended for row in rows]) for i in range(n_steps))


def _states_per_token(layers: tuple, k: int, n_new: int, is_first: bool) -> tuple:
    """Split a round's tensors (..., rows, width) into a tuple over layers for each new token.

    Row -(k+1) predicted the first new token, the rows after it the next ones; the very first entry holds the whole
    prompt.
    """
    tokens = ()
    for i in range(n_new):
        entry = ()
        for layer in layers:
            last = layer.shape[-2] - k + i  # rows up to and with the one that predicted token i
            entry += (layer[..., 0 if is_first and i == 0 else last - 1 : last, :],)
        tokens += (entry,)
    return tokens


def _attentions_per_token(layers: tuple, windows: list, k: int, n_new: int, is_first: bool) -> tuple:
    """As [`_states_per_token`] for weights (..., rows, keys): with the keys that plain decoding would have seen."""
    tokens = ()
    for i, entry in enumerate(_states_per_token(layers, k, n_new, is_first)):
        of_prompt, cropped = is_first and i == 0, ()
        for weights, window in zip(entry, windows, strict=True):
            n_keys = weights.shape[-1] - k + i  # the drafted tokens after token i were not there
            # a cache that can be rolled back keeps more than the window of a sliding layer
            first = 0 if of_prompt or window is None else max(n_keys - window, 0)
            cropped += (weights[..., first:n_keys],)
        tokens += (cropped,)
    return tokens


def _windows(cache, n_layers: int) -> list[int | None]:
    """Keys that one new token sees in each layer; None: all."""
    if len(cache.layers) != n_layers:  # layers that share keys or have no attention: which is which is not known
        return [None] * n_layers
    layers = zip(cache.layers, cache.is_sliding, strict=True)
    return [layer.sliding_window if is_sliding else None for layer, is_sliding in layers]
