"""Holds names that transformers does not promise to keep: what is below its top level, and private attributes.

The rest of the package takes the first from here, and reads the second by [`private`]. Read in transformers 5.19 to
5.24.
"""

from __future__ import annotations

import transformers
from transformers import PreTrainedModel

from hf_judge.upstream.versions import moved

# ruff: noqa: F401 - other modules take these names from here
try:
    from transformers.cache_utils import Cache, CacheLayerMixin
    from transformers.distributed.fsdp import is_fsdp_managed_module
    from transformers.generation import GenerateDecoderOnlyOutput, GenerationMode
    from transformers.generation.candidate_generator import (
        AssistantToTargetTranslator,
        AssistedCandidateGenerator,
        AssistedCandidateGeneratorDifferentTokenizers,
        CandidateGenerator,
        PromptLookupCandidateGenerator,
        SinglePositionMultiTokenCandidateGenerator,
        UniversalSpeculativeDecodingGenerator,
    )
    from transformers.generation.candidate_generator import _prepare_attention_mask as prepare_attention_mask
    from transformers.generation.candidate_generator import _prepare_position_ids as prepare_position_ids
    from transformers.generation.candidate_generator import _prepare_token_type_ids as prepare_token_type_ids
    from transformers.generation.streamers import BaseStreamer
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.pipelines.base import SUPPORTED_PEFT_TASKS
    from transformers.utils import ModelOutput
except ImportError as error:
    raise moved(str(error)) from error


def private(owner: object, name: str):
    """Return a private attribute of an object of transformers.

    Raises:
        ImportError: it is not there; the message names the installed version, the tested ones and the remedy.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise moved(f"{type(owner).__name__}.{name}") from error


def causal_lm_class(name: str) -> type[PreTrainedModel] | None:
    """Return the causal LM class of transformers called `name`, e.g. ``Qwen2ForCausalLM``; None: there is none."""
    known = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return getattr(transformers, name) if known else None


def let_pipelines_take(class_name: str) -> None:
    """Keep text-generation pipelines from logging an error about a class of ours.

    ``pipeline()`` compares a model's class name with a list and logs 4 kB about any other. The names of PEFT tasks are
    the one part of that list that is not generated from upstream's own classes (5.17 to 5.24).
    """
    SUPPORTED_PEFT_TASKS["text-generation"].append(class_name)
