"""Reads the hidden state that a judge needs out of the target's ordinary forward.

``post_norm`` is the input of the LM head; ``pre_norm`` the input of the final norm.
"""

from __future__ import annotations

import threading

import torch
from transformers import PreTrainedModel

from hf_judge.upstream.forward import is_compiled, records_hidden_states
from hf_judge.upstream.private_names import ModelOutput
from hf_judge.upstream.versions import HIDDEN_STATES_COUNT_EMBEDDINGS

# the attribute of the decoder that holds the norm after the last layer
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


class StateReader:
    """Context manager around a generation; `request` before and `read` after each forward of the target.

    A hook at the LM head or the final norm catches the state for the length of the call; it ignores other threads.
    Compiled forwards cannot have hooks that come and go: there ``post_norm`` requests the decoder's last hidden state
    (``output_hidden_states=[index]``), for which upstream leaves hooks of its own on the model.

    Args:
        model: the target.
        hidden_state: "post_norm", "pre_norm" or None for no state.
        layers: layers of the target whose input a draft reads, counted from 0; the number of layers means the last
            one's output. See [`read_layers`].

    Raises:
        ValueError: the final norm or the layers of this architecture are not known.
    """

    def __init__(self, model: PreTrainedModel, hidden_state: str | None, layers: tuple[int, ...] = ()):
        if layers and is_compiled(model):
            raise ValueError(
                "this draft reads the states between the target's layers with hooks, which a compiled forward does not "
                "have: pass the target without torch.compile"
            )
        self._layers = [_input_of(model, i) for i in layers]
        self._of_layers: list[list[torch.Tensor]] = [[] for _ in layers]
        self._layer_handles = []
        self._selected = None  # index of the hidden state that output_hidden_states must include
        self._hooked = None  # module whose input is the state
        self._handle = None
        self._captured = None
        self._model, self._hidden_state = model, hidden_state
        if hidden_state == "post_norm":
            self._selected = _last_state_index(model) if is_compiled(model) else None
            if self._selected is None:
                self._hooked = _lm_head(model)
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
        for module, kept in zip(self._layers, self._of_layers, strict=True):
            hook = _keeps_input(kept, threading.get_ident())
            self._layer_handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *exception) -> None:
        if self._handle is not None:
            self._handle.remove()
        for handle in self._layer_handles:
            handle.remove()
        for kept in self._of_layers:
            kept.clear()

    def leave_forwards_alone(self) -> None:
        """Read without hooks from now on, where this architecture allows it: the target's forwards are compiled."""
        selected = _last_state_index(self._model) if self._hidden_state == "post_norm" else None
        if selected is None:
            return
        self._selected, self._hooked = selected, None
        if self._handle is not None:
            self._handle.remove()

    def request(self, inputs: dict, overrides: dict) -> dict:
        """Return the forward's arguments, extended by the outputs that the candidate source and this reader need.

        Args:
            inputs: the prepared forward arguments; the user's own output_hidden_states is among them.
            overrides: the arguments that the candidate source needs; their `output_hidden_states` may be a flag, an
                index or a list of indices.
        """
        wanted = [inputs.get("output_hidden_states"), overrides.get("output_hidden_states")]
        if self._selected is not None:
            wanted.append([self._selected])
        inputs = inputs | overrides
        selection = _union(wanted)
        if selection:
            inputs["output_hidden_states"] = selection
        return inputs

    def read(self, outputs: ModelOutput, n: int) -> torch.Tensor | None:
        """Return the states (batch, n, D) of the last `n` tokens of the forward; None if none was requested."""
        if self._selected is not None:
            return outputs.hidden_states[-1][:, -n:]
        if self._hooked is not None:
            state, self._captured = self._captured, None
            return state[:, -n:]
        return None

    def read_layers(self) -> torch.Tensor:
        """Return the joined states (batch, n, n_layers * D) of all tokens that were fed since the last call."""
        joined = [torch.cat(kept, dim=1) for kept in self._of_layers]
        for kept in self._of_layers:
            kept.clear()
        return torch.cat([states.to(joined[0].device) for states in joined], dim=-1)

    def forget(self) -> None:
        """Free the states of a forward that are not needed."""
        self._captured = None


def _keeps_input(kept: list, owner: int):
    """Return a hook that adds a module's first input to `kept`, in the thread `owner`."""

    def keep(module, args, kwargs):
        if threading.get_ident() == owner:
            kept.append(args[0] if args else kwargs["hidden_states"])

    return keep


def _input_of(model: PreTrainedModel, index: int) -> torch.nn.Module:
    """Return the module whose input is the input of the layer `index`."""
    n_layers = model.config.get_text_config().num_hidden_layers
    if index == n_layers:
        return _final_norm(model)
    for module in model.get_decoder().children():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module[index]
    raise ValueError(
        f"this draft reads the states between the layers of the target, and those of {type(model).__name__} are not "
        "found: draft with an ordinary model"
    )


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
    """Index of the last hidden state, where the decoder records its layers and that state goes into the LM head."""
    decoder = model.get_decoder()
    config = decoder.config.get_text_config()
    # Gemma 3n has several streams in each layer: what it records is not what goes into the LM head
    if decoder is model or not records_hidden_states(decoder) or getattr(config, "altup_num_inputs", 1) > 1:
        return None
    return config.num_hidden_layers if HIDDEN_STATES_COUNT_EMBEDDINGS else config.num_hidden_layers - 1


def _lm_head(model: PreTrainedModel) -> torch.nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no LM head to read the hidden state of")
    return head


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
