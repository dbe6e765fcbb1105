"""Where a model takes its inputs: a model may be spread over devices, or lie on disk."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Where the ids of a forward go.

    A model whose first weights are offloaded is on `meta`: accelerate brings its inputs to where they are used, and its
    outputs back.
    """
    return torch.device("cpu") if model.device.type == "meta" else model.device
