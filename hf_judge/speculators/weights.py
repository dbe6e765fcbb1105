"""Reads and writes the tensors of an EAGLE-3 draft: safetensors alone, every shape checked before a tensor is read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hf_judge.speculators.config import Eagle3Config

WEIGHTS_NAME = "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")
# the target's own, which training kept beside the draft
OF_TARGET = ("verifier_lm_head.weight", "verifier_norm.weight")
EMBEDDING = "embed_tokens.weight"
IDS, FLAGS = "d2t", "t2d"


def expected_shapes(config: Eagle3Config) -> dict[str, list[int]]:
    """Return name -> shape of every tensor of the network, in the names of the speculators library.

    The embedding and the two maps of the vocabulary may be missing: see [`read_weights`].
    """
    layers, n_aux = config.layers, len(config.aux_layers)
    width, target_width = layers.hidden_size, config.target_hidden_size
    shapes = {
        "fc.weight": [width, n_aux * target_width],
        "norm.weight": [width],
        "lm_head.weight": [config.draft_vocab_size, width],
        EMBEDDING: [layers.vocab_size, width],
        "layers.0.hidden_norm.weight": [width],
    }
    if config.norm_before_fc:
        shapes["input_norm.weight"] = [n_aux * target_width]
    if config.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": [target_width] for i in range(n_aux)}
    for i in range(layers.num_hidden_layers):
        shapes |= _layer_shapes(config, i)
    return shapes


def _layer_shapes(config: Eagle3Config, i: int) -> dict[str, list[int]]:
    layers, at = config.layers, f"layers.{i}."
    width, inner = layers.hidden_size, layers.intermediate_size
    q, kv = layers.num_attention_heads * layers.head_dim, layers.num_key_value_heads * layers.head_dim
    read = 2 * width if i == 0 else width  # the first layer reads the token's embedding beside the state
    shapes = {f"{at}input_layernorm.weight": [width], f"{at}post_attention_layernorm.weight": [width]}
    linear = {"self_attn.q_proj": [q, read], "self_attn.k_proj": [kv, read], "self_attn.v_proj": [kv, read]}
    linear |= {"self_attn.o_proj": [width, q]}
    biased = list(linear) if layers.attention_bias else []
    linear |= {"mlp.gate_proj": [inner, width], "mlp.up_proj": [inner, width], "mlp.down_proj": [width, inner]}
    if getattr(layers, "mlp_bias", False):
        biased += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    shapes |= {f"{at}{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{at}{name}.bias": linear[name][:1] for name in biased}
    if layers.model_type == "qwen3":
        shapes |= {f"{at}self_attn.{name}.weight": [layers.head_dim] for name in ("q_norm", "k_norm")}
    return shapes


def read_weights(directory: Path, config: Eagle3Config) -> tuple[dict[str, torch.Tensor], torch.LongTensor | None]:
    """Read the tensors of a draft.

    Args:
        directory: holds `model.safetensors`.
        config: the draft's config.

    Returns:
        Name -> tensor, without the embedding where the file has none (the target's is read then); and
        (draft_vocab_size,) long, the target's id of every token of the draft; None: they are the same.

    Raises:
        ValueError: the file is missing, damaged, or holds other tensors than the config says, NaN or infinite values,
            or ids beyond the vocabulary.
    """
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        raise ValueError(f"no draft at '{directory}': {WEIGHTS_NAME} is missing{_instead(directory)}")
    try:
        with safe_open(path, framework="pt") as file:
            names = _names(path, file, config)
            tensors = {name: file.get_tensor(key) for name, key in names.items()}
            ids = _vocabulary(path, file, config)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file (truncated or damaged?): {error}") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: tensor '{name}' holds NaN or infinite values: fetch the file again")
    return tensors, ids


def _instead(directory: Path) -> str:
    """Say what lies there in place of the file that is read, and the remedy."""
    pickles = sorted(p.name for end in ("*.bin", "*.pt", "*.pth") for p in directory.glob(end))
    if pickles:
        return (
            f" ({', '.join(pickles)[:80]} is a pickle, which can run code and is not read: many repositories have a "
            "conversion as a pull request, pass revision='refs/pr/N', or convert it with safetensors yourself)"
        )
    if list(directory.glob("*.safetensors")):
        return " (its tensors lie in files of other names: a draft is one file, save it as one)"
    return ""


def _names(path: Path, file, config: Eagle3Config) -> dict[str, str]:
    """Return name -> key in the file, of all tensors to read, whose shapes and dtypes are right."""
    # the authors' name of the only layer
    keys = list(file.keys())
    found = {f"layers.0.{key[9:]}" if key.startswith("midlayer.") else key: key for key in keys}
    expected = expected_shapes(config)
    missing = sorted(expected.keys() - found.keys() - {EMBEDDING})
    extra = sorted(found.keys() - expected.keys() - {IDS, FLAGS, *OF_TARGET})
    if missing or extra or len(found) != len(keys):
        raise ValueError(
            f"{path} does not hold the tensors that its config describes; missing: {missing[:5] or 'none'}, not "
            f"understood: {[key[:80] for key in extra[:5]] or 'none'}"
        )
    names = {name: found[name] for name in expected if name in found}
    for name, key in names.items():
        entry = file.get_slice(key)
        if entry.get_shape() != expected[name]:
            raise ValueError(f"{path}: tensor '{key}' has shape {entry.get_shape()}, expected {expected[name]}")
        if entry.get_dtype() not in FLOATS:
            raise ValueError(
                f"{path}: tensor '{key}' has dtype {entry.get_dtype()}, expected one of {FLOATS}: quantised drafts "
                "are not supported"
            )
    return names


def _vocabulary(path: Path, file, config: Eagle3Config) -> torch.LongTensor | None:
    """Read `d2t`, the distance from each of the draft's ids to the target's, and check it with `t2d`."""
    n_draft, n_target, keys = config.draft_vocab_size, config.layers.vocab_size, set(file.keys())
    if IDS not in keys:
        if n_draft != n_target or FLAGS in keys:
            raise ValueError(
                f"{path}: the draft has {n_draft} tokens and the target {n_target}, but 'd2t', which says which is "
                "which, is missing"
            )
        return None
    entry = file.get_slice(IDS)
    if entry.get_shape() != [n_draft] or entry.get_dtype() not in ("I64", "I32"):
        raise ValueError(f"{path}: 'd2t' must be ({n_draft},) integers, got {entry.get_shape()} {entry.get_dtype()}")
    ids = torch.arange(n_draft) + file.get_tensor(IDS).long()
    if bool(((ids < 0) | (ids >= n_target)).any()):
        raise ValueError(f"{path}: 'd2t' leads to ids beyond the target's vocabulary of {n_target} tokens")
    if ids.unique().numel() != n_draft:
        raise ValueError(f"{path}: 'd2t' leads two of the draft's tokens to one of the target's")
    if FLAGS in keys:
        entry = file.get_slice(FLAGS)
        if entry.get_shape() != [n_target] or entry.get_dtype() not in ("BOOL", "U8", "I64"):
            raise ValueError(
                f"{path}: 't2d' must be ({n_target},) of bool, got {entry.get_shape()} {entry.get_dtype()}"
            )
        flags = torch.zeros(n_target, dtype=torch.bool).index_fill(0, ids, True)
        if not torch.equal(file.get_tensor(FLAGS).bool(), flags):
            raise ValueError(f"{path}: 'd2t' and 't2d' disagree about which tokens the draft has")
    return ids
