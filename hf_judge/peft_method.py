"""Registers JUDGE with PEFT, so that PEFT and transformers load judge heads like any adapter.

Runs when hf_judge is imported; harmless without peft, or with one outside the supported range.
"""

from __future__ import annotations

import logging

from hf_judge.config import PEFT_TYPE, PEFT_TYPES, JudgeConfig, peft_problem

logger = logging.getLogger(__name__)


def register() -> None:
    """Make PEFT know JUDGE, once."""
    if PEFT_TYPE in PEFT_TYPES:
        return
    problem = peft_problem()
    if problem is not None:
        # without peft nobody misses it; with another version PEFT will say KeyError: 'JUDGE' and no more
        logger.log(logging.WARNING if PEFT_TYPES else logging.DEBUG, "PEFT does not know judge heads: %s", problem)
        return
    from peft import PeftType
    from peft.utils import register_peft_method

    from hf_judge.peft_tuner import PREFIX, JudgeModel

    # register_peft_method (its only way in) wants a member of this enum. The tables behind it accept any string, but
    # peft 0.20 also asks the enum when it saves.
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_ = member._value_ = PEFT_TYPE
    member._sort_order_ = len(PeftType._member_names_)
    member.__objclass__ = PeftType
    type.__setattr__(PeftType, PEFT_TYPE, member)
    PeftType._member_names_.append(PEFT_TYPE)
    PeftType._member_map_[PEFT_TYPE] = member
    PeftType._value2member_map_[PEFT_TYPE] = member
    hashable = vars(PeftType).get("_hashable_values_")
    if isinstance(hashable, list):  # Python 3.13, and late 3.12: what `"JUDGE" in PeftType` looks at
        hashable.append(PEFT_TYPE)
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=JudgeConfig, model_cls=JudgeModel, prefix=PREFIX)
