"""Judge Decoding (arXiv 2501.19309) as a drop-in extension of Hugging Face ``generate()``."""

import hf_judge.integrations.peft_method as _peft_method
import hf_judge.moved as _moved
from hf_judge.decoding.loop import JudgeDecoderOnlyOutput, VerdictStreamer
from hf_judge.head.config import JudgeConfig
from hf_judge.head.judge_head import JudgeHead
from hf_judge.modeling.classes import AutoJudgeModelForCausalLM, judged
from hf_judge.modeling.mixin import JudgeGenerationMixin, JudgeLlamaForCausalLM
from hf_judge.verify.decide import StrictVerifier
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import CandidateVerifier
from hf_judge.verify.stats import JudgeStats, VerdictCode

__version__ = "0.2.0.dev0"

__all__ = [
    "AutoJudgeModelForCausalLM",
    "CandidateVerifier",
    "JudgeCandidateVerifier",
    "JudgeConfig",
    "JudgeDecoderOnlyOutput",
    "JudgeGenerationMixin",
    "JudgeHead",
    "JudgeLlamaForCausalLM",
    "JudgeStats",
    "StrictVerifier",
    "VerdictCode",
    "VerdictStreamer",
    "judged",
]

_moved.install()
_peft_method.register()
