"""Holds what PEFT requires of a method: registration, and base classes whose private hooks a method overrides.

Read in peft 0.20 and 0.21. Importing this module needs peft.
"""

from __future__ import annotations

import logging

import torch
import transformers.integrations.peft as adapter_methods
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import nn

from hf_judge.upstream.peft.installed import asked_for_by_transformers, installed_peft, peft_is_tested
from hf_judge.upstream.versions import INSTALLED, is_tested

logger = logging.getLogger(__name__)


def register(name: str, config_class: type, model_class: type, prefix: str) -> None:
    """Register a method with PEFT.

    `register_peft_method` is PEFT's only way in, and it needs a member of the enum `PeftType`. The tables that it
    fills accept any string, but peft 0.20 also looks the name up in the enum when it saves.

    Args:
        name: name of the method, in capitals.
        config_class, model_class: its config and its tuner.
        prefix: first part of the names of the method's tensors.
    """
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)
    member.__objclass__ = PeftType
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    hashable = vars(PeftType).get("_hashable_values_")
    if isinstance(hashable, list):  # Python 3.13, and late 3.12: what `"JUDGE" in PeftType` looks at
        hashable.append(name)
    register_peft_method(name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=prefix)


def accept_installed_peft() -> None:
    """Let transformers' own adapter methods (`set_adapter`, `delete_adapter`, ...) work with a tested peft.

    In these methods transformers 5.24.0 requires peft 0.22, which did not exist then (newest: 0.21.2). The methods are
    otherwise those of 5.23, so this function lowers the required version. It is called only when a judge adapter is on
    the model; for other models upstream's refusal stands.
    """
    asked_for = asked_for_by_transformers()
    if is_tested() and peft_is_tested() and installed_peft() < asked_for:
        logger.info(
            "transformers %s asks for peft %s or newer: accepting %s, tested", INSTALLED, asked_for, installed_peft()
        )
        adapter_methods.MIN_PEFT_VERSION = str(installed_peft())


class SideLayer(nn.Module, BaseTunerLayer):
    """A layer of a method that wraps no module of the model, but hangs beside them."""

    other_param_names = ()
    # properties of BaseTunerLayer that look for a wrapped layer: there is none
    weight = None
    bias = None

    def __init__(self):
        super().__init__()
        self._disable_adapters = False
        self._active_adapter = []
        self.merged_adapters = []

    def get_base_layer(self) -> SideLayer:
        return self

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError("this adapter cannot be merged: it changes no weight of the model")

    def unmerge(self) -> None:
        """No-op: this adapter is never merged."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device=None) -> None:
        """No-op: the adapter is created on the right device."""


class SideModel(BaseTuner):
    """PEFT's handle on a model with adapters that hang beside its modules and change none of them."""

    target_module_mapping = {}

    def check_config(self, config: PeftConfig) -> None:
        """Let PEFT refuse a config that does not go with the adapters that are there."""
        accept_installed_peft()
        self._check_new_adapter_config(config)

    def freeze_all_but_adapters(self, model: nn.Module) -> None:
        """Train the adapters alone."""
        self._mark_only_adapters_as_trainable(model)

    @classmethod
    def check_tensors(cls, model: nn.Module, adapter_name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Refuse tensors that are not this method's. Called with what PEFT read from a file, before any reaches the
        model (peft 0.21).

        Args:
            model: the model, with the adapter's own tensors in place.
            adapter_name: name of the adapter.
            tensors: name in the model -> tensor.

        Raises:
            ValueError: a tensor is missing, not allowed, or of another shape.
        """

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        state_dict = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        cls.check_tensors(model, adapter_name, state_dict)
        return state_dict

    def _prepare_adapter_config(self, peft_config, model_config):
        return peft_config

    def _check_merge_allowed(self) -> None:
        raise ValueError("this adapter cannot be merged: it changes no weight of the model. Use unload()")

    def _create_and_replace(self, *args, **kwargs) -> None:
        raise NotImplementedError("this method replaces no module of the model")
