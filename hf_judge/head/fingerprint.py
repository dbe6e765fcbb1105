"""Recognise a model by its weights, whatever its name or folder: the signs of a few rows of a few matrices, hashed.

A sign survives every cast between float types, so a model has one fingerprint in float32, bfloat16 and float16, and
after it was saved and loaded. Training, merging an adapter or another seed flips some of the many thousand signs.

Quantised matrices are not read, since their signs do not all survive; libraries leave the embedding as it is, which
then decides alone. Nothing is known of a model whose weights are split over processes or not in memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import torch
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from hf_judge.upstream.forward import unwrapped
from hf_judge.upstream.modules import version_of

Fingerprint = dict[str, str]  # name of a matrix in the decoder -> 16 hex digits

EMBEDDING = "embedding"
N_ROWS = 64  # of each matrix, from the first on: tokens that are added to a vocabulary go to its end
_READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_computed = WeakIdKeyDictionary()  # embedding of a model -> (names, states of the tensors, fingerprint)


def fingerprint_of(model: PreTrainedModel, names: Iterable[str] | None = None) -> Fingerprint:
    """Hash a few weights of a model; the result is kept until one of them is changed in place.

    Args:
        model: the model, adapters included: these are passed over.
        names: matrices to read; those that the model lacks or holds quantised are left out. None: the embedding, and
            the first and last matrix of the first, the middle and the last layer.

    Returns:
        16 hex digits by the name of the matrix; empty: nothing is known of this model's weights.
    """
    model = unwrapped(model)
    found = _matrices(model) if names is None else _named(model, names)
    names = tuple(_chosen(found) if names is None else found)
    state = [(id(found[name]), version_of(found[name])) for name in names]
    key = found.get(EMBEDDING)
    kept = _computed.get(key) if key is not None else None
    if kept is not None and kept[:2] == (names, state):
        return dict(kept[2])
    fingerprint = {name: _signs_hash(found[name]) for name in names}
    if key is not None:
        _computed[key] = names, state, fingerprint
    return dict(fingerprint)


def same_weights(recorded: Fingerprint | None, model: PreTrainedModel) -> bool | None:
    """Tell whether a fingerprint is this model's; None: no matrix can be compared."""
    found = fingerprint_of(model, sorted(recorded)) if recorded else {}
    return all(recorded[name] == value for name, value in found.items()) if found else None


def check_fingerprint(name: str, value: object) -> None:
    """Refuse values of a config that are no fingerprint.

    Raises:
        TypeError: they are not text by text.
        ValueError: there are too many, or one is no hash.
    """
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise TypeError(f"{name} must map names of matrices to hashes, got {repr(value):.80}")
    wrong = [text for text in value.values() if not re.fullmatch("[0-9a-f]{16}", text)]
    if wrong or len(value) > 64 or any(len(key) > 512 for key in value):
        raise ValueError(f"{name} must hold at most 64 hashes of 16 hex digits, got {repr(wrong or value):.80}")


def _matrices(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the readable matrices of the layers and the embedding, by names that a wrapper does not change."""
    names = [name for name, _ in _decoder(model).named_parameters() if "lora_" not in name and _LAYER.search(name)]
    return _named(model, [EMBEDDING, *(name.replace(".base_layer.", ".") for name in names)])


def _named(model: PreTrainedModel, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return those of the named matrices that the model has and that can be read."""
    if (getattr(model, "tp_size", None) or 1) > 1:  # every process holds other rows
        return {}
    decoder, found = _decoder(model), {}
    for name in names:
        path, _, last = name.rpartition(".")
        try:
            owner = model.get_input_embeddings() if name == EMBEDDING else decoder.get_submodule(path)
        except AttributeError:  # another architecture
            continue
        owner = getattr(owner, "base_layer", owner)  # where PEFT puts the layer that it adapts
        tensor = getattr(owner, "weight" if name == EMBEDDING else last, None)
        if isinstance(tensor, torch.Tensor) and _is_readable(tensor):
            found[name] = tensor
    return found


def _decoder(model: PreTrainedModel) -> torch.nn.Module:
    decoder = model.get_decoder()
    return model if decoder is None else decoder


def _is_readable(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor holds its own numbers as they were trained: whole, in memory and not quantised."""
    # libraries of quantisation and sharding use subclasses that pretend to hold floats
    plain = type(tensor.data) is torch.Tensor and tensor.dtype in _READ and not tensor.is_meta
    return plain and tensor.dim() == 2 and tensor.numel() > 0


def _chosen(found: dict[str, torch.Tensor]) -> list[str]:
    by_layer = {}
    for name in found:
        if name != EMBEDDING:
            by_layer.setdefault(int(_LAYER.search(name)[1]), []).append(name)
    numbers = sorted(by_layer)
    chosen = {numbers[i] for i in (0, len(numbers) // 2, -1)} if numbers else ()
    names = [name for number in sorted(chosen) for name in (by_layer[number][0], by_layer[number][-1])]
    return [*([EMBEDDING] if EMBEDDING in found else []), *dict.fromkeys(names)]


def _signs_hash(matrix: torch.Tensor) -> str:
    """Hash the width of a matrix and the signs of its first rows."""
    signs = torch.signbit(matrix.detach()[:N_ROWS]).to("cpu", torch.uint8)
    bits = signs.flatten()
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    packed = (bits << torch.arange(8, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)
    return hashlib.sha256(f"{signs.shape[1]} ".encode() + packed.numpy().tobytes()).hexdigest()[:16]
