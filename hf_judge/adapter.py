"""The two files of a judge head, read strictly and written atomically.

``adapter_config.json`` and ``adapter_model.safetensors`` are what PEFT reads too, but PEFT alone would accept a pickle,
missing tensors, or tensors that overwrite the base model. This reader accepts exactly one shape of file.
Knows nothing about models.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from hf_judge.config import PEFT_TYPE, JudgeConfig

logger = logging.getLogger(__name__)

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
WEIGHT_KEY = "base_model.model.judge.judge_head.weight"
BIAS_KEY = "base_model.model.judge.judge_head.bias"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_OVERHEAD = 1 << 16  # header and alignment of a two-tensor safetensors file, generously
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
CODE_KEYS = ("auto_mapping", "auto_map", "custom_generate", "custom_pipelines")


def read_adapter(directory: str | os.PathLike) -> tuple[JudgeConfig, torch.Tensor, torch.Tensor]:
    """Read and check the two files of a judge head.

    Args:
        directory: the folder that holds them.

    Returns:
        The config, the weight `(1, D)` float32 and the bias `(1,)` float32, on the CPU.

    Raises:
        ValueError: a file is missing, too large, not readable, or holds anything but one finite judge head.
        TypeError: a field of the config has the wrong type.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"no judge head at '{directory}': the directory does not exist")
    config = _read_config(directory)
    weight, bias = _read_weights(directory, config)
    return config, weight, bias


def write_adapter(directory: str | os.PathLike, config: JudgeConfig, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write the two files of a judge head; an interrupted call leaves the old files as they were.

    Args:
        directory: the folder, made when missing.
        config: written as `adapter_config.json`.
        weight: `(1, D)`, saved as float32.
        bias: `(1,)`, saved as float32.

    Raises:
        ValueError, TypeError: the config holds what could not be read again.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    values = {key: getattr(value, "value", value) for key, value in asdict(config).items()}
    text = (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    parse_config(text, "the config to save")  # its fields may have changed since it was made and checked
    tensors = {WEIGHT_KEY: weight, BIAS_KEY: bias}
    tensors = {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in tensors.items()}
    _write_together(
        {directory / WEIGHTS_NAME: safetensors_bytes(tensors, metadata={"format": "pt"}), directory / CONFIG_NAME: text}
    )


def parse_config(raw: bytes, source: str) -> JudgeConfig:
    """The config in the bytes of an `adapter_config.json`.

    Raises:
        ValueError: not JSON, not a judge head, or a value out of range.
        TypeError: a field of the wrong type.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise ValueError(f"{source} has {len(raw)} bytes, at most {MAX_CONFIG_BYTES} are allowed")
    try:
        values = json.loads(raw)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold a JSON object, got {type(values).__name__}")
    if values.get("peft_type") != PEFT_TYPE:
        raise ValueError(
            f"{source} is not a judge head: expected peft_type '{PEFT_TYPE}', got {str(values.get('peft_type'))[:80]!r}"
        )
    for key in CODE_KEYS:
        if values.get(key) is not None:
            raise ValueError(f"{source} has the key '{key}', which names code to import: a judge head holds none")
    known = {f.name for f in fields(JudgeConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        logger.warning("%s: unknown keys ignored: %s", source, ", ".join(key[:80] for key in unknown[:20]))
    config = JudgeConfig(**{key: value for key, value in values.items() if key in known})
    if config.hidden_size is None:
        raise ValueError(f"{source} lacks 'hidden_size', the width of the target's hidden state")
    return config


def _read_config(directory: Path) -> JudgeConfig:
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"no judge head at '{directory}': {CONFIG_NAME} is missing")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, at most {MAX_CONFIG_BYTES} are allowed")
    return parse_config(path.read_bytes(), str(path))


def _read_weights(directory: Path, config: JudgeConfig) -> tuple[torch.Tensor, torch.Tensor]:
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        pickles = sorted(p.name for p in directory.glob("*.bin")) + sorted(p.name for p in directory.glob("*.pt"))
        why = f" ({', '.join(pickles)} is a pickle, which can run code and is not read)" if pickles else ""
        raise ValueError(f"no judge head at '{directory}': {WEIGHTS_NAME} is missing{why}")
    limit = (config.hidden_size + 1) * 8 + MAX_WEIGHTS_OVERHEAD
    if path.stat().st_size > limit:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes: a judge head of hidden size {config.hidden_size} needs at most "
            f"{limit}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            _check_layout(path, file, config)
            weight, bias = (file.get_tensor(key).to(torch.float32) for key in (WEIGHT_KEY, BIAS_KEY))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file (truncated or damaged?): {error}") from None
    for key, value in ((WEIGHT_KEY, weight), (BIAS_KEY, bias)):
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: tensor '{key}' holds NaN or infinite values")
    return weight, bias


def _check_layout(path: Path, file, config: JudgeConfig) -> None:
    expected = {WEIGHT_KEY: [1, config.hidden_size], BIAS_KEY: [1]}
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


def _write_together(files: dict[Path, bytes]) -> None:
    """Write all files beside their places, then move each into it."""
    staged = {}
    try:
        for path, data in files.items():
            handle, staged[path] = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(staged[path], 0o644)
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in staged.values():
            Path(temporary).unlink(missing_ok=True)
        raise
