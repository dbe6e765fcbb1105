"""Makes Judge models: loads any architecture, or converts a model that is already there."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_judge.modeling.default_judge import set_default_judge
from hf_judge.modeling.mixin import JudgeGenerationMixin, judge_class
from hf_judge.modeling.refusals import check_model
from hf_judge.upstream.modules import shared_view


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
        set_default_judge(model, judge, kwargs)
        return loaded


def become_judge(model: PreTrainedModel) -> None:
    """Change the class of this very object to its Judge class.

    Raises:
        TypeError: not a transformers model that generates.
        ValueError: the architecture cannot be judged.
    """
    check_model(model)
    model.__class__ = judge_class(type(model))


def judged(model: torch.nn.Module) -> PreTrainedModel:
    """Return the model as its Judge class: a new object over the same weights; `model` itself is not changed.

    Args:
        model: a decoder-only causal LM of transformers, or a `PeftModel` around one (its adapters stay active).

    Raises:
        TypeError: not such a model, or a compiled wrapper.
        ValueError: the architecture cannot be judged.
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
    check_model(model)
    return shared_view(model, judge_class(type(model)))


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
