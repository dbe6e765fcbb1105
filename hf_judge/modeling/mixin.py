"""Adds ``generate(..., judge=...)`` to transformers' causal language models, and defines the classes that have it.

The classes add no weights and no state to a model; everything that a judged call needs travels with the call.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from hf_judge.head.compatibility import check_draft, check_fit
from hf_judge.head.config import HUB_OPTIONS
from hf_judge.head.files import LAYER_NAME
from hf_judge.head.judge_head import JudgeHead, shared_head
from hf_judge.modeling import refusals
from hf_judge.modeling.default_judge import checked_adapter, save_judge, set_default_judge
from hf_judge.modeling.engines import decode
from hf_judge.rules.combine import heads_of
from hf_judge.speculators.auto import shared_draft
from hf_judge.speculators.model import Eagle3DraftModel
from hf_judge.upstream.candidates import DraftingOptions
from hf_judge.upstream.generation import Call
from hf_judge.upstream.modules import shared_view
from hf_judge.upstream.private_names import causal_lm_class, let_pipelines_take
from hf_judge.upstream.versions import warn_if_untested
from hf_judge.verify.decide import StrictVerifier
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import CandidateVerifier

_DRAFTING_OPTIONS = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
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
            value = self.resolve_judge(value)  # a bare head would become a submodule of the model
        super().__setattr__(name, value)

    @torch.no_grad()
    def generate(self, *args, judge=None, judge_threshold: float | None = None, judge_engine: str = "auto", **kwargs):
        """Generate as `GenerationMixin.generate` does, accepting drafted tokens that the judge finds acceptable.

        Args:
            *args, **kwargs: as upstream. `assistant_model` may also be an EAGLE-3 draft ([`AutoDraftModel`]), or its
                repository or directory; without a judge such a draft is verified strictly. With a judge, something must
                draft: `assistant_model=`,
                `prompt_lookup_num_tokens=`, `assistant_early_exit=`, ... `num_assistant_tokens`,
                `num_assistant_tokens_schedule` and `assistant_confidence_threshold` given here count for this call.
            judge (`str`, `os.PathLike`, [`JudgeHead`], [`CandidateVerifier`] or `False`, *optional*): the judge's
                repository on the Hub or its directory, the head, or any acceptance rule. None: the model's own judge if
                it has one (`default_judge`, else the active JUDGE adapter), else upstream's path. False: upstream's
                path.
            judge_threshold (`float`, *optional*): between 0 (every token is accepted) and 1 (none is rescued); default:
                the head's own. Accuracy need not rise with it: see docs/train-a-judge.md, "Calibrate".
            judge_engine (`str`): `"ragged"`: the engine for batches, with its own drafting; `"upstream"`: upstream's
                caches and candidate sources, one prompt; `"auto"`: the first where it can serve the call. The ragged
                engine compiles its forwards with `compile_config=` (on accelerators also with
                `cache_implementation="static"`), and serves `num_assistant_tokens_schedule="adaptive"`.

        Returns:
            As upstream: ids, or with `return_dict_in_generate=True` a [`JudgeDecoderOnlyOutput`].

        Raises:
            TypeError: `judge` is of another type, a stopping criterion is none.
            ValueError: the judge does not fit this model, or the call asks for what a judge cannot serve.
        """
        refusals.check_kinds(kwargs.get("stopping_criteria"))
        verifier = self.resolve_judge(judge, judge_threshold)
        draft = kwargs.get("assistant_model")
        if isinstance(draft, (str, os.PathLike)):
            draft = kwargs["assistant_model"] = shared_draft(draft, self)
        if isinstance(draft, Eagle3DraftModel):
            draft.check_target(self)
            verifier = StrictVerifier() if verifier is None else verifier  # upstream cannot run such a draft
        if verifier is None:
            return super().generate(*args, **kwargs)
        refusals.check_engine(judge_engine)
        call = Call(self, super().generate, args, kwargs)
        settings = call.settings()
        if judge is None and not call.drafts(settings):
            return super().generate(*args, **kwargs)  # the model's own judge has nothing to do
        refusals.check_call(call, settings)
        if isinstance(verifier, JudgeCandidateVerifier) and isinstance(call.assistant_model, PreTrainedModel):
            check_draft(verifier.head, call.assistant_model)
        warn_if_untested()
        options = DraftingOptions(**{name: call.given(name) for name in _DRAFTING_OPTIONS})
        return call.run(lambda prepared: decode(prepared, verifier, options, judge_engine), settings)

    def resolve_judge(self, judge, threshold: float | None = None) -> CandidateVerifier | None:
        """Return the acceptance rule that `generate(judge=judge, judge_threshold=threshold)` uses.

        None stands for upstream's path.

        Raises:
            TypeError: `judge` is of a type that `generate` does not take.
            ValueError: the judge does not fit this model, or a threshold is given without a head.
        """
        if judge is None:
            judge = self.default_judge if self.default_judge is not None else self.active_judge_head()
        refusals.check_rule(judge, threshold)
        if judge is None or judge is False:
            return None
        if isinstance(judge, (str, os.PathLike)):
            judge = shared_head(judge)
        if isinstance(judge, JudgeHead):
            judge = JudgeCandidateVerifier(judge, threshold)
        elif threshold is not None:
            judge = judge.with_threshold(threshold)
        for head in heads_of(judge):
            check_fit(head, self)
        return judge

    def active_judge_head(self) -> JudgeHead | None:
        """Return the head of the active JUDGE adapter; None: no such adapter, or adapters are disabled.

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
        set_default_judge(model, judge, kwargs)
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
            ValueError, TypeError: the adapter holds anything but one judge head.
            OSError: the adapter cannot be found or read.
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
        # pickle finds a class made at run time through the upstream class that it extends, a user's own by its name
        upstream_class = _upstream_class(type(self))
        found_by = upstream_class if type(self) is judge_class(upstream_class) else type(self)
        return _rebuild, (found_by,), self.__dict__


class JudgeLlamaForCausalLM(JudgeGenerationMixin, LlamaForCausalLM):
    """`LlamaForCausalLM` with ``generate(..., judge=...)``."""

    __module__ = "hf_judge.modeling"  # where pickles look for it


@functools.cache
def judge_class(upstream_class: type) -> type:
    """Return `Judge<Arch>` for a causal LM class of transformers; the same class every time.

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
    """Return `Judge<Arch>ForCausalLM` for any architecture of transformers: pickle looks for classes here."""
    found = causal_lm_class(name.removeprefix("Judge")) if name.startswith("Judge") else None
    if found is not None:
        return judge_class(found)
    raise AttributeError(f"module 'hf_judge.modeling' has no attribute {name!r}")


def _upstream_class(cls: type) -> type:
    # FSDP2's fully_shard puts a class of its own before the model's
    bases = (base for base in cls.__mro__ if issubclass(base, PreTrainedModel))
    return next(base for base in bases if not issubclass(base, JudgeGenerationMixin))


def _rebuild(found_by: type) -> PreTrainedModel:
    return object.__new__(judge_class(found_by))
