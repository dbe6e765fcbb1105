"""Gathers the public names of hf_judge and registers the JUDGE method with PEFT; `import hf_judge` imports this."""

import hf_judge.integrations.peft_method as peft_method
from hf_judge.decoding.loop import JudgeDecoderOnlyOutput, VerdictStreamer
from hf_judge.head.config import JudgeConfig
from hf_judge.head.judge_head import JudgeHead
from hf_judge.modeling.classes import AutoJudgeModelForCausalLM, judged
from hf_judge.modeling.mixin import JudgeGenerationMixin, JudgeLlamaForCausalLM
from hf_judge.verify.decide import StrictVerifier
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import CandidateVerifier
from hf_judge.verify.stats import JudgeStats, VerdictCode

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

peft_method.register()
