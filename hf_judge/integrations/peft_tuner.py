"""Define JUDGE as a method of PEFT: heads hang on the target as adapters; the active one judges ``generate()``.

Nothing of the target is replaced or wrapped, so its logits stay the same to the bit. The head is a child of the target
itself and not of PEFT's tuner, because transformers' `load_adapter` drops the tuner. This module imports peft.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_judge.head.compatibility import check_fit
from hf_judge.head.config import JudgeConfig
from hf_judge.head.files import HEADS_NAME, LAYER_NAME, check_finite
from hf_judge.head.judge_head import JudgeHead
from hf_judge.modeling.classes import become_judge
from hf_judge.modeling.mixin import JudgeGenerationMixin
from hf_judge.upstream.peft.adapters import SideLayer, SideModel

PREFIX = "judge_"  # PEFT finds adapter tensors by it: HEADS_NAME starts with it, LAYER_NAME must not contain it


class JudgeLayer(SideLayer):
    """Holds the heads that hang on a target, by adapter name.

    Args:
        given_class: the class that the target had before its first head, or None if it was a Judge class already.
    """

    adapter_layer_names = (HEADS_NAME,)

    def __init__(self, given_class: type | None):
        super().__init__()
        self.given_class = given_class
        self.judge_head = nn.ModuleDict()

    def active_head(self) -> JudgeHead | None:
        """Return the active head; None where no head is active, or adapters are disabled.

        Raises:
            ValueError: several heads are active.
        """
        if self.disable_adapters:
            return None
        active = [name for name in self.active_adapters if name in self.judge_head]  # others may be LoRA's
        if len(active) > 1:
            raise ValueError(f"several judge heads are active ({', '.join(active)}): set_adapter(one of them)")
        return self.judge_head[active[0]] if active else None

    def leave_if_empty(self, model: PreTrainedModel) -> None:
        """Restore a target that has no heads any more."""
        if len(self.judge_head) == 0:
            delattr(model, LAYER_NAME)
            if self.given_class is not None:
                model.__class__ = self.given_class


class JudgeModel(SideModel):
    """Wraps a target with heads for PEFT, which makes it in `get_peft_model` and the like."""

    prefix = PREFIX
    tuner_layer_cls = JudgeLayer

    def inject_adapter(
        self,
        model: PreTrainedModel,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict | None = None,
        **kwargs,
    ) -> None:
        """Hang a head on the target and turn its class into its Judge class.

        Raises:
            ValueError: the head does not fit the target, or the target cannot be judged.
            TypeError: the target is no transformers model that generates.
        """
        config = self.peft_config[adapter_name]
        self.check_config(config)
        if not isinstance(config, JudgeConfig):
            raise TypeError(f"a judge head needs a JudgeConfig, got {type(config).__name__}")
        given_class = None if isinstance(model, JudgeGenerationMixin) else type(model)
        become_judge(model)  # refuses what cannot be judged before anything else is looked at
        try:
            head = self._make_head(model, config, on_meta=low_cpu_mem_usage)
            layer = self._layer(model, given_class)
        except ValueError:
            model.__class__ = given_class or type(model)
            raise
        is_first = len(layer.judge_head) == 0
        layer.judge_head[adapter_name] = head
        if LAYER_NAME not in self.targeted_module_names:
            self.targeted_module_names.append(LAYER_NAME)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        if is_first:
            self.freeze_all_but_adapters(model)
        elif adapter_name not in self.active_adapters:
            head.requires_grad_(False)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete a head; after the last one, the target has its old class again."""
        super().delete_adapter(adapter_name)
        self.model.get_submodule(LAYER_NAME).leave_if_empty(self.model)

    def unload(self) -> PreTrainedModel:
        """Take all heads off the target and return it as it was."""
        layer = dict(self.model.named_children()).get(LAYER_NAME)
        if layer is not None:
            layer.judge_head.clear()
            layer.leave_if_empty(self.model)
        del self.model.peft_config
        return self.model

    @staticmethod
    def _make_head(model: PreTrainedModel, config: JudgeConfig, *, on_meta: bool) -> JudgeHead:
        if config.hidden_size is None:
            config.hidden_size = model.config.get_text_config().hidden_size
        head = JudgeHead(config)  # float32 whatever the target is: see JudgeHead.forward
        check_fit(head, model)
        if on_meta:
            return head.to("meta")
        device = model.get_output_embeddings().weight.device
        # peft builds it on meta in a context of its own; an offloaded target has meta weights
        return head if "meta" in (head.weight.device.type, device.type) else head.to(device)

    @staticmethod
    def _layer(model: PreTrainedModel, given_class: type | None) -> JudgeLayer:
        layer = dict(model.named_children()).get(LAYER_NAME)
        if layer is None:
            layer = JudgeLayer(given_class)
            layer.train(model.training)
            model.add_module(LAYER_NAME, layer)
        if not isinstance(layer, JudgeLayer):
            raise ValueError(f"the target has a module of its own called '{LAYER_NAME}': a judge cannot hang there")
        return layer

    @classmethod
    def check_tensors(cls, model: nn.Module, adapter_name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Check once more what `JudgeConfig.from_pretrained` has checked: the file may have changed since.

        Raises:
            ValueError: the tensors are not those of a judge head.
        """
        expected = {key: p for key, p in model.state_dict().items() if f"{HEADS_NAME}.{adapter_name}." in key}
        if tensors.keys() != expected.keys():
            wrong = sorted(tensors.keys() ^ expected.keys())
            raise ValueError(f"not a judge head: tensors missing or not allowed: {[key[:120] for key in wrong[:5]]}")
        for key, value in tensors.items():
            if value.shape != expected[key].shape:
                raise ValueError(f"not a judge head: tensor '{key}' has shape {tuple(value.shape)}")
        check_finite(tensors, "the judge adapter")
