"""Collects the optional outputs of a generation (scores, attentions, hidden states), one entry per new token.

One forward verifies several tokens, so its tensors are split into what plain decoding returns token by token.
"""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from hf_judge.upstream.forward import cache_of
from hf_judge.upstream.private_names import ModelOutput


class Record:
    """Collects the outputs that `return_dict_in_generate` asks for, one entry per new token as in plain decoding."""

    def __init__(self, config: GenerationConfig):
        wanted = config.return_dict_in_generate
        self.step_scores = () if wanted and config.output_scores else None
        self._step_logits = () if wanted and config.output_logits else None
        self._attentions = () if wanted and config.output_attentions else None
        self._hidden_states = () if wanted and config.output_hidden_states else None
        self._is_first = True

    def scores(self, logits: torch.Tensor, scores: torch.Tensor) -> None:
        """Add the logits and processed scores (1, V) of one new token."""
        if self.step_scores is not None:
            self.step_scores += (scores,)
        if self._step_logits is not None:
            self._step_logits += (logits,)

    def states(self, outputs: ModelOutput | None, k: int, n_new: int) -> None:
        """Add the attentions and hidden states of the `n_new` tokens that a round with `k` drafted tokens made."""
        # some models run sdpa only and return None for their attentions
        if self._attentions is not None and outputs.attentions and outputs.attentions[0] is not None:
            self._attentions += _attentions_per_token(
                outputs.attentions, _windows(cache_of(outputs), len(outputs.attentions)), k, n_new, self._is_first
            )
        if self._hidden_states is not None:
            self._hidden_states += _states_per_token(outputs.hidden_states, k, n_new, self._is_first)
        self._is_first = False

    def collected(self) -> dict[str, tuple | None]:
        """Return the fields of upstream's output."""
        return {
            "scores": self.step_scores,
            "logits": self._step_logits,
            "attentions": self._attentions,
            "hidden_states": self._hidden_states,
        }


def merged(records: list[Record]) -> dict[str, tuple | None]:
    """Return the fields of upstream's output for a batch: scores and logits as one (batch, V) tensor per step.

    They are zero where an answer had ended.
    """
    if len(records) == 1:
        return records[0].collected()
    fields = [record.collected() for record in records]
    merged_fields = {"attentions": None, "hidden_states": None}
    for name in ("scores", "logits"):
        of_prompts = [field[name] for field in fields]
        merged_fields[name] = None if of_prompts[0] is None else _steps(of_prompts)
    return merged_fields


def _steps(of_prompts: list[tuple]) -> tuple:
    ended = torch.zeros_like(of_prompts[0][0])
    n_steps = max(len(steps) for steps in of_prompts)
    return tuple(torch.cat([steps[i] if i < len(steps) else ended for steps in of_prompts]) for i in range(n_steps))


def _states_per_token(layers: tuple, k: int, n_new: int, is_first: bool) -> tuple:
    """Split a round's tensors (..., positions, width) into a tuple over layers for each new token.

    Position -(k+1) predicted the first new token, the positions after it the next ones. The very first entry holds the
    whole prompt.
    """
    tokens = ()
    for i in range(n_new):
        entry = ()
        for layer in layers:
            last = layer.shape[-2] - k + i  # positions up to and with the one that predicted token i
            entry += (layer[..., 0 if is_first and i == 0 else last - 1 : last, :],)
        tokens += (entry,)
    return tokens


def _attentions_per_token(layers: tuple, windows: list, k: int, n_new: int, is_first: bool) -> tuple:
    """Split weights (..., positions, keys) likewise, with the keys that plain decoding would have attended to."""
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
    """Return how many keys one new token attends to in each layer; None: all."""
    if len(cache.layers) != n_layers:  # layers that share keys or have no attention: which is which is not known
        return [None] * n_layers
    layers = zip(cache.layers, cache.is_sliding, strict=True)
    return [layer.sliding_window if is_sliding else None for layer, is_sliding in layers]
