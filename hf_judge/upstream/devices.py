"""Finds the device for a model's inputs, and moves lists and modules between devices."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device for the ids of a forward.

    A model whose first weights are offloaded is on `meta`: accelerate brings its inputs to where they are used, and its
    outputs back.
    """
    return torch.device("cpu") if model.device.type == "meta" else model.device


def sent(values: list[int], device: torch.device) -> torch.LongTensor:
    """Return a list as a tensor on the device, without waiting for what the device is doing."""
    values = torch.tensor(values, dtype=torch.long, device="cpu")  # whatever the default device is
    # a copy from memory that the system may move would wait for all work launched before
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class KeepsDtype(nn.Module):
    """A module whose numbers move between devices with the model that it hangs on, but keep their dtype.

    `Module.to`, `half()` and their kin all go through `_apply` (torch 2.6 to 2.15).
    """

    def _apply(self, fn, recurse=True):
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            found = fn(tensor)
            cast = tensor.is_floating_point() and found.dtype != tensor.dtype
            return tensor.to(found.device) if cast and found.device.type != "meta" else found.to(tensor.dtype)

        return super()._apply(moved, recurse)


def version_of(tensor: torch.Tensor) -> int | None:
    """Return how often a tensor was changed in place; None: torch does not count (tensors of inference mode)."""
    return None if tensor.is_inference() else tensor._version
