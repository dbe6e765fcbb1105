"""Reads the hidden state that a judge needs out of the target's ordinary forward.

``post_norm`` is the input of the LM head; ``pre_norm`` the input of the final norm. Knows nothing about rules or loops.
"""

from __future__ import annotations

import threading

import torch
from transformers import PreTrainedModel

from hf_judge.upstream.forward import records_hidden_states
from hf_judge.upstream.names import ModelOutput
from hf_judge.upstream.versions import HIDDEN_STATES_COUNT_EMBEDDINGS

# the attribute of the decoder that holds the norm after the last layer
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


class StateReader:
    """Context manager around a generation; `request` before and `read` after each forward of the target.

    ``post_norm`` asks the decoder for its last hidden state alone (``output_hidden_states=[index]``, transformers
    5.19 on): no hooks, nothing shared between threads. Decoders without that, and ``pre_norm``, get a hook for the
    length of the call that only listens to its own thread.

    Args:
        model: the target.
        hidden_state: "post_norm", "pre_norm" or None for no state.

    Raises:
        ValueError: the final norm of this architecture is not known.
    """

    def __init__(self, model: PreTrainedModel, hidden_state: str | None):
        self._selected = None  # index of the hidden state that output_hidden_states must include
        self._hooked = None  # module whose input is the state
        self._handle = None
        self._captured = None
        self._at_lm_head = False
        if hidden_state == "post_norm":
            self._selected = _last_state_index(model)
            if self._selected is None:
                self._hooked = model.get_output_embeddings()
                self._at_lm_head = True
        elif hidden_state == "pre_norm":
            self._hooked = _final_norm(model)
        elif hidden_state is not None:
            raise ValueError(f"hidden_state must be 'post_norm', 'pre_norm' or None, got {hidden_state!r}")

    def __enter__(self) -> StateReader:
        if self._hooked is not None:
            owner = threading.get_ident()

            def keep_input(module, args):
                if threading.get_ident() == owner:
                    self._captured = args[0]

            self._handle = self._hooked.register_forward_pre_hook(keep_input)
        return self

    def __exit__(self, *exception) -> None:
        if self._handle is not None:
            self._handle.remove()

    @property
    def needs_logits(self) -> bool:
        """Whether the state is read at the LM head, so that a forward which leaves logits out leaves states out too."""
        return self._at_lm_head

    def request(self, inputs: dict, overrides: dict) -> dict:
        """The forward's arguments with everything that the candidate source and this reader want back.

        Args:
            inputs: the prepared forward arguments; the user's own output_hidden_states is among them.
            overrides: what the candidate source wants, `output_hidden_states` as a flag, an index or a list of them.
        """
        wanted = [inputs.get("output_hidden_states"), overrides.get("output_hidden_states")]
        if self._selected is not None:
            wanted.append([self._selected])
        inputs = inputs | overrides
        selection = _union(wanted)
        if selection:
            inputs["output_hidden_states"] = selection
        return inputs

    def read(self, outputs: ModelOutput, n_rows: int) -> torch.Tensor | None:
        """The states (batch, n_rows, D) of the last `n_rows` tokens of the forward; None when none was asked for."""
        if self._selected is not None:
            return outputs.hidden_states[-1][:, -n_rows:]
        if self._hooked is not None:
            state, self._captured = self._captured, None
            return state[:, -n_rows:]
        return None

    def forget(self) -> None:
        """Let go of a forward whose states nobody reads."""
        self._captured = None


def _union(wanted: list) -> bool | list[int]:
    indices = []
    for selection in wanted:
        if selection is True:
            return True
        if isinstance(selection, int) and not isinstance(selection, bool):
            indices.append(selection)
        elif selection:
            indices.extend(selection)
    return sorted(set(indices))


def _last_state_index(model: PreTrainedModel) -> int | None:
    """Index of the last hidden state, where the decoder records its layers and ties the last to the LM head."""
    decoder = model.get_decoder()
    if decoder is model or not records_hidden_states(decoder):
        return None
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no LM head to read the hidden state of")
    n_layers = decoder.config.get_text_config().num_hidden_layers
    return n_layers if HIDDEN_STATES_COUNT_EMBEDDINGS else n_layers - 1


def _final_norm(model: PreTrainedModel) -> torch.nn.Module:
    decoder = model.get_decoder()
    modules = dict(decoder.named_children())
    for name in FINAL_NORMS:
        if name in modules:
            return modules[name]
    raise ValueError(
        f"this judge reads the 'pre_norm' state, but the final norm of {type(decoder).__name__} is not known "
        f"(looked for {', '.join(FINAL_NORMS)}): train a head on 'post_norm' states for this architecture"
    )
