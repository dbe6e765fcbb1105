"""Holds the Judge classes: transformers' causal language models with ``generate(..., judge=...)``."""

from hf_judge.modeling.classes import AutoJudgeModelForCausalLM, become_judge, judged
from hf_judge.modeling.mixin import JudgeGenerationMixin, JudgeLlamaForCausalLM, judge_class
from hf_judge.modeling.mixin import __getattr__ as __getattr__  # pickle looks for `Judge<Arch>ForCausalLM` here

__all__ = [
    "AutoJudgeModelForCausalLM",
    "JudgeGenerationMixin",
    "JudgeLlamaForCausalLM",
    "become_judge",
    "judge_class",
    "judged",
]
