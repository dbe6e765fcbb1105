"""Reads the `config.json` of an EAGLE-3 draft, in the format of the speculators library or in that of the authors.

What is not understood is refused by name: a setting that is passed over would only show as a draft that drafts badly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 1 << 20
ORIGINAL = "LlamaForCausalLMEagle3"  # the architecture that configs in the authors' format name
LAYERS = {"llama": LlamaConfig, "qwen3": Qwen3Config}
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # angles that do not depend on the length of the sequence
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
LIMITS = {
    "hidden_size": 1 << 16, "intermediate_size": 1 << 19, "num_attention_heads": 1 << 10, "head_dim": 1 << 12,
    "num_key_value_heads": 1 << 10, "num_hidden_layers": 16, "vocab_size": 1 << 22, "draft_vocab_size": 1 << 22,
    "target_hidden_size": 1 << 16,
}  # fmt: skip
# keys that say nothing about what the network computes
METADATA = {
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "embed_requires_grad", "eos_token_id", "has_no_defaults_at_init", "id2label", "initializer_range",
    "is_encoder_decoder", "label2id", "model_type", "output_attentions", "output_hidden_states", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "speculators_config", "speculators_version", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "use_cache", "max_window_layers",
}  # fmt: skip
# keys of the decoder layers that are read here or by the config classes of transformers
LAYER_KEYS = {
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "use_sliding_window",
    "vocab_size",
}  # fmt: skip
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
DRAFT_KEYS = {
    *FLAGS, "draft_vocab_size", "target_hidden_size", "eagle_aux_hidden_state_layer_ids", "speculators_model_type",
    "transformer_layer_config",
}  # fmt: skip
# of the authors' format; `eagle_config` is how SGLang and ModelOpt name the layers
ORIGINAL_KEYS = {*FLAGS, "draft_vocab_size", "target_hidden_size", "eagle_config", "target_vocab_size"}


@dataclass(frozen=True)
class Eagle3Config:
    """Describes an EAGLE-3 draft."""

    layers: PreTrainedConfig
    """Sizes of the decoder layers; `vocab_size` is the target's vocabulary."""
    draft_vocab_size: int
    """Tokens that the draft can propose."""
    target_hidden_size: int
    """Width of the target's states."""
    aux_layers: tuple[int, ...]
    """Layers of the target whose input the draft reads, counted from 0; the number of layers means the last one's
    output."""
    norm_before_residual: bool = False
    """Whether the first layer's residual is the normalized state."""
    norm_before_fc: bool = False
    """Whether the joined states are normalized before `fc`."""
    fc_norm: bool = False
    """Whether each of the states is normalized before `fc`."""
    norm_output: bool = False
    """Whether the next step reads the state after the last norm."""

    def to_dict(self) -> dict:
        """Return the values of a `config.json` in the format of the speculators library."""
        flags = {name: getattr(self, name) for name in FLAGS}
        return {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "transformer_layer_config": self.layers.to_diff_dict() | {"model_type": self.layers.model_type},
            "draft_vocab_size": self.draft_vocab_size,
            "target_hidden_size": self.target_hidden_size,
            "eagle_aux_hidden_state_layer_ids": list(self.aux_layers),
            **flags,
        }


def read_config(directory: Path, target: PreTrainedConfig, aux_layers: tuple[int, ...] | None = None) -> Eagle3Config:
    """Read the config of a draft for a target.

    Args:
        directory: holds `config.json`.
        target: the target's text config.
        aux_layers: layers of the target to read, in place of those that the file names.

    Raises:
        ValueError: there is no config, it is not an EAGLE-3 draft's, it does not fit the target, or it has a setting
            that is not understood; the message says expected, received and remedy.
    """
    source = str(directory / CONFIG_NAME)
    values = read_object(directory / CONFIG_NAME)
    if values.get("speculators_model_type") is not None:
        layer_values, layers_of_file = _of_speculators(values, source)
    elif ORIGINAL in (values.get("architectures") or ()):
        layer_values, layers_of_file = _of_authors(values, source, target)
    else:
        raise ValueError(
            f"{source} is no EAGLE-3 draft: expected speculators_model_type 'eagle3' or the architecture '{ORIGINAL}', "
            f"got {str(values.get('architectures'))[:80]}. An ordinary model drafts too: load it with "
            "AutoModelForCausalLM"
        )
    layers = _layer_config(layer_values, source)
    _check_fit(layers, values, source, target)
    return Eagle3Config(
        layers,
        draft_vocab_size=_size(values, "draft_vocab_size", source, default=layers.vocab_size),
        target_hidden_size=target.hidden_size,
        aux_layers=_aux_layers(aux_layers or layers_of_file, target, source),
        **{name: _flag(values, name, source) for name in FLAGS},
    )


def read_object(path: Path) -> dict:
    """Read the JSON object in a config.

    Raises:
        ValueError: the file is missing, too large, not JSON, or names code to import.
    """
    if not path.is_file():
        raise ValueError(f"no draft at '{path.parent}': {path.name} is missing")
    with path.open("rb") as file:
        raw = file.read(MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} is too large: at most {MAX_CONFIG_BYTES} bytes are allowed")
    try:
        values = json.loads(raw)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    for key in ("auto_map", "custom_generate", "custom_pipelines", "trust_remote_code"):
        if values.get(key):
            raise ValueError(f"{path} has the key '{key}', which names code to import: a draft's code is never run")
    return values


def _of_speculators(values: dict, source: str) -> tuple[dict, list | None]:
    """Return the values of the decoder layers, and the target's layers that the file names."""
    kind, layers = values["speculators_model_type"], values.get("transformer_layer_config")
    if kind != "eagle3":
        raise ValueError(
            f"{source}: a speculator of the type {kind!r:.40} is not supported, 'eagle3' is (docs/drafts.md)"
        )
    if not isinstance(layers, dict):
        raise ValueError(f"{source}: transformer_layer_config must be an object, got {type(layers).__name__}")
    _refuse_unknown(values, METADATA | DRAFT_KEYS, source)
    _refuse_unknown(layers, METADATA | LAYER_KEYS, f"{source}, transformer_layer_config")
    return layers, values.get("eagle_aux_hidden_state_layer_ids")


def _of_authors(values: dict, source: str, target: PreTrainedConfig) -> tuple[dict, list | None]:
    """Return the same of the authors' format, whose layers are those of Llama."""
    if values.get("model_type", "llama") != "llama":
        raise ValueError(f"{source}: expected model_type 'llama' in an {ORIGINAL}, got {values['model_type']!r:.40}")
    _refuse_unknown(values, METADATA | LAYER_KEYS | ORIGINAL_KEYS, source)
    layers = {key: value for key, value in values.items() if key in LAYER_KEYS | METADATA}
    layers["vocab_size"] = values.get("target_vocab_size", values.get("vocab_size", target.vocab_size))
    eagle = values.get("eagle_config") or {}
    if not isinstance(eagle, dict):
        raise ValueError(f"{source}: eagle_config must be an object, got {type(eagle).__name__}")
    _refuse_unknown(eagle, {"eagle_aux_hidden_state_layer_ids", "use_aux_hidden_state"}, f"{source}, eagle_config")
    ids = eagle.get("eagle_aux_hidden_state_layer_ids")
    if isinstance(ids, list) and all(isinstance(i, int) for i in ids):
        ids = [i + 1 for i in ids]  # there a number means the layer's output, as SGLang reads it
    return layers, ids


def _refuse_unknown(values: dict, known: set[str], source: str) -> None:
    # None, False and empty values switch nothing on
    unknown = sorted(key for key, value in values.items() if key not in known and value not in (None, False, {}, []))
    if unknown:
        raise ValueError(
            f"{source} has settings that are not understood ({', '.join(unknown)[:200]}): this draft may compute "
            "something else. docs/drafts.md lists what is understood"
        )


def _size(values: dict, name: str, source: str, default: int | None = None) -> int:
    value = values.get(name, default)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMITS[name]:
        raise ValueError(f"{source}: {name} must be an integer from 1 to {LIMITS[name]}, got {value!r:.40}")
    return value


def _flag(values: dict, name: str, source: str) -> bool:
    value = values.get(name)
    if value not in (None, True, False):
        raise ValueError(f"{source}: {name} must be true or false, got {value!r:.40}")
    return bool(value)


def _layer_config(values: dict, source: str) -> PreTrainedConfig:
    kind = values.get("model_type", "qwen3")  # the default of the speculators library
    if kind not in LAYERS:
        raise ValueError(f"{source}: layers of the type {kind!r:.40} are not supported, only {', '.join(LAYERS)}")
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    for name in names:
        _size(values, name, source, default=1 if name == "num_hidden_layers" else None)
    for name in ("num_key_value_heads", "head_dim"):
        _size(values, name, source, default=1)
    kept = {key: value for key, value in values.items() if key in LAYER_KEYS}
    try:
        config = LAYERS[kind](**{"num_hidden_layers": 1, "use_cache": True} | kept)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{source}: the sizes of the layers are not valid ({reason:.200})") from None
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"{source}: num_attention_heads ({config.num_attention_heads}) must be a multiple of num_key_value_heads "
            f"({config.num_key_value_heads})"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"{source}: hidden_act must be one of {ACTIVATIONS}, got {config.hidden_act!r:.40}")
    _check_attention(config, source)
    return config


def _check_attention(config: PreTrainedConfig, source: str) -> None:
    """Refuse layers that do not attend fully, and angles that depend on the length of the sequence."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = config.model_type == "llama" and getattr(config, "sliding_window", None)
    if kinds != {"full_attention"} or windowed or getattr(config, "use_sliding_window", False):
        raise ValueError(f"{source}: layers with a sliding window are not supported: choose a draft that attends fully")
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else rope
    if kind not in ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{source}: expected rotary positions of the types {ROPE_TYPES}, got {str(rope)[:120]}")


def _check_fit(layers: PreTrainedConfig, values: dict, source: str, target: PreTrainedConfig) -> None:
    expected = _size(values, "target_hidden_size", source, default=layers.hidden_size)
    if expected != target.hidden_size:
        raise ValueError(
            f"{source}: this draft reads states of width {expected}, the target's have {target.hidden_size}: it was "
            "trained for another target; choose the draft of this one"
        )
    if layers.vocab_size != target.vocab_size:
        raise ValueError(
            f"{source}: this draft knows a target with {layers.vocab_size} tokens, this target has "
            f"{target.vocab_size}: it was trained for another one; choose the draft of this target"
        )


def _aux_layers(given, target: PreTrainedConfig, source: str) -> tuple[int, ...]:
    n = target.num_hidden_layers
    layers = [2, n // 2, n - 3] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    whole = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= n for i in layers)
    if not 1 <= len(layers) <= 16 or not whole or len(set(layers)) != len(layers):
        raise ValueError(
            f"{source}: the target's layers to read must be different integers from 0 to {n} (the target has {n} "
            f"layers), got {str(layers)[:80]}: choose the draft of this target, or pass aux_layers="
        )
    return tuple(layers)
