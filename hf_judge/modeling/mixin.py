"""Judge classes: transformers' causal language models with ``generate(..., judge=...)``.

The classes add no weights and no state to a model; everything a judged call needs travels with the call.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, LlamaForCausalLM, PreTrainedModel

from hf_judge.decoding.loop import judged_decoding
from hf_judge.decoding.upstream_caches import CroppingBackend
from hf_judge.head.compatibility import check_fit
from hf_judge.head.config import HUB_OPTIONS
from hf_judge.head.files import LAYER_NAME
from hf_judge.head.hub import cached_commit
from hf_judge.head.judge_head import JudgeHead, shared_head
from hf_judge.modeling.default_judge import checked_adapter, save_judge, saved_head
from hf_judge.ragged.backend import RaggedBackend
from hf_judge.ragged.eligibility import why_not_ragged
from hf_judge.upstream.candidates import CandidateSource, DraftingOptions
from hf_judge.upstream.forward import cache_of, commit_of, is_stateful, remember_commit, takes_cache, unwrapped
from hf_judge.upstream.generation import STATIC_CACHES, Call, PreparedCall
from hf_judge.upstream.names import causal_lm_class, let_pipelines_take
from hf_judge.upstream.processes import Ranks, is_sharded
from hf_judge.upstream.states import StateReader
from hf_judge.upstream.versions import warn_if_untested
from hf_judge.upstream.views import shared_view
from hf_judge.verify.rule import CandidateVerifier, JudgeCandidateVerifier

logger = logging.getLogger(__name__)

_DRAFTING_OPTIONS = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
# families of encoders that are decoders only where their config says so (transformers 5.19 to 5.24)
ENCODERS = {
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
ENGINES = ("auto", "ragged", "upstream")
_PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")


class JudgeGenerationMixin:
    """Adds ``judge=`` to ``generate()``; goes before a transformers causal LM class in the bases.

    Without a judge every call is upstream's own path.
    """

    default_judge: CandidateVerifier | None = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        let_pipelines_take(cls.__name__)

    def __setattr__(self, name: str, value) -> None:
        if name == "default_judge" and value is not None and value is not False:
            value = self.resolve_judge(value)  # a head as such would become a submodule, and nobody would look at it
        super().__setattr__(name, value)

    @torch.no_grad()
    def generate(self, *args, judge=None, judge_threshold: float | None = None, judge_engine: str = "auto", **kwargs):
        """Generate as `GenerationMixin.generate` does, accepting drafted tokens that the judge finds acceptable.

        Args:
            *args, **kwargs: as upstream. With a judge, something must draft: `assistant_model=`,
                `prompt_lookup_num_tokens=`, `assistant_early_exit=`, ... `num_assistant_tokens`,
                `num_assistant_tokens_schedule` and `assistant_confidence_threshold` given here count for this call.
            judge (`str`, `os.PathLike`, [`JudgeHead`], [`CandidateVerifier`] or `False`, *optional*): the judge's
                repository on the Hub or its directory, the head, or any acceptance rule. None: the model's own judge if
                it has one (`default_judge`, else the active JUDGE adapter), else upstream's path. False: upstream's
                path.
            judge_threshold (`float`, *optional*): between 0 (lenient) and 1 (strict); default: the head's own.
            judge_engine (`str`): `"ragged"`: the engine for batches, with its own drafting; `"upstream"`: upstream's
                caches and candidate sources, one prompt; `"auto"`: the first where it can serve the call. The ragged
                engine compiles its forwards with `compile_config=` (on accelerators also with
                `cache_implementation="static"`), and knows `num_assistant_tokens_schedule="adaptive"`.

        Returns:
            As upstream: ids, or with `return_dict_in_generate=True` a [`JudgeDecoderOnlyOutput`].

        Raises:
            TypeError: `judge` is of another type.
            ValueError: the judge does not fit this model, or the call asks for what a judge cannot serve.
        """
        verifier = self.resolve_judge(judge, judge_threshold)
        if verifier is None:
            return super().generate(*args, **kwargs)
        if judge_engine not in ENGINES:
            raise ValueError(f"judge_engine must be one of {ENGINES}, got {judge_engine!r}")
        call = Call(self, super().generate, args, kwargs)
        settings = call.settings()
        if judge is None and not call.drafts(settings):
            return super().generate(*args, **kwargs)  # the model's own judge has nothing to do
        _check_call(call, settings)
        warn_if_untested()
        options = DraftingOptions(**{name: call.given(name) for name in _DRAFTING_OPTIONS})
        return call.run(lambda prepared: _decode(prepared, verifier, options, judge_engine), settings)

    def resolve_judge(self, judge, threshold: float | None = None) -> CandidateVerifier | None:
        """The acceptance rule that `generate(judge=judge, judge_threshold=threshold)` uses, or None for upstream's
        path.

        Raises:
            TypeError: `judge` is of a type that `generate` does not take.
            ValueError: the judge does not fit this model, or a threshold is given without a head.
        """
        if judge is None:
            judge = self.default_judge if self.default_judge is not None else self.active_judge_head()
        if judge is None or judge is False:
            if threshold is not None:
                raise ValueError("judge_threshold was given without a judge: pass judge= as well")
            return None
        if isinstance(judge, (str, os.PathLike)):
            judge = shared_head(judge)
        if isinstance(judge, JudgeHead):
            judge = JudgeCandidateVerifier(judge, threshold)
        elif isinstance(judge, JudgeCandidateVerifier) and threshold is not None:
            judge = judge.with_threshold(threshold)
        elif isinstance(judge, type) or not isinstance(judge, CandidateVerifier):
            raise TypeError(
                "judge must be a Hub id or directory (str), a JudgeHead, a CandidateVerifier (an object with `verify` "
                f"and `stats`), None or False; got {judge!r:.80}"
            )
        elif threshold is not None:
            raise ValueError(f"judge_threshold is for judge heads; {judge!r} has settings of its own")
        if isinstance(judge, JudgeCandidateVerifier):
            check_fit(judge.head, self)
        return judge

    def active_judge_head(self) -> JudgeHead | None:
        """The head of the active JUDGE adapter, or None: no such adapter, or adapters are disabled.

        Raises:
            ValueError: several heads are active.
        """
        layer = dict(self.named_children()).get(LAYER_NAME)  # hung there by hf_judge.integrations.peft_method
        return None if layer is None else layer.active_head()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, judge=None, **kwargs):
        """Load the model as upstream does.

        Args:
            judge: becomes the default judge (see `generate`); None: the one that `save_pretrained` put beside the
                model, if any. False: none.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        _set_default_judge(model, judge, kwargs)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save the model under upstream's own architecture name, so that it reloads anywhere.

        The head of a default judge goes to the folder `judge/` beside it, where the Judge classes find it again. A
        model with adapters saves those alone, as upstream does.
        """
        # upstream would push before the judge is there
        push = self.default_judge is not None and kwargs.pop("push_to_hub", False)
        options = {key: kwargs.pop(key) for key in _PUSH_OPTIONS if key in kwargs} if push else {}
        saved = shared_view(self, _upstream_class(type(self))).save_pretrained(save_directory, *args, **kwargs)
        if self.default_judge is not None:
            save_judge(self.resolve_judge(self.default_judge), save_directory)
        if push:
            repo_id = options.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, token=kwargs.get("token"), **options)
        return saved

    def load_adapter(self, peft_model_id=None, *args, load_config=None, adapter_kwargs=None, **kwargs):
        """Load an adapter as upstream does; a JUDGE adapter passes the strict reader first, at one commit.

        Raises:
            ValueError, TypeError: it holds anything but one judge head.
            OSError: it cannot be had.
        """
        if peft_model_id is None:
            return super().load_adapter(None, *args, load_config=load_config, adapter_kwargs=adapter_kwargs, **kwargs)
        options = dict(load_config.download_kwargs) if load_config is not None else {}
        options |= kwargs | (adapter_kwargs or {})
        directory = checked_adapter(peft_model_id, options)
        if directory is not None:
            # the directory that was read is all that upstream may look at
            peft_model_id, adapter_kwargs = directory, None
            kwargs = {key: value for key, value in kwargs.items() if key not in (*HUB_OPTIONS, "subfolder")}
            if load_config is not None:
                load_config = dataclasses.replace(load_config, download_kwargs={})
        return super().load_adapter(
            peft_model_id, *args, load_config=load_config, adapter_kwargs=adapter_kwargs, **kwargs
        )

    def delete_adapter(self, adapter_names):
        """Delete adapters as upstream does; with the last head, a class that a JUDGE adapter gave is given back."""
        super().delete_adapter(adapter_names)
        layer = dict(self.named_children()).get(LAYER_NAME)
        if layer is not None:
            layer.leave_if_empty(self)

    def __reduce__(self):
        # a class made at run time is found again through the upstream class it extends, a user's own by its name
        upstream_class = _upstream_class(type(self))
        found_by = upstream_class if type(self) is judge_class(upstream_class) else type(self)
        return _rebuild, (found_by,), self.__dict__


def _rebuild(found_by: type) -> PreTrainedModel:
    return object.__new__(judge_class(found_by))


def _set_default_judge(model: PreTrainedModel, judge, kwargs: dict) -> None:
    """Give a freshly loaded model its default judge: the caller's, else the one saved beside the model.

    Args:
        kwargs: what the model was loaded with.
    """
    name, commit = model.config.name_or_path, commit_of(model.config)
    if commit is None and not os.path.isdir(name):
        # upstream (5.23) no longer notes it; check_fit compares it with that of the head
        commit = cached_commit(name, kwargs.get("revision"), kwargs.get("cache_dir"))
        remember_commit(model.config, commit)
    if judge is None:
        options = {key: kwargs[key] for key in ("cache_dir", "token", "local_files_only") if key in kwargs}
        judge = saved_head(name, commit, options)
    if judge is not None and judge is not False:
        model.default_judge = model.resolve_judge(judge)


class JudgeLlamaForCausalLM(JudgeGenerationMixin, LlamaForCausalLM):
    """`LlamaForCausalLM` with ``generate(..., judge=...)``."""

    __module__ = "hf_judge.modeling"  # where pickles look for it


class AutoJudgeModelForCausalLM:
    """Loads any decoder-only causal language model as its Judge class."""

    def __init__(self):
        raise OSError("AutoJudgeModelForCausalLM is made with AutoJudgeModelForCausalLM.from_pretrained(...)")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, judge=None, **kwargs) -> PreTrainedModel:
        """Load `pretrained_model_name_or_path` through `AutoModelForCausalLM` and make it `Judge<Arch>ForCausalLM`.

        Args:
            judge: becomes the model's default judge; everything that `generate(judge=)` takes. None: the one that was
                saved with the model, if any. False: none.
            **kwargs: as `AutoModelForCausalLM.from_pretrained`.

        Raises:
            ValueError: the architecture cannot be judged, or the judge does not fit it.
        """
        loaded = AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        become_judge(model)
        _set_default_judge(model, judge, kwargs)
        return loaded


def become_judge(model: PreTrainedModel) -> None:
    """Turn the class of this very object into its Judge class.

    Raises:
        TypeError: not a transformers model that generates.
        ValueError: an architecture that cannot be judged.
    """
    _check_model(model)
    model.__class__ = judge_class(type(model))


def judged(model: torch.nn.Module) -> PreTrainedModel:
    """The model as its Judge class: a new object over the same weights; `model` itself is not changed.

    Args:
        model: a decoder-only causal LM of transformers, or a `PeftModel` around one (its adapters stay active).

    Raises:
        TypeError: not such a model; a compiled wrapper.
        ValueError: an architecture that cannot be judged.
    """
    if isinstance(model, JudgeGenerationMixin):
        return model
    if type(model).__name__ == "OptimizedModule":
        raise TypeError(
            "judged() got a torch.compile'd wrapper, whose generate() would bypass the compiled code: compile the "
            "judged model's forward instead: model = judged(model); model.forward = torch.compile(model.forward)"
        )
    if type(model).__module__.partition(".")[0] == "peft":
        model = _peft_base(model)
        if isinstance(model, JudgeGenerationMixin):
            return model
    _check_model(model)
    return shared_view(model, judge_class(type(model)))


@functools.cache
def judge_class(upstream_class: type) -> type:
    """`Judge<Arch>` for a causal LM class of transformers; the same class every time.

    Args:
        upstream_class: e.g. `Qwen2ForCausalLM`.
    """
    if issubclass(upstream_class, JudgeGenerationMixin):
        return upstream_class
    if upstream_class is LlamaForCausalLM:
        return JudgeLlamaForCausalLM
    name = f"Judge{upstream_class.__name__}"
    doc = f"`{upstream_class.__name__}` with ``generate(..., judge=...)``."
    return type(name, (JudgeGenerationMixin, upstream_class), {"__doc__": doc, "__module__": "hf_judge.modeling"})


def __getattr__(name: str) -> type:
    """`Judge<Arch>ForCausalLM` for every architecture of transformers, so that pickled classes are found."""
    found = causal_lm_class(name.removeprefix("Judge")) if name.startswith("Judge") else None
    if found is not None:
        return judge_class(found)
    raise AttributeError(f"module 'hf_judge.modeling' has no attribute {name!r}")


def _upstream_class(cls: type) -> type:
    # FSDP2's fully_shard puts a class of its own before the model's
    bases = (base for base in cls.__mro__ if issubclass(base, PreTrainedModel))
    return next(base for base in bases if not issubclass(base, JudgeGenerationMixin))


def _peft_base(model) -> PreTrainedModel:
    try:  # not bare: transformers (5.23) takes a bare import here for one that custom_generate/ cannot do without
        from peft import PeftModel
    except ImportError as error:
        raise TypeError(f"judged() got a {type(model).__name__} of a peft that cannot be imported: {error}") from error
    if not isinstance(model, PeftModel):
        raise TypeError(f"judged() expects a transformers model or a PeftModel, got {type(model).__name__}")
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"judged() cannot serve {model.active_peft_config.peft_type}: prompt learning lives in the PeftModel, not "
            "in its base model; use an adapter that changes the layers (LoRA and its kin)"
        )
    return model.get_base_model()


def _check_model(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        raise TypeError(f"a judge needs a transformers model that generates, got {name}")
    if "generate" in vars(model):
        raise ValueError(
            f"this {name} has a generate() of its own on the object (from custom_generate/ in its repository, or a "
            "wrapper), which would not look at judge=: load it without trust_remote_code, or `del model.generate` first"
        )
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder model: judge decoding reads decoder-only causal language models"
        )
    if is_stateful(model):
        raise ValueError(f"{name} is stateful: its state cannot be rolled back when a drafted token is rejected")
    if model.config.model_type in ENCODERS and not model.config.is_decoder:
        raise ValueError(
            f"{name} attends to what comes after a token (is_decoder=False): it cannot verify drafts. Load it with "
            "is_decoder=True if it was trained as a decoder"
        )
    if not takes_cache(model):
        raise ValueError(f"{name} keeps no key-value cache of transformers, which verifying drafts needs")


def _check_call(call: Call, config: GenerationConfig) -> None:
    """Refuse a call that no engine can serve.

    Args:
        call: the call.
        config: its settings.
    """
    if call.custom_generate is not None or config.cache_implementation == "paged":
        detour = "custom_generate=" if call.custom_generate is not None else 'cache_implementation="paged"'
        raise ValueError(
            f"{detour} answers in a way of its own, which does not look at judge=: drop it, or pass judge=False"
        )
    if config.num_beams is not None and config.num_beams > 1:
        raise ValueError(
            f"judge= does not work with beam search (num_beams={config.num_beams}): set num_beams=1 or judge=False"
        )
    if config.num_return_sequences is not None and config.num_return_sequences > 1 and not config.do_sample:
        raise ValueError(
            f"judge= gives the same answer every time without sampling, got num_return_sequences="
            f"{config.num_return_sequences}: set do_sample=True or num_return_sequences=1"
        )
    if not call.drafts(config):
        raise ValueError(
            "judge= needs something that drafts tokens: pass assistant_model=, prompt_lookup_num_tokens= or another "
            "candidate source of generate()"
        )
    if config.num_return_sequences is not None and config.num_return_sequences > 1 and call.drafts_by_itself(config):
        raise ValueError(
            f"judge= serves one prompt at a time, got a batch of {config.num_return_sequences} "
            "(num_return_sequences; a batch needs an assistant_model): set num_return_sequences=1 and call generate() "
            "again for each answer"
        )
    call.check_assistant(config)
    call.check_inputs()
    if config.guidance_scale is not None and config.guidance_scale != 1:
        raise ValueError("judge= does not work with guidance_scale: a head reads the plain forward, not the guided one")
    if config.assistant_ensemble_weight is not None:
        raise ValueError(
            "judge= and assistant_ensemble_weight are two acceptance rules: pass one of them (the ensemble could "
            "override a verdict)"
        )
    if config.token_healing:
        raise ValueError(
            "judge= does not work with token_healing=True: heal the prompt first, input_ids = "
            "model.heal_tokens(input_ids, tokenizer), and leave token_healing out"
        )


def _decode(prepared: PreparedCall, verifier: CandidateVerifier, options: DraftingOptions, engine: str):
    """Make the output of a judged call.

    Args:
        prepared: the call, after upstream's preparation.
        verifier: the acceptance rule.
        options: drafting settings of this call.
        engine: "auto", "ragged" or "upstream".
    """
    model, input_ids, config = prepared.model, prepared.input_ids, prepared.generation_config
    if prepared.streamer is not None and input_ids.shape[0] > 1:
        raise ValueError(
            f"a streamer shows one row (batch size 1), got {input_ids.shape[0]}: call generate() per prompt, or "
            "drop streamer="
        )
    ranks = Ranks.of(model, draft_alone=_drafts_alone(prepared.assistant_model, config))
    state = getattr(verifier, "hidden_state", "post_norm")
    with StateReader(model, state) as reader, ranks.one_random_stream():
        backend = _backend(prepared, verifier, options, engine, reader, ranks)
        try:
            output = judged_decoding(
                backend,
                input_ids,
                verifier=verifier,
                logits_processor=prepared.logits_processor,
                stopping_criteria=prepared.stopping_criteria,
                generation_config=config,
                has_unfinished=prepared.has_unfinished,
                ranks=ranks,
                streamer=prepared.streamer,
            )
        except BaseException:
            backend.close(failed=True)  # probably out of memory: free everything
            raise
        backend.close()
        return output


def _backend(
    prepared: PreparedCall,
    verifier: CandidateVerifier,
    options: DraftingOptions,
    engine: str,
    reader: StateReader,
    ranks: Ranks,
) -> RaggedBackend | CroppingBackend:
    """The backend that serves this call: the ragged engine where it can, upstream's caches elsewhere."""
    model, draft, config = prepared.model, prepared.assistant_model, prepared.generation_config
    if prepared.synced_gpus:
        _check_drafts_whole(draft, config)
    reason = why_not_ragged(prepared)
    if engine == "ragged" and reason is not None:
        raise ValueError(
            f"judge_engine='ragged' cannot serve this call: {reason}; use judge_engine='auto', which takes the "
            "'upstream' engine then"
        )
    if engine != "upstream" and reason is None:
        return RaggedBackend(
            model,
            unwrapped(draft),
            prepared.input_ids,
            attention_mask=prepared.model_kwargs.get("attention_mask"),
            reader=reader,
            generation_config=config,
            logits_processor=prepared.logits_processor,
            options=options,
            ranks=ranks,
            synced_gpus=prepared.synced_gpus,
        )
    if engine == "auto":
        logger.info("judge_engine: upstream's caches, because %s", reason)
    _check_cache_and_batch(prepared, reason)
    # sliding-window and linear layers keep what a rollback needs
    cache_of(prepared.model_kwargs).activate_past_recording()
    source = CandidateSource(
        model,
        prepared.input_ids,
        generation_config=config,
        logits_processor=prepared.logits_processor,
        model_kwargs=prepared.model_kwargs,
        options=options,
        raw_logits=getattr(verifier, "reads_draft_logits", False),
        assistant_model=draft,
        target_tokenizer=prepared.tokenizer if prepared.has_other_vocabulary else None,
        assistant_tokenizer=prepared.assistant_tokenizer if prepared.has_other_vocabulary else None,
        inputs_tensor=prepared.inputs_tensor,
    )
    return CroppingBackend(model, source, reader, config, prepared.model_kwargs, ranks)


def _drafts_alone(draft: PreTrainedModel | None, config) -> bool:
    """Whether drafting runs nothing but a draft that this process has the whole of."""
    uses_target = config.assistant_early_exit is not None or config.speculation_type is not None or config.use_mtp
    return isinstance(draft, PreTrainedModel) and (draft.tp_size or 1) == 1 and not uses_target


def _check_drafts_whole(draft: PreTrainedModel | None, config) -> None:
    """Refuse drafts that need the other processes: each process drafts as often as its own prompt asks for."""
    remedy = "where processes wait for each other (FSDP, ZeRO-3): load a whole draft in every process"
    if isinstance(draft, torch.nn.Module) and is_sharded(draft):
        raise ValueError(f"judge= cannot draft with a sharded {type(draft).__name__} {remedy}")
    if config.assistant_early_exit is not None or config.speculation_type is not None or config.use_mtp:
        raise ValueError(f"judge= cannot draft with the sharded target itself {remedy}, or draft by prompt lookup")


def _check_cache_and_batch(prepared: PreparedCall, reason: str | None) -> None:
    n_prompts, implementation = prepared.input_ids.shape[0], prepared.generation_config.cache_implementation
    if n_prompts > 1:
        raise ValueError(
            f"judge= serves one prompt at a time, got a batch of {n_prompts} "
            f"(a batch needs the ragged engine; {reason or 'judge_engine=upstream was asked for'}): "
            "call generate() per prompt"
        )
    if not prepared.model_kwargs.get("use_cache", True):
        raise ValueError("judge= needs the key-value cache to verify drafts: pass use_cache=True")
    if prepared.model.training and prepared.model.is_gradient_checkpointing:
        raise ValueError("judge= needs the cache, which gradient checkpointing passes by: call model.eval() first")
    cache = cache_of(prepared.model_kwargs)
    if implementation in STATIC_CACHES or (cache is not None and cache.is_compileable):
        raise ValueError(
            f"judge= needs a dynamic cache, got {implementation or type(cache).__name__}: drop cache_implementation"
        )
    if cache is None:
        raise ValueError(
            f"judge= needs a key-value cache that generate() prepares, and it prepares none for "
            f"{type(prepared.model).__name__}: generate without judge"
        )
