"""Register JUDGE with PEFT, so that PEFT and transformers load judge heads like any adapter.

`import hf_judge` calls `register`, which adds nothing without peft or with an unsupported one.
"""

from __future__ import annotations

import logging

from hf_judge.head.config import PEFT_TYPE, PEFT_TYPES, JudgeConfig
from hf_judge.upstream.peft.installed import peft_problem

logger = logging.getLogger(__name__)


def register() -> None:
    """Add JUDGE to PEFT's methods, once."""
    if PEFT_TYPE in PEFT_TYPES:
        return
    problem = peft_problem()
    if problem is not None:
        # Silent without peft. With an unsupported peft, loading a head fails with KeyError 'JUDGE', so warn.
        logger.log(logging.WARNING if PEFT_TYPES else logging.DEBUG, "PEFT does not know judge heads: %s", problem)
        return
    from hf_judge.integrations.peft_tuner import PREFIX, JudgeModel
    from hf_judge.upstream.peft import adapters

    adapters.register(PEFT_TYPE, JudgeConfig, JudgeModel, PREFIX)
