"""Decides whether the ragged engine serves a call: everything in it must be on the allow-list (`allow_list.py`)."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, PreTrainedModel

from hf_judge.ragged.allow_list import (
    ARCHITECTURES,
    CRITERIA,
    ENGINE,
    FULL_ATTENTION,
    MODEL_KWARGS,
    PROCESSORS,
    ROPE_TYPES,
    SETTINGS,
    UPSTREAM,
)
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.upstream.forward import (
    attention_of,
    forward_parameters,
    is_stateful,
    rope_types,
    unwrapped,
    user_hooks,
)
from hf_judge.upstream.generation import PreparedCall
from hf_judge.upstream.processors import is_upstreams_own
from hf_judge.upstream.versions import CACHE


def why_not_ragged(call: PreparedCall) -> str | None:
    """Return why the ragged engine cannot serve this call; None: it can."""
    config, draft = call.generation_config, call.assistant_model
    if draft is None or config.prompt_lookup_num_tokens is not None or call.drafts_with_target:
        return "drafts do not come from an assistant model's own forward"
    if call.has_other_vocabulary:
        return "the assistant has another vocabulary"
    models = [("target", call.model)]
    if not isinstance(draft, Eagle3DraftModel):  # whose network is this package's own
        models.append(("assistant", unwrapped(draft)))
    for name, model in models:
        if (reason := _unfit(model)) is not None:
            return f"the {name} {reason}"
    if unwrapped(draft).device.type == "meta":
        return "the assistant's first weights are offloaded"
    for check in (_unknown_inputs, _unknown_settings, _unknown_processors):
        if (reason := check(call)) is not None:
            return reason
    return None


def _unfit(model: PreTrainedModel) -> str | None:
    """Return what about a model the engine does not support."""
    if not isinstance(model, PreTrainedModel):
        return f"is a {type(model).__name__}, not a transformers model: pass the model in it"
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder or is_stateful(model):
        return "is not a decoder whose cache can be rolled back"
    if attention_of(config) not in ("eager", "sdpa"):
        return f"uses {attention_of(config)}, which takes no 4-D mask"
    if not {"position_ids", "logits_to_keep"} <= forward_parameters(model):
        return "takes no position_ids or no logits_to_keep"
    if (reason := _other_attention(config)) is not None:
        return reason
    if not _is_upstreams_own(type(model)):
        return f"is a {type(model).__name__}, whose forward is not one of transformers'"
    if config.model_type not in ARCHITECTURES:
        return f"is of the architecture '{config.model_type}', on which the ragged engine was not checked"
    if model.training and model.is_gradient_checkpointing:
        return "trains with gradient checkpointing, which passes the cache by"
    if (hook := user_hooks(model)) is not None:
        return f"has a hook ({hook}), which may look at how its inputs are laid out: remove it"
    return None


def _other_attention(config) -> str | None:
    values = config.to_dict()
    layer_types = set(values.get("layer_types") or ["full_attention"])
    if layer_types != {"full_attention"}:
        return f"has layers that do not attend fully ({', '.join(sorted(layer_types - {'full_attention'}))})"
    known_window = values.get("layer_types") or values.get("use_sliding_window") is False
    for name, known in FULL_ATTENTION.items():
        value = values.get(name)
        if name == "sliding_window" and known_window:
            continue  # layer_types says that no layer uses it
        if isinstance(value, (bool, int, str, type(None))) and value not in known:
            return f"has layers that do not attend fully ({name}={value})"
    if isinstance(values.get("attention_types"), list) and "local" in str(values["attention_types"]):
        return "has layers that do not attend fully (attention_types with 'local')"
    if isinstance(values.get("attn_config"), dict) and values["attn_config"].get("alibi"):
        return "has layers that do not attend fully (alibi)"
    for rope_type in sorted(rope_types(config)):
        if rope_type not in ROPE_TYPES:
            return f"has positions that depend on the length of the sequence (rope_type='{rope_type}')"
    return None


def _is_upstreams_own(cls: type) -> bool:
    """Tell whether the class that has the forward is one of transformers: Judge classes and FSDP's add none."""
    owner = next(base for base in cls.__mro__ if "forward" in vars(base))
    return owner.__module__.startswith("transformers.models.")


def _unknown_inputs(call: PreparedCall) -> str | None:
    kwargs, ids = call.model_kwargs, call.input_ids
    if ids.shape[1] == 0 or kwargs.get("inputs_embeds") is not None:
        return "the prompt is given as embeddings"
    if call.has_own_cache:
        return "the caller passed a cache"
    given = {key for key, value in kwargs.items() if value is not None and value is not False}
    unknown = sorted(key for key in given - {CACHE} if MODEL_KWARGS.get(key) != ENGINE)
    if call.generation_config.return_dict_in_generate and {"output_attentions", "output_hidden_states"} & given:
        return "attentions or hidden states were asked for"
    if unknown and not set(unknown) <= {"output_attentions", "output_hidden_states"}:
        return f"the target's forward is given {', '.join(unknown)}"
    mask = kwargs.get("attention_mask")
    if mask is not None:
        if mask.shape != ids.shape or not bool(((mask == 0) | (mask == 1)).all()):
            return "attention_mask is not one 0 or 1 for each token of the prompts"
        if bool((mask[:, 1:] < mask[:, :-1]).any()):
            return "attention_mask hides more than padding on the left"
        if not bool(mask.any(dim=1).all()):
            return "attention_mask hides a whole prompt"
    if call.has_own_positions and not _follow_from(kwargs["position_ids"], mask, ids):
        return "the caller passed position_ids that do not follow from the attention_mask"
    return None


def _follow_from(positions: torch.Tensor, mask: torch.Tensor | None, ids: torch.LongTensor) -> bool:
    """Tell whether positions count the tokens of each prompt from 0; those of padding do not matter."""
    kept = torch.ones_like(ids) if mask is None else mask.long()
    if positions.dim() != 2 or positions.shape[1] != ids.shape[1]:
        return False
    expected = kept.cumsum(dim=1) - 1
    return bool(((positions.to(expected.device) == expected) | (kept == 0)).all())


def _unknown_settings(call: PreparedCall) -> str | None:
    default = GenerationConfig()
    for name, value in call.generation_config.to_dict().items():
        if name.startswith("_"):
            continue  # transformers' own notes about where the config came from
        if value is not None and name not in SETTINGS and value != getattr(default, name, None):
            return f"the generation config has a setting that is not known here ({name})"
    if call.generation_config.cache_config is not None:
        return "cache_config was passed"
    return None


def _unknown_processors(call: PreparedCall) -> str | None:
    for one in (*call.logits_processor, *call.stopping_criteria):
        name = type(one).__name__
        if is_upstreams_own(one) and (PROCESSORS | CRITERIA).get(name, UPSTREAM) == UPSTREAM:
            return f"{name} is not known here"
    return None
