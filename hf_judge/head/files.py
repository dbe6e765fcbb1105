"""Read the two files of a judge head strictly, as JSON and tensors, and write them atomically.

PEFT reads ``adapter_config.json`` and ``adapter_model.safetensors`` too, but would accept a pickle, missing tensors, or
tensors that overwrite the base model. This reader accepts exactly one shape of file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from hf_judge.files.durable import write_together

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# the module that PEFT hangs on the target, and in it the heads by adapter name
LAYER_NAME = "judge"
HEADS_NAME = "judge_head"
WEIGHT_KEY = f"base_model.model.{LAYER_NAME}.{HEADS_NAME}.weight"
BIAS_KEY = f"base_model.model.{LAYER_NAME}.{HEADS_NAME}.bias"
PEFT_TYPE = "JUDGE"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_OVERHEAD = 1 << 16  # header and alignment of a two-tensor safetensors file, generously
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
CODE_KEYS = ("auto_mapping", "auto_map", "custom_generate", "custom_pipelines", "trust_remote_code")


def read_values(directory: str | os.PathLike) -> dict:
    """Read the JSON object in the `adapter_config.json` of a directory.

    Raises:
        ValueError: the file is missing, too large, not JSON, not a judge head's, or names code to import.
    """
    return parse_values(_config_bytes(directory), str(Path(directory) / CONFIG_NAME))


def is_judge_adapter(directory: str | os.PathLike) -> bool:
    """Tell whether the config of the adapter in a directory says that it is a judge head.

    Raises:
        ValueError: its `adapter_config.json` is missing, too large or not JSON.
    """
    return _parse_object(_config_bytes(directory), str(Path(directory) / CONFIG_NAME)).get("peft_type") == PEFT_TYPE


def parse_values(raw: bytes, source: str) -> dict:
    """Read the JSON object in the bytes of an `adapter_config.json`; `source` names them in errors.

    Raises:
        ValueError: the text is too large, not JSON, not a judge head's, or names code to import.
    """
    values = _parse_object(raw, source)
    if values.get("peft_type") != PEFT_TYPE:
        raise ValueError(
            f"{source} is not a judge head: expected peft_type '{PEFT_TYPE}', got {str(values.get('peft_type'))[:80]!r}"
        )
    for key in CODE_KEYS:
        if values.get(key) is not None:
            raise ValueError(f"{source} has the key '{key}', which names code to import: a judge head holds none")
    return values


def read_weights(directory: str | os.PathLike, n_features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the tensors in the `adapter_model.safetensors` of a directory.

    Args:
        directory: the folder that holds the file.
        n_features: F, number of values that the head reads for a token.

    Returns:
        The weight `(1, F)` float32 and the bias `(1,)` float32, on the CPU.

    Raises:
        ValueError: the file is missing, too large, not readable, or holds anything but one finite judge head.
    """
    directory = Path(directory)
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        pickles = sorted(p.name for p in directory.glob("*.bin")) + sorted(p.name for p in directory.glob("*.pt"))
        why = f" ({', '.join(pickles)} is a pickle, which can run code and is not read)" if pickles else ""
        raise ValueError(f"no judge head at '{directory}': {WEIGHTS_NAME} is missing{why}")
    limit = (n_features + 1) * 8 + MAX_WEIGHTS_OVERHEAD
    if path.stat().st_size > limit:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes: a judge head of {n_features} features needs at most {limit}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            _check_layout(path, file, n_features)
            weight, bias = (file.get_tensor(key).to(torch.float32) for key in (WEIGHT_KEY, BIAS_KEY))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file (truncated or damaged?): {error}") from None
    check_finite({WEIGHT_KEY: weight, BIAS_KEY: bias}, str(path))
    return weight, bias


def check_finite(tensors: dict[str, torch.Tensor], source: str) -> None:
    """Refuse tensors that hold NaN or infinite values.

    Raises:
        ValueError: a tensor does; the message names it and `source`.
    """
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{source}: tensor '{key}' holds NaN or infinite values")


def write_files(directory: str | os.PathLike, values: dict, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write the two files; an interrupted call leaves the old files as they were.

    Args:
        directory: the folder, made when missing.
        values: JSON values, the contents of `adapter_config.json`.
        weight: `(1, F)`, saved as float32.
        bias: `(1,)`, saved as float32.

    Raises:
        ValueError: the values could not be read again.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    parse_values(text, "the config to save")
    tensors = {WEIGHT_KEY: weight, BIAS_KEY: bias}
    tensors = {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in tensors.items()}
    write_together(
        {directory / WEIGHTS_NAME: safetensors_bytes(tensors, metadata={"format": "pt"}), directory / CONFIG_NAME: text}
    )


def _config_bytes(directory: str | os.PathLike) -> bytes:
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"no judge head at '{directory}': the directory does not exist")
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"no judge head at '{directory}': {CONFIG_NAME} is missing")
    with path.open("rb") as file:
        return file.read(MAX_CONFIG_BYTES + 1)


def _parse_object(raw: bytes, source: str) -> dict:
    if len(raw) > MAX_CONFIG_BYTES:
        raise ValueError(f"{source} is too large: at most {MAX_CONFIG_BYTES} bytes are allowed")
    try:
        values = json.loads(raw)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold a JSON object, got {type(values).__name__}")
    return values


def _check_layout(path: Path, file, n_features: int) -> None:
    expected = {WEIGHT_KEY: [1, n_features], BIAS_KEY: [1]}
    found = set(file.keys())
    missing, extra = sorted(expected.keys() - found), sorted(found - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{path} must hold exactly {sorted(expected)}; missing: {missing or 'none'}, "
            f"not allowed: {[key[:120] for key in extra[:5]] or 'none'}"
        )
    for key, shape in expected.items():
        entry = file.get_slice(key)
        if entry.get_shape() != shape:
            raise ValueError(f"{path}: tensor '{key}' has shape {entry.get_shape()}, expected {shape}")
        if entry.get_dtype() not in FLOAT_DTYPES:
            raise ValueError(f"{path}: tensor '{key}' has dtype {entry.get_dtype()}, expected one of {FLOAT_DTYPES}")
