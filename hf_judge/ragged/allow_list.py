"""Lists every input, setting, processor and architecture, and which engine serves it: the allow-list.

The engine computes positions, masks and caches itself. So it takes a call only where everything that influences
upstream's result is on one of these lists (`eligibility.py` checks that). What is not listed goes to upstream's caches;
a batch with it is refused. docs/engines.md is written from these tables.
"""

from __future__ import annotations

from hf_judge.upstream.versions import CACHE

# How a setting of the generation config, a keyword of generate(), a model kwarg, a processor or a criterion is served.
ENGINE = "both engines"
UPSTREAM = "upstream's caches"  # one prompt; for a batch refused
REFUSED = "refused"
NO_INFLUENCE = "without influence"
PREPARED = "prepared by transformers"  # turned into processors, criteria, lengths or tokens before an engine is chosen

# every field of GenerationConfig
SETTINGS = {
    "max_length": PREPARED,
    "max_new_tokens": PREPARED,
    "min_length": PREPARED,
    "min_new_tokens": PREPARED,
    "early_stopping": NO_INFLUENCE,  # of beams
    "max_time": PREPARED,
    "stop_strings": PREPARED,
    "do_sample": ENGINE,
    "num_beams": REFUSED,
    "use_cache": REFUSED,  # when False
    "cache_implementation": ENGINE,
    "cache_config": UPSTREAM,
    "max_cache_len": NO_INFLUENCE,  # of static caches, which no engine takes
    "use_mtp": UPSTREAM,
    "speculation_type": UPSTREAM,
    "prompt_lookup_num_tokens": UPSTREAM,
    "max_matching_ngram_size": UPSTREAM,
    "assistant_early_exit": UPSTREAM,
    "assistant_lookbehind": UPSTREAM,  # of drafts with another tokenizer
    "target_lookbehind": UPSTREAM,
    "assistant_ensemble_weight": REFUSED,
    "is_assistant": NO_INFLUENCE,  # set by transformers on drafts
    "num_assistant_tokens": ENGINE,
    "num_assistant_tokens_schedule": ENGINE,
    "assistant_confidence_threshold": ENGINE,
    "temperature": PREPARED,
    "top_k": PREPARED,
    "top_p": PREPARED,
    "min_p": PREPARED,
    "top_h": PREPARED,
    "typical_p": PREPARED,
    "epsilon_cutoff": PREPARED,
    "eta_cutoff": PREPARED,
    "repetition_penalty": PREPARED,
    "encoder_repetition_penalty": PREPARED,
    "length_penalty": NO_INFLUENCE,  # of beams
    "no_repeat_ngram_size": PREPARED,
    "encoder_no_repeat_ngram_size": PREPARED,
    "bad_words_ids": PREPARED,
    "renormalize_logits": PREPARED,
    "forced_bos_token_id": PREPARED,
    "forced_eos_token_id": PREPARED,
    "remove_invalid_values": PREPARED,
    "exponential_decay_length_penalty": PREPARED,
    "suppress_tokens": PREPARED,
    "begin_suppress_tokens": PREPARED,
    "sequence_bias": PREPARED,
    "token_healing": REFUSED,
    "guidance_scale": REFUSED,
    "watermarking_config": PREPARED,
    "num_return_sequences": ENGINE,
    "output_attentions": UPSTREAM,
    "output_hidden_states": UPSTREAM,
    "output_scores": ENGINE,
    "output_logits": ENGINE,
    "return_dict_in_generate": ENGINE,
    "pad_token_id": ENGINE,
    "bos_token_id": PREPARED,
    "eos_token_id": ENGINE,
    "decoder_start_token_id": NO_INFLUENCE,  # of encoder-decoder models
    "compile_config": ENGINE,
    "disable_compile": ENGINE,
    "continuous_batching_config": NO_INFLUENCE,  # of generate_batch()
    "prefill_chunk_size": NO_INFLUENCE,  # the engine has chunks of its own
    "transformers_version": NO_INFLUENCE,
    # taken out of generate() by transformers, kept as fields
    "low_memory": NO_INFLUENCE,
    "penalty_alpha": REFUSED,
    "dola_layers": REFUSED,
    "diversity_penalty": REFUSED,
    "num_beam_groups": REFUSED,
    "constraints": REFUSED,
    "force_words_ids": REFUSED,
}

# every keyword of GenerationMixin.generate
KEYWORDS = {
    "inputs": ENGINE,
    "generation_config": ENGINE,
    "logits_processor": ENGINE,
    "stopping_criteria": ENGINE,
    "prefix_allowed_tokens_fn": PREPARED,
    "synced_gpus": ENGINE,
    "assistant_model": ENGINE,
    "streamer": ENGINE,  # one prompt
    "negative_prompt_ids": NO_INFLUENCE,  # of guidance, which is refused
    "negative_prompt_attention_mask": NO_INFLUENCE,
    "custom_generate": REFUSED,
}

# keywords of the target's forward
MODEL_KWARGS = {
    "attention_mask": ENGINE,  # padding on the left
    "position_ids": ENGINE,  # those that follow from the mask; others go to upstream's caches
    CACHE: UPSTREAM,  # one that the caller passed
    "use_cache": ENGINE,
    "logits_to_keep": ENGINE,
    "output_attentions": UPSTREAM,
    "output_hidden_states": UPSTREAM,
    "inputs_embeds": UPSTREAM,
}

# Processors of transformers that look at each prompt of a batch on its own (or at what upstream/processors.py cuts out
# for it). Others of transformers go to upstream's caches. A caller's own are called with a whole batch.
PROCESSORS = {
    "ConfidenceCriteria": UPSTREAM,
    "ClassifierFreeGuidanceLogitsProcessor": REFUSED,
    "EncoderNoRepeatNGramLogitsProcessor": ENGINE,
    "EncoderRepetitionPenaltyLogitsProcessor": ENGINE,
    "EpsilonLogitsWarper": ENGINE,
    "EtaLogitsWarper": ENGINE,
    "ExponentialDecayLengthPenalty": ENGINE,
    "ForcedBOSTokenLogitsProcessor": ENGINE,
    "ForcedEOSTokenLogitsProcessor": ENGINE,
    "InfNanRemoveLogitsProcessor": ENGINE,
    "LogitNormalization": ENGINE,
    "MinLengthLogitsProcessor": ENGINE,
    "MinNewTokensLengthLogitsProcessor": ENGINE,
    "MinPLogitsWarper": ENGINE,
    "NoBadWordsLogitsProcessor": ENGINE,
    "NoRepeatNGramLogitsProcessor": ENGINE,
    "PrefixConstrainedLogitsProcessor": ENGINE,
    "RepetitionPenaltyLogitsProcessor": ENGINE,
    "SequenceBiasLogitsProcessor": ENGINE,
    "SuppressTokensAtBeginLogitsProcessor": ENGINE,
    "SuppressTokensLogitsProcessor": ENGINE,
    "SynthIDTextWatermarkLogitsProcessor": REFUSED,
    "TemperatureLogitsWarper": ENGINE,
    "TopHLogitsWarper": ENGINE,
    "TopKLogitsWarper": ENGINE,
    "TopPLogitsWarper": ENGINE,
    "TypicalLogitsWarper": ENGINE,
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": REFUSED,
    "WatermarkLogitsProcessor": ENGINE,
    "WhisperTimeStampLogitsProcessor": UPSTREAM,
    "DiaClassifierFreeGuidanceLogitsProcessor": UPSTREAM,
    "DiaEOSChannelFilterLogitsProcessor": UPSTREAM,
    "DiaEOSDelayPatternLogitsProcessor": UPSTREAM,
    "AlternatingCodebooksLogitsProcessor": UPSTREAM,
    "BarkEosPrioritizerLogitsProcessor": UPSTREAM,
}
CRITERIA = {
    "EosTokenCriteria": ENGINE,
    "MaxLengthCriteria": ENGINE,
    "MaxTimeCriteria": ENGINE,
    "StopStringCriteria": ENGINE,
    "ConfidenceCriteria": UPSTREAM,
}

# Architectures on which a differential check found both engines equal (docs/architectures.md; Mistral: without its
# window). Others, and those whose state depends on more than keys and values, go to upstream's caches.
ARCHITECTURES = {
    *("apertus", "apertus1p5_text", "arcee", "aria_text", "biogpt", "bitnet", "codegen", "cohere", "ctrl"),
    *("diffllama", "ernie4_5", "ernie4_5_moe", "exaone", "falcon", "flex_olmo", "gemma", "glm", "glm4"),
    *("glm4_moe", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gptj", "granite"),
    *("granitemoe", "granitemoeshared", "helium", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2"),
    *("jetmoe", "llama", "mellum", "minimax_m2", "ministral3", "mistral", "mixtral", "nanochat", "olmo"),
    *("olmo2", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "sarvam_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "xglm"),
}
# fields of a model config that change attention, positions or the cache, with the values that the engine knows
FULL_ATTENTION = {
    "alibi": (False, None),
    "use_alibi": (False, None),
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "attention_window": (None,),
    "local_attention": (False, None),
    "position_embedding_type": (None, "absolute", "rope", "rotary", "learned_absolute"),
    "altup_num_inputs": (None, 1),
    "num_kv_shared_layers": (None, 0),
    "is_prefix_lm": (False, None),
    "use_bidirectional_attention": (False, None),
    "is_causal": (True, None),
}
# kinds of rotary positions whose angles do not depend on how long the sequence is
ROPE_TYPES = {"default", "linear", "llama3", "yarn", "proportional"}
