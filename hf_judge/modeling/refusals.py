"""Lists the reasons why a judged call is refused, in one place.

Each check below returns the sentence that the user reads (what was expected, what was received, the remedy), or None.
The tables at the end list the checks in the order in which they run. A few errors are raised where they are found: a
head that does not fit the model (`head/compatibility.py`), a value that cannot be a drafting setting
(`upstream/candidates.py`), an attention mask of another shape, a draft with another tokenizer, `stop_strings` without a
tokenizer (`upstream/generation.py`), a caller's own processor that cannot follow drafts (`upstream/processors.py`), a
criterion that compares prompts (`decoding/stopping.py`), and a final norm that is not found (`upstream/states.py`).
"""

from __future__ import annotations

import os

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, SynthIDTextWatermarkLogitsProcessor

from hf_judge.head.judge_head import JudgeHead
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.upstream.candidates import CandidateSource
from hf_judge.upstream.forward import (
    cache_of,
    is_stateful,
    known_length,
    length_of_changing_angles,
    rope_types,
    takes_cache,
)
from hf_judge.upstream.generation import STATIC_CACHES, Call, PreparedCall
from hf_judge.upstream.processes import Ranks, is_sharded
from hf_judge.upstream.versions import LONGROPE_READS_ALL_AGAIN
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import CandidateVerifier

ENGINES = ("auto", "ragged", "upstream")
# families of encoders that are decoders only where their config says so (transformers 5.19 to 5.24)
ENCODERS = {
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be judged.

    Raises:
        TypeError: not a transformers model that generates.
        ValueError: the architecture cannot be judged.
    """
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        raise TypeError(f"a judge needs a transformers model that generates, got {type(model).__name__}")
    _refuse(OF_MODELS, model)


def check_kinds(stopping_criteria: object) -> None:
    """Refuse what upstream would take and fail on in the middle of the work.

    Raises:
        TypeError: a stopping criterion is none.
    """
    for criterion in stopping_criteria if isinstance(stopping_criteria, (list, tuple)) else ():
        if not callable(criterion):
            raise TypeError(
                f"stopping_criteria must hold criteria (functions of ids and scores), got {criterion!r}: pass a "
                "transformers.StoppingCriteria, or eos_token_id= to stop at a token"
            )


def check_rule(judge, threshold: float | None) -> None:
    """Refuse what `generate(judge=, judge_threshold=)` does not take.

    Raises:
        TypeError: `judge` is of another type.
        ValueError: a threshold for a judge that has none.
    """
    if judge is None or judge is False:
        if threshold is not None:
            raise ValueError("judge_threshold was given without a judge: pass judge= as well")
    elif isinstance(judge, (str, os.PathLike, JudgeHead, JudgeCandidateVerifier)):
        return
    elif isinstance(judge, type) or not isinstance(judge, CandidateVerifier):
        raise TypeError(
            "judge must be a Hub id or directory (str), a JudgeHead, a CandidateVerifier (an object with `verify` and "
            f"`stats`), None or False; got {judge!r:.80}"
        )
    elif threshold is not None:
        raise ValueError(f"judge_threshold is for judge heads; {judge!r} has settings of its own")


def check_engine(engine: str) -> None:
    """Refuse an engine that does not exist.

    Raises:
        ValueError: the engine does not exist.
    """
    if engine not in ENGINES:
        raise ValueError(f"judge_engine must be one of {ENGINES}, got {engine!r}")


def check_call(call: Call, config: GenerationConfig) -> None:
    """Refuse a call that no engine can serve, before upstream prepares it.

    Args:
        call: the call.
        config: its settings.

    Raises:
        ValueError: a check fails.
    """
    _refuse(BEFORE_DRAFTING, call, config)
    call.check_assistant(config)
    call.check_inputs()
    _refuse(OF_SETTINGS, config)


def check_prepared(call: PreparedCall) -> None:
    """Refuse a prepared call that no engine can serve.

    Raises:
        ValueError: a check fails.
    """
    _refuse(OF_PREPARED_CALLS, call)


def check_processes(call: PreparedCall, ranks: Ranks) -> None:
    """Refuse a draft that reads the target's states where several processes run the call together.

    Raises:
        ValueError: there are several processes.
    """
    if isinstance(call.assistant_model, Eagle3DraftModel) and (not ranks.alone or call.synced_gpus):
        raise ValueError(
            "an EAGLE-3 draft reads the target's states in one process, and several run this call (tensor parallelism, "
            "FSDP, ZeRO-3): draft with an ordinary model, or load the target with device_map"
        )


def check_chosen_engine(call: PreparedCall, engine: str, reason: str | None) -> None:
    """Refuse a call that the engine it goes to cannot serve.

    Args:
        call: the prepared call.
        engine: "auto", "ragged" or "upstream".
        reason: why the ragged engine cannot serve the call; None: it can.

    Raises:
        ValueError: a check fails.
    """
    if engine == "ragged" and reason is not None:
        raise ValueError(
            f"judge_engine='ragged' cannot serve this call: {reason}; use judge_engine='auto', which takes the "
            "'upstream' engine then"
        )
    if engine == "upstream" or reason is not None:
        _refuse((_batch,), call, reason)
        _refuse(ON_UPSTREAMS_CACHES, call)


def check_source(call: PreparedCall, source: CandidateSource) -> None:
    """Refuse a call whose source of drafts cannot go on from the caller's cache.

    Raises:
        ValueError: a check fails.
    """
    _refuse(OF_SOURCES, call, source)


def _refuse(checks: tuple, *subject) -> None:
    for check in checks:
        if (reason := check(*subject)) is not None:
            raise ValueError(reason)


# ---- models


def _own_generate(model: PreTrainedModel) -> str | None:
    if "generate" in vars(model):
        return (
            f"this {type(model).__name__} has a generate() of its own on the object (from custom_generate/ in its "
            "repository, or a wrapper), which would ignore judge=: load it without trust_remote_code, or "
            "`del model.generate` first"
        )
    return None


def _encoder_decoder(model: PreTrainedModel) -> str | None:
    if model.config.is_encoder_decoder:
        return (
            f"{type(model).__name__} is an encoder-decoder model: judge decoding reads decoder-only causal language "
            "models"
        )
    return None


def _stateful(model: PreTrainedModel) -> str | None:
    if is_stateful(model):
        return f"{type(model).__name__} is stateful: its state cannot be rolled back when a drafted token is rejected"
    return None


def _encoder(model: PreTrainedModel) -> str | None:
    if model.config.model_type in ENCODERS and not model.config.is_decoder:
        return (
            f"{type(model).__name__} attends to what comes after a token (is_decoder=False): it cannot verify drafts. "
            "Load it with is_decoder=True if it was trained as a decoder"
        )
    return None


def _no_cache(model: PreTrainedModel) -> str | None:
    if not takes_cache(model):
        return f"{type(model).__name__} keeps no key-value cache of transformers, which verifying drafts needs"
    return None


# ---- calls, before upstream prepares them


def _own_decoding(call: Call, config: GenerationConfig) -> str | None:
    if call.custom_generate is not None or config.cache_implementation == "paged":
        detour = "custom_generate=" if call.custom_generate is not None else 'cache_implementation="paged"'
        return f"{detour} answers in a way of its own, which would ignore judge=: drop it, or pass judge=False"
    return None


def _beams(call: Call, config: GenerationConfig) -> str | None:
    if config.num_beams is not None and config.num_beams > 1:
        return f"judge= does not work with beam search (num_beams={config.num_beams}): set num_beams=1 or judge=False"
    return None


def _equal_answers(call: Call, config: GenerationConfig) -> str | None:
    if (config.num_return_sequences or 1) > 1 and not config.do_sample:
        return (
            "judge= gives the same answer every time without sampling, got num_return_sequences="
            f"{config.num_return_sequences}: set do_sample=True or num_return_sequences=1"
        )
    return None


def _no_draft(call: Call, config: GenerationConfig) -> str | None:
    if not call.drafts(config):
        return (
            "judge= needs something that drafts tokens: pass assistant_model=, prompt_lookup_num_tokens= or another "
            "candidate source of generate()"
        )
    return None


def _several_answers(call: Call, config: GenerationConfig) -> str | None:
    if (config.num_return_sequences or 1) > 1 and call.drafts_by_itself(config):
        return (
            f"judge= serves one prompt at a time, got a batch of {config.num_return_sequences} (num_return_sequences; "
            "a batch needs an assistant_model): set num_return_sequences=1 and call generate() again for each answer"
        )
    return None


def _guidance(config: GenerationConfig) -> str | None:
    if config.guidance_scale is not None and config.guidance_scale != 1:
        return (
            f"judge= does not work with guidance_scale={config.guidance_scale}: a head reads the plain forward, not "
            "the guided one. Drop guidance_scale, or pass judge=False"
        )
    return None


def _ensemble(config: GenerationConfig) -> str | None:
    if config.assistant_ensemble_weight is not None:
        return (
            "judge= and assistant_ensemble_weight are two acceptance rules: pass one of them (the ensemble could "
            "override a verdict)"
        )
    return None


def _token_healing(config: GenerationConfig) -> str | None:
    if config.token_healing:
        return (
            "judge= does not work with token_healing=True: heal the prompt first, input_ids = "
            "model.heal_tokens(input_ids, tokenizer), and leave token_healing out"
        )
    return None


# ---- calls that upstream has prepared


def _streamer(call: PreparedCall) -> str | None:
    n_prompts = call.input_ids.shape[0]
    if call.streamer is not None and n_prompts > 1:
        return (
            f"a streamer shows one prompt (batch size 1), got {n_prompts}: call generate() per prompt, or drop "
            "streamer="
        )
    return None


def _watermark(call: PreparedCall) -> str | None:
    if any(isinstance(processor, SynthIDTextWatermarkLogitsProcessor) for processor in call.logits_processor):
        return (
            "SynthID watermarking keeps state from token to token and cannot follow drafts that are rolled back: use "
            "WatermarkingConfig instead, or generate without judge"
        )
    return None


def _dynamic_mask(call: PreparedCall) -> str | None:
    """Doge keeps the best keys alone, and a forward over several tokens keeps others than one after the other."""
    window = getattr(call.model.config.get_text_config(), "keep_window_size", None)
    if window is not None and call.generation_config.max_length > window:
        return (
            f"{type(call.model).__name__} attends to the {window} best keys alone, and a forward over several drafted "
            f"tokens has others: keep prompt and answer within {window} tokens (max_length is "
            f"{call.generation_config.max_length}), or pass judge=False"
        )
    return None


def _padded_git(call: PreparedCall) -> str | None:
    """GIT takes the positions of drafted tokens without regard to padding (5.19 to 5.24)."""
    mask = call.model_kwargs.get("attention_mask")
    if call.model.config.model_type == "git" and mask is not None and not bool(mask.all()):
        return "judge= does not work with padding on this model (GIT): pass one prompt without padding"
    return None


def _shared_draft(call: PreparedCall) -> str | None:
    """Where processes wait for each other, each must draft alone: their prompts need different numbers of drafts."""
    if not call.synced_gpus:
        return None
    draft = call.assistant_model
    remedy = "where processes wait for each other (FSDP, ZeRO-3): load a whole draft in every process"
    if isinstance(draft, torch.nn.Module) and is_sharded(draft):
        return f"judge= cannot draft with a sharded {type(draft).__name__} {remedy}"
    if call.drafts_with_target:
        return f"judge= cannot draft with the sharded target itself {remedy}, or draft by prompt lookup"
    return None


# ---- calls that go to upstream's caches


def _batch(call: PreparedCall, reason: str | None) -> str | None:
    n_prompts = call.input_ids.shape[0]
    if n_prompts > 1:
        return (
            f"judge= serves one prompt at a time, got a batch of {n_prompts} (a batch needs the ragged engine; "
            f"{reason or 'judge_engine=upstream was asked for'}): call generate() per prompt"
        )
    return None


def _cache_off(call: PreparedCall) -> str | None:
    if not call.model_kwargs.get("use_cache", True):
        return "judge= needs the key-value cache to verify drafts: pass use_cache=True"
    if call.model.training and call.model.is_gradient_checkpointing:
        return "judge= needs the cache, which gradient checkpointing passes by: call model.eval() first"
    return None


def _static_cache(call: PreparedCall) -> str | None:
    implementation, cache = call.generation_config.cache_implementation, cache_of(call.model_kwargs)
    if implementation in STATIC_CACHES or (cache is not None and cache.is_compileable):
        return f"judge= needs a dynamic cache, got {implementation or type(cache).__name__}: drop cache_implementation"
    return None


def _cache_missing(call: PreparedCall) -> str | None:
    if cache_of(call.model_kwargs) is None:
        return (
            "judge= needs a key-value cache that generate() prepares, and it prepares none for "
            f"{type(call.model).__name__}: generate without judge"
        )
    return None


def _no_ids(call: PreparedCall) -> str | None:
    if call.input_ids.shape[1] == 0 and call.generation_config.prompt_lookup_num_tokens is None:
        return (
            "drafting needs the prompt's token ids, but only inputs_embeds was passed: pass input_ids as well, or "
            "draft with prompt_lookup_num_tokens"
        )
    return None


def _offloaded_draft(call: PreparedCall) -> str | None:
    drafting = call.model if call.generation_config.assistant_early_exit is not None else call.assistant_model
    if drafting is not None and drafting.device.type == "meta":
        return (
            f"{type(drafting).__name__} cannot draft while its first weights are offloaded (its device is meta): load "
            "it without offloading"
        )
    return None


def _earlier_turn(call: PreparedCall, source: CandidateSource) -> str | None:
    if source.reads_target_states and cache_of(call.model_kwargs).get_seq_length() > 0:
        return (
            "MTP, DFlash and EAGLE-3 draft from the target's states of the whole prompt, but the cache already holds "
            "an earlier turn: pass the whole prompt without a cache, or draft with an assistant_model"
        )
    return None


def _cache_too_long(call: PreparedCall, source: CandidateSource) -> str | None:
    n_ids, cached = call.input_ids.shape[1], cache_of(call.model_kwargs).get_seq_length()
    total = known_length(call.model_kwargs, call.generation_config, call.input_ids)
    if call.model_kwargs.get("inputs_embeds") is None and total == n_ids <= cached:
        return (
            f"the cache holds {cached} tokens, but input_ids and attention_mask have {total}: pass the ids of the "
            "whole sequence, or only the new ids with the attention_mask of all"
        )
    return None


def _longrope_cache(call: PreparedCall, source: CandidateSource) -> str | None:
    config, cached = call.model.config.get_text_config(), cache_of(call.model_kwargs).get_seq_length()
    total = known_length(call.model_kwargs, call.generation_config, call.input_ids)
    limit = length_of_changing_angles(config, cached)
    outgrown = "longrope" in rope_types(config) and limit is not None and cached <= limit < total
    if call.has_own_cache and outgrown and not LONGROPE_READS_ALL_AGAIN:
        return (
            f"a longrope model reads its text again once it is longer than {limit} tokens, and this transformers reads "
            "only the newest ones: pass the whole text without a cache, or install transformers 5.20 or newer"
        )
    return None


OF_MODELS = (_own_generate, _encoder_decoder, _stateful, _encoder, _no_cache)
BEFORE_DRAFTING = (_own_decoding, _beams, _equal_answers, _no_draft, _several_answers)
OF_SETTINGS = (_guidance, _ensemble, _token_healing)
OF_PREPARED_CALLS = (_streamer, _watermark, _dynamic_mask, _padded_git, _shared_draft)
ON_UPSTREAMS_CACHES = (_cache_off, _static_cache, _cache_missing, _no_ids, _offloaded_draft)
OF_SOURCES = (_earlier_turn, _cache_too_long, _longrope_cache)
