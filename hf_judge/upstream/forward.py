"""Reads and changes what surrounds a model's forward: device, cache, private settings, kwargs of a step.

Read in transformers 5.19 to 5.24.
"""

from __future__ import annotations

import inspect
import sys

import torch
from transformers import CompileConfig, GenerationConfig, PreTrainedModel

from hf_judge.upstream.private_names import (
    Cache,
    ModelOutput,
    prepare_attention_mask,
    prepare_position_ids,
    prepare_token_type_ids,
    private,
)
from hf_judge.upstream.versions import CACHE


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


def with_cache(cache: Cache) -> dict[str, Cache]:
    """Return the keyword argument that hands a cache to a forward, to `generate()` or to one of its outputs."""
    return {CACHE: cache}


def cache_of(found: dict | ModelOutput) -> Cache | None:
    """Return the cache among model kwargs, or in a model's output."""
    return found.get(CACHE)


def takes_cache(model: PreTrainedModel) -> bool:
    """Tell whether the model's forward takes a key-value cache of transformers."""
    return CACHE in forward_parameters(model)


def forward_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the forward's parameters, of the class: the object's own forward may be accelerate's."""
    return set(inspect.signature(type(model).forward).parameters)


def is_stateful(model: PreTrainedModel) -> bool:
    """Tell whether the model keeps a state that cannot be rolled back."""
    return private(model, "_is_stateful")


def attention_of(config) -> str:
    """Return the attention implementation of a model config, e.g. "sdpa"."""
    return private(config, "_attn_implementation")


def records_hidden_states(decoder: PreTrainedModel) -> bool:
    """Tell whether the decoder can return chosen hidden states alone: ``output_hidden_states=[index]``."""
    return "hidden_states" in (private(decoder, "_can_record_outputs") or {})


def is_compiled(model: torch.nn.Module) -> bool:
    """Tell whether the caller has compiled the model's forward: ``model.forward = torch.compile(model.forward)``."""
    return hasattr(vars(model).get("forward"), "_torchdynamo_orig_callable")


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the transformers model inside a `torch.compile(model)` or a `PeftModel`.

    Prompt learning lives in the PeftModel itself, which is then returned as it is.
    """
    if type(model).__name__ == "OptimizedModule":
        model = private(model, "_orig_mod")
    if type(model).__module__.partition(".")[0] == "peft" and not model.active_peft_config.is_prompt_learning:
        model = model.get_base_model()
    return model


def user_hooks(model: torch.nn.Module) -> str | None:
    """Return the module that carries a forward hook of the caller's own; None: there are hooks of libraries only."""
    libraries = ("torch", "accelerate", "transformers", "peft", "hf_judge")
    for name, module in model.named_modules():
        for hook in (*private(module, "_forward_hooks").values(), *private(module, "_forward_pre_hooks").values()):
            function = getattr(hook, "func", hook)
            owner = getattr(function, "__module__", None) or type(function).__module__
            if owner.partition(".")[0] not in libraries:
                return name or type(module).__name__
    return None


def rope_types(config) -> set[str]:
    """Return the kinds of rotary positions of a model config."""
    found = set()
    for parameters in (config.to_dict().get("rope_parameters"), config.to_dict().get("rope_scaling")):
        kinds = parameters.values() if isinstance(parameters, dict) else ()
        for one in (parameters, *kinds):  # of the model, or for each type of layers
            kind = one.get("rope_type", one.get("type")) if isinstance(one, dict) else None
            found |= {kind} if isinstance(kind, str) else set()
    return found


def length_of_changing_angles(config, prompt_length: int, shift: int = 0) -> int | None:
    """Return how long a sequence may be before drafted tokens change the rotary angles of others; None: no limit.

    Two kinds of angles depend on the length of the sequence, drafted tokens included. With "longrope" all angles change
    once the sequence passes the length of the first training; models then read it again from its start. With "dynamic"
    they change with each token after that length.

    Args:
        config: config of a text model.
        prompt_length: tokens of the prompt; a longrope model that has read a longer one has changed for good.
        shift: distance from the sequence's length to the caller's next position. Angles depend on positions; whether
            a model reads the sequence again depends on its length.
    """
    kinds, values = rope_types(config), config.to_dict()
    if not kinds & {"longrope", "dynamic"}:
        return None
    limit = values.get("original_max_position_embeddings") or values.get("max_position_embeddings")
    parameters = values.get("rope_parameters")
    if isinstance(parameters, dict):
        limit = parameters.get("original_max_position_embeddings") or limit
    limits = limit, limit - shift
    return min((n for n in limits if prompt_length <= n or "longrope" not in kinds), default=None)


def commit_of(config) -> str | None:
    """Return the commit on the Hub that a model's config came from, 40 hex digits; None: not known."""
    return getattr(config, "_commit_hash", None)  # only configs that were loaded have it


def remember_commit(config, commit: str | None) -> None:
    """Store the commit that a model's config came from (upstream no longer does, from 5.23)."""
    config._commit_hash = commit


def of_width(logits: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return logits (..., V) over another number of tokens: those that one model lacks can never be drawn."""
    missing = vocabulary - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[..., :vocabulary]


def readable(model: PreTrainedModel, ids: torch.LongTensor) -> torch.LongTensor:
    """Replace ids that the model's vocabulary lacks, which stand for no words, by its last one."""
    return ids.clamp(max=vocabulary_rows(model) - 1)


def has_own_vocabulary(model: PreTrainedModel) -> bool:
    """Tell whether the model has a vocabulary; an MTP or DFlash draft uses that of the target."""
    return getattr(model.config.get_text_config(), "vocab_size", None) is not None


def vocabulary_rows(model: PreTrainedModel) -> int:
    """Return the size of a model's vocabulary, padding after the tokenizer's last token included."""
    return model.config.get_text_config().vocab_size


def max_positions(model: PreTrainedModel) -> int:
    """Return how many positions a model has; `sys.maxsize` where its config names no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def stop_tokens(config: GenerationConfig) -> torch.LongTensor | None:
    """Return the end tokens of a prepared generation config, (n,) long; None: it has none."""
    tokens = private(config, "_eos_token_tensor")
    return None if tokens is None else tokens.flatten()


def pad_token(config: GenerationConfig) -> int:
    """Return the padding token of a prepared generation config; 0 if it has none."""
    token = private(config, "_pad_token_tensor")
    return 0 if token is None else int(token)


def known_length(model_kwargs: dict, config: GenerationConfig, input_ids: torch.LongTensor) -> int:
    """Length of the sequence so far, tokens that only the cache holds included.

    Args:
        model_kwargs: what the target's next forward is called with.
        config: the prepared config of this call.
        input_ids: (1, n) long.
    """
    if model_kwargs.get("attention_mask") is not None:
        return model_kwargs["attention_mask"].shape[1]
    if model_kwargs.get("position_ids") is not None:
        return model_kwargs["position_ids"].shape[-1]
    # upstream drops a mask of ones and leaves its length here
    return getattr(config, "_mask_length", input_ids.shape[1])


def lengthened(model_kwargs: dict, n_more: int) -> dict:
    """Return model kwargs in which everything that has one entry per token has `n_more` entries more."""
    kwargs = dict(model_kwargs)
    if kwargs.get("attention_mask") is not None:
        kwargs = prepare_attention_mask(kwargs, kwargs["attention_mask"].shape[1] + n_more, False)
    if kwargs.get("position_ids") is not None:
        kwargs = prepare_position_ids(kwargs, kwargs["position_ids"].shape[-1] + n_more, False)
    if kwargs.get("token_type_ids") is not None:
        kwargs = prepare_token_type_ids(kwargs, kwargs["token_type_ids"].shape[1] + n_more)
    return kwargs


def of_length(model_kwargs: dict, n: int) -> dict:
    """Return model kwargs in which everything that has one entry per token has `n` entries."""
    kwargs = prepare_attention_mask(dict(model_kwargs), n, False)
    kwargs = prepare_position_ids(kwargs, n, False)
    return prepare_token_type_ids(kwargs, n)


def updated_kwargs(model: PreTrainedModel, outputs: ModelOutput, model_kwargs: dict, n_new: int) -> dict:
    """Return model kwargs of the next forward, after one that gave `n_new` tokens."""
    return private(model, "_update_model_kwargs_for_generation")(outputs, model_kwargs, num_new_tokens=n_new)


def compiling_everywhere(config: CompileConfig) -> CompileConfig:
    """Return the config, changed so that upstream compiles on CPUs too and not on accelerators alone."""
    config._compile_all_devices = True
    return config
