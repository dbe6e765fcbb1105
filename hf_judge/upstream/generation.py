"""Judged decoding in the place of upstream's own loop, through the documented ``generate(custom_generate=callable)``.

Upstream prepares everything as for any call (config, processors, criteria, masks, positions, cache) and then calls the
callable. With a callable it drops `assistant_model`, `tokenizer`, `assistant_tokenizer`, `streamer` and `synced_gpus`
on the way, so these travel in the callable. Three parts of upstream's preparation need what was dropped, and are done
here: the criterion of `stop_strings` needs the tokenizer; the default of `synced_gpus`; and the cache of a judged call
must be dynamic, since upstream no longer sees that the call drafts. `token_healing` also needs the tokenizer, and is
refused (`modeling/refusals.py`). Read in transformers 5.19 to 5.24.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from hf_judge.upstream.forward import has_own_vocabulary, vocabulary_rows
from hf_judge.upstream.private_names import BaseStreamer, GenerationMode, private
from hf_judge.upstream.processes import waits_for_others
from hf_judge.upstream.versions import PIPELINES_FILL_DEFAULTS

STATIC_CACHES = ("static", "offloaded_static", "hybrid", "sliding_window", "hybrid_chunked")
# what 5.19 fills in where a caller said nothing
_FILLED = {
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
}


@dataclass(frozen=True)
class PreparedCall:
    """A call of `generate()` after upstream's preparation.

    Args:
        model: the model whose `generate()` was called.
        input_ids: (batch, n) long, one prompt for each answer to make.
        inputs_tensor: the prompts before they were repeated for several answers each, or their embeddings.
        logits_processor, stopping_criteria, generation_config: what upstream prepared.
        model_kwargs: what the target's first forward is called with; holds the cache.
        assistant_model, tokenizer, assistant_tokenizer, streamer: what the caller passed.
        synced_gpus: whether other processes wait for each forward of this one.
        has_own_cache: whether the caller passed a cache, which must hold the whole turn afterwards.
        has_own_positions: whether the caller passed `position_ids`.
    """

    model: PreTrainedModel
    input_ids: torch.LongTensor
    inputs_tensor: torch.Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    model_kwargs: dict
    assistant_model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    assistant_tokenizer: PreTrainedTokenizerBase | None
    streamer: BaseStreamer | None
    synced_gpus: bool
    has_own_cache: bool
    has_own_positions: bool

    @property
    def has_other_vocabulary(self) -> bool:
        """Whether the assistant's tokens are not the target's. Rows of a matrix after the last token do not count."""
        return self.assistant_model is not None and not _share_vocabulary(
            self.model, self.assistant_model, self.tokenizer, self.assistant_tokenizer
        )

    @property
    def drafts_with_target(self) -> bool:
        """Whether drafting runs the target itself, in whole or in part."""
        config = self.generation_config
        return bool(config.assistant_early_exit is not None or config.speculation_type is not None or config.use_mtp)

    def has_unfinished(self, this_process_finished: bool) -> bool:
        """Tell whether any process has work left."""
        unfinished = private(self.model, "_has_unfinished_sequences")
        return unfinished(this_process_finished, self.synced_gpus, device=self.input_ids.device)


class Call:
    """One call of `generate()`, before upstream has seen it.

    Args:
        model: the model.
        generate: upstream's `generate`, bound to the model.
        args, kwargs: the caller's.
    """

    def __init__(self, model: PreTrainedModel, generate: Callable, args: tuple, kwargs: dict):
        names = list(inspect.signature(generate).parameters)
        self._model, self._generate = model, generate
        self._kwargs = dict(zip(names, args, strict=False)) | kwargs
        self.assistant_model = self._kwargs.get("assistant_model")
        self.custom_generate = self._kwargs.get("custom_generate")
        self.tokenizer = self._kwargs.get("tokenizer")
        self._given = self._kwargs.get("generation_config")

    def settings(self) -> GenerationConfig:
        """Return the generation config that upstream will use: the caller's, the model's, and upstream's defaults."""
        left_out = ("generation_config", "inputs", "input_ids", "inputs_embeds", "attention_mask")
        kwargs = {key: value for key, value in self._kwargs.items() if key not in left_out}
        return private(self._model, "_prepare_generation_config")(self._given, **kwargs)[0]

    def drafts(self, settings: GenerationConfig) -> bool:
        """Tell whether anything in this call drafts tokens."""
        return settings.get_generation_mode(self.assistant_model) == GenerationMode.ASSISTED_GENERATION

    def drafts_by_itself(self, settings: GenerationConfig) -> bool:
        """Tell whether the call would draft without an assistant model: by prompt lookup, early exit, MTP, ..."""
        return settings.get_generation_mode(None) == GenerationMode.ASSISTED_GENERATION

    def check_inputs(self) -> None:
        """Refuse an attention mask that does not have one entry for each token.

        Raises:
            ValueError: the mask has another shape than the prompts.
        """
        ids, mask = self._kwargs.get("input_ids", self._kwargs.get("inputs")), self._kwargs.get("attention_mask")
        if ids is None or mask is None or self._passes("cache", "past_key_values", "inputs_embeds"):
            return
        if mask.dim() == 2 and mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask must have one entry for each token of the prompts: input_ids are {tuple(ids.shape)}, "
                f"attention_mask is {tuple(mask.shape)}"
            )

    def _passes(self, *names: str) -> bool:
        return any(self._kwargs.get(name) is not None for name in names)

    def check_assistant(self, settings: GenerationConfig) -> None:
        """Have upstream refuse an assistant that does not go with the model or the tokenizers.

        Raises:
            ValueError: the assistant does not go with them.
        """
        tokenizers = self._kwargs.get("tokenizer"), self._kwargs.get("assistant_tokenizer")
        if self.assistant_model is not None and _share_vocabulary(self._model, self.assistant_model, *tokenizers):
            return
        one_answer = copy.copy(settings)
        one_answer.num_return_sequences = 1  # upstream's assisted loop gives no more; the ragged engine does
        names = ("assistant_model", "tokenizer", "assistant_tokenizer")
        passed = {name: self._kwargs[name] for name in names if self._kwargs.get(name) is not None}
        private(self._model, "_validate_generation_mode")(GenerationMode.ASSISTED_GENERATION, one_answer, passed)

    def given(self, name: str):
        """Return a drafting setting that the caller chose for this very call; None: the draft's own setting is used."""
        if name in self._kwargs:
            return self._kwargs[name]
        value = getattr(self._given, name, None)
        return None if PIPELINES_FILL_DEFAULTS and value == _FILLED.get(name) else value

    def run(self, decode: Callable[[PreparedCall], object], settings: GenerationConfig):
        """Let upstream prepare the call, and decode it.

        Args:
            decode: makes the output of `generate()`.
            settings: the settings of this call.

        Raises:
            ValueError: `stop_strings` without a tokenizer.
        """
        kwargs = dict(self._kwargs)
        draft, streamer = kwargs.pop("assistant_model", None), kwargs.get("streamer")
        tokenizers = {name: kwargs.pop(name, None) for name in ("tokenizer", "assistant_tokenizer")}
        synced_gpus = waits_for_others(self._model, kwargs.pop("synced_gpus", None))
        has_own_cache, has_own_positions = self._passes("cache", "past_key_values"), self._passes("position_ids")
        chosen = kwargs.get("use_cache", getattr(self._given, "use_cache", None))
        if settings.use_cache is False and chosen is None and not has_own_cache:
            # a default of the checkpoint (MPT); it changes no token, except that upstream reads a given cache again
            kwargs["use_cache"] = True
        cache_implementation = settings.cache_implementation
        if cache_implementation in STATIC_CACHES:
            kwargs = self._overridden(kwargs, "cache_implementation")
        if settings.stop_strings is not None:
            kwargs = self._overridden(kwargs, "stop_strings")
            criteria = StoppingCriteriaList(kwargs.get("stopping_criteria") or [])
            if not any(type(criterion) is StopStringCriteria for criterion in criteria):  # the caller's own counts
                criteria.append(_stop_strings(settings.stop_strings, self.tokenizer))
            kwargs["stopping_criteria"] = criteria

        def decoding(
            model, input_ids, logits_processor, stopping_criteria, generation_config, inputs_tensor, **model_kwargs
        ):
            if cache_implementation in STATIC_CACHES:
                generation_config.cache_implementation = cache_implementation
            return decode(
                PreparedCall(
                    model,
                    input_ids,
                    inputs_tensor,
                    logits_processor,
                    stopping_criteria,
                    generation_config,
                    model_kwargs,
                    assistant_model=draft,
                    streamer=streamer,
                    synced_gpus=synced_gpus,
                    has_own_cache=has_own_cache,
                    has_own_positions=has_own_positions,
                    **tokenizers,
                )
            )

        return self._generate(**kwargs, custom_generate=decoding)

    def _overridden(self, kwargs: dict, name: str) -> dict:
        """Return the arguments with a generation setting switched off."""
        kwargs = {key: value for key, value in kwargs.items() if key != name}
        if kwargs.get("generation_config") is not None:
            kwargs["generation_config"] = copy.deepcopy(kwargs["generation_config"])
            setattr(kwargs["generation_config"], name, None)
        if getattr(self._model.generation_config, name, None) is not None:
            kwargs[name] = None  # else upstream fills the model's own in
        return kwargs


def _share_vocabulary(target, draft, target_tokenizer, draft_tokenizer) -> bool:
    """Tell whether two models have the same tokens: equal tokenizers if both are given, else equal sizes."""
    if target_tokenizer is not None and draft_tokenizer is not None:
        return disagreement(target_tokenizer, draft_tokenizer) is None
    return not has_own_vocabulary(draft) or vocabulary_rows(target) == vocabulary_rows(draft)


def disagreement(target_tokenizer, draft_tokenizer) -> int | None:
    """Return the first id that stands for another word in each tokenizer; None: they agree."""
    if target_tokenizer is draft_tokenizer:
        return None
    ours, theirs = target_tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if ours == theirs:  # the usual case, in half the time of the difference
        return None
    return min((i for _, i in ours.items() ^ theirs.items()))


def tokenizer_arguments(target, draft, target_tokenizer, draft_tokenizer) -> dict:
    """Return the keywords by which `generate()` can serve a pair whose vocabularies differ; none for a shared one.

    With these keywords upstream translates between the tokenizers, which a shared vocabulary does not need.

    Args:
        target, draft: the models; without a draft there are none.
        target_tokenizer, draft_tokenizer: theirs.
    """
    if draft is None:
        return {}
    if disagreement(target_tokenizer, draft_tokenizer) is None and vocabulary_rows(target) == vocabulary_rows(draft):
        return {}
    return {"tokenizer": target_tokenizer, "assistant_tokenizer": draft_tokenizer}


def _stop_strings(stop_strings: str | list[str], tokenizer: PreTrainedTokenizerBase | None) -> StopStringCriteria:
    if tokenizer is None:
        raise ValueError(
            f"stop_strings={stop_strings!r:.80} needs the model's tokenizer: pass tokenizer= to generate() as well"
        )
    return StopStringCriteria(stop_strings=stop_strings, tokenizer=tokenizer)
