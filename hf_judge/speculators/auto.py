"""Loads EAGLE-3 drafts from a directory or the Hub, in either format."""

from __future__ import annotations

import os
import weakref

import torch
from transformers import PreTrainedModel

from hf_judge.head.hub import locate
from hf_judge.speculators.config import CONFIG_NAME, ORIGINAL, read_config, read_object
from hf_judge.speculators.model import Eagle3DraftModel, empty
from hf_judge.speculators.weights import EMBEDDING, WEIGHTS_NAME, read_weights
from hf_judge.upstream.forward import input_device


class AutoDraftModel:
    """Loads a draft that reads its target's states, whichever format it is in (docs/drafts.md lists them)."""

    def __init__(self):
        raise OSError("AutoDraftModel is made with AutoDraftModel.from_pretrained(..., target=target)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        target: PreTrainedModel,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        aux_layers: tuple[int, ...] | None = None,
        **hub_options,
    ) -> Eagle3DraftModel:
        """Load an EAGLE-3 draft.

        Args:
            pretrained_model_name_or_path: a directory, or a repository on the Hub.
            target: the model to draft for; its embedding is read where the draft has none of its own.
            dtype: dtype of the weights; None: that of the target.
            device: place of the weights; None: where the target reads its ids.
            aux_layers: the target's layers whose input the draft reads, where the config names none or the wrong ones.
            **hub_options: revision, cache_dir, force_download, local_files_only, token, subfolder.

        Raises:
            ValueError: the files are not those of an EAGLE-3 draft for this target; the message says why.
            OSError: a file cannot be fetched.
        """
        if not isinstance(target, PreTrainedModel):
            raise TypeError(f"target must be the model to draft for, got {type(target).__name__}")
        kind = f"EAGLE-3 draft: a draft is the two files {CONFIG_NAME} and {WEIGHTS_NAME}"
        found = locate(pretrained_model_name_or_path, (CONFIG_NAME, WEIGHTS_NAME), kind=kind, **hub_options)
        config = read_config(found.directory, target.config.get_text_config(), aux_layers)
        tensors, ids = read_weights(found.directory, config)
        shared = EMBEDDING not in tensors
        if shared:
            _check_embedding(target, config.layers.hidden_size)
        name = os.fspath(pretrained_model_name_or_path)
        model = empty(config, ids=ids, target=target if shared else None, name_or_path=name)
        dtype = (target.dtype if target.dtype.is_floating_point else torch.float32) if dtype is None else dtype
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
        return model.to(input_device(target) if device is None else device).eval().requires_grad_(False)


def is_eagle3(name: str | os.PathLike, **hub_options) -> bool:
    """Tell whether a directory or repository holds an EAGLE-3 draft, by its `config.json`; False where it has none.

    Args:
        name: a directory, or a repository on the Hub.
        **hub_options: as [`AutoDraftModel.from_pretrained`].
    """
    try:
        path = locate(name, (CONFIG_NAME,), **hub_options).directory / CONFIG_NAME
        values = read_object(path)
    except (OSError, ValueError):
        return False  # whoever loads it says what is wrong
    return values.get("speculators_model_type") is not None or ORIGINAL in (values.get("architectures") or ())


_shared: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def shared_draft(name: str | os.PathLike, target: PreTrainedModel) -> Eagle3DraftModel:
    """Load a draft that `generate(assistant_model=name)` names; further calls with this target get the same object.

    Raises:
        ValueError, OSError: as [`AutoDraftModel.from_pretrained`].
    """
    of_target = _shared.setdefault(target, {})
    key = os.fspath(name), target.device, target.dtype
    if key not in of_target:
        of_target.clear()  # one at a time: a draft is large
        of_target[key] = AutoDraftModel.from_pretrained(name, target=target)
    return of_target[key]


def _check_embedding(target: PreTrainedModel, width: int) -> None:
    weight = target.get_input_embeddings().weight
    if weight.device.type == "meta" or not weight.is_floating_point() or weight.shape[1] != width:
        raise ValueError(
            f"this draft reads the target's embedding, expected {width} numbers a token in memory, received "
            f"{tuple(weight.shape)} {weight.dtype} on {weight.device}: load the target without offloading it, or take "
            "a draft with an embedding of its own"
        )
