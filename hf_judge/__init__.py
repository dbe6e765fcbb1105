"""Judge Decoding (arXiv 2501.19309) as a drop-in extension of Hugging Face ``generate()``."""

import hf_judge.peft_method as _peft_method
from hf_judge.config import JudgeConfig
from hf_judge.decoding import JudgeDecoderOnlyOutput, VerdictStreamer
from hf_judge.head import JudgeHead
from hf_judge.modeling import AutoJudgeModelForCausalLM, JudgeGenerationMixin, JudgeLlamaForCausalLM, judged
from hf_judge.stats import JudgeStats, VerdictCode
from hf_judge.verify import CandidateVerifier, JudgeCandidateVerifier, StrictVerifier

__version__ = "0.1.0.dev0"

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

_peft_method.register()
