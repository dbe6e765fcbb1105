"""Read and write a judge head: its two files on one side, its config and tensors on the other.

The files' form is checked in `hf_judge.head.files`, the config's fields in `hf_judge.head.config`.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from hf_judge.head.config import JudgeConfig
from hf_judge.head.files import CONFIG_NAME, read_values, read_weights, write_files


class Adapter(NamedTuple):
    """Holds what the two files of a judge head say."""

    config: JudgeConfig  # of F features
    weight: torch.Tensor  # (1, F) float32
    bias: torch.Tensor  # (1,) float32


def read_adapter(directory: str | os.PathLike) -> Adapter:
    """Read and check the two files of a judge head.

    Args:
        directory: the folder that holds them.

    Returns:
        The config and the tensors, on the CPU.

    Raises:
        ValueError: a file is missing, too large, not readable, or holds anything but one finite judge head.
        TypeError: a field of the config has the wrong type.
    """
    config = JudgeConfig.from_values(read_values(directory), str(Path(directory) / CONFIG_NAME))
    return Adapter(config, *read_weights(directory, config.n_features))


def write_adapter(directory: str | os.PathLike, config: JudgeConfig, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write the two files of a judge head; an interrupted call leaves the old files as they were.

    Args:
        directory: the folder, made when missing.
        config: contents of `adapter_config.json`.
        weight: `(1, F)`, saved as float32.
        bias: `(1,)`, saved as float32.

    Raises:
        ValueError, TypeError: the config holds what could not be read again.
    """
    values = {key: getattr(value, "value", value) for key, value in asdict(config).items()}
    JudgeConfig.from_values(values, "the config to save")  # its fields may have changed since it was made and checked
    write_files(directory, values, weight, bias)
