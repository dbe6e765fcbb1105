"""The judge head: one linear layer on the target's hidden state (Judge Decoding, arXiv 2501.19309, section 3).

Knows nothing about generation, thresholds or rules.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from hf_judge.adapter import read_adapter, write_adapter
from hf_judge.config import JudgeConfig


class JudgeHead(nn.Module):
    """Reads the target's hidden state at a drafted token; a positive logit means "this token is acceptable".

    Args:
        config ([`JudgeConfig`]): must have `hidden_size`.

    Attributes:
        weight: `(1, D)` float32. bias: `(1,)` float32. Zero at first: every token then scores 0.5.
    """

    def __init__(self, config: JudgeConfig):
        super().__init__()
        if not isinstance(config, JudgeConfig):
            raise TypeError(f"JudgeHead expects a JudgeConfig, got {type(config).__name__}")
        if config.hidden_size is None:
            raise ValueError("JudgeConfig.hidden_size is not set: give the width of the target's hidden state")
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score hidden states.

        Args:
            hidden: `(..., D)` of any float dtype, on any device.

        Returns:
            The logits `(...)`, float32, on the device of `hidden`: a dot product of thousands of terms in half
            precision would move tokens across the threshold.

        Raises:
            ValueError: the last dimension is not D.
        """
        if hidden.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"head expects hidden size {self.config.hidden_size}, got states of size {hidden.shape[-1]}"
            )
        weight, bias = (p.to(hidden.device, torch.float32, non_blocking=True) for p in (self.weight, self.bias))
        return nn.functional.linear(hidden.to(torch.float32), weight, bias).squeeze(-1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike) -> JudgeHead:
        """Load a head from a directory that holds its two files, checking everything.

        Raises:
            ValueError: there is no head, or the files hold anything but one (see `hf_judge.adapter`).
        """
        config, weight, bias = read_adapter(pretrained_model_name_or_path)
        head = cls(config)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        return head.requires_grad_(False)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, the files that PEFT reads too.

        Raises:
            ValueError: the head holds NaN or infinite values.
        """
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise ValueError("this judge head holds NaN or infinite values and is not saved: train it again")
        write_adapter(save_directory, self.config, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"hidden_size={self.config.hidden_size}, hidden_state={self.config.hidden_state!r}"
