"""``generate(judge=)``: the Judge classes."""

from hf_judge.modeling.mixin import (
    AutoJudgeModelForCausalLM,
    JudgeGenerationMixin,
    JudgeLlamaForCausalLM,
    become_judge,
    judge_class,
    judged,
)
from hf_judge.modeling.mixin import __getattr__ as __getattr__  # pickles look for `Judge<Arch>ForCausalLM` here

__all__ = [
    "AutoJudgeModelForCausalLM",
    "JudgeGenerationMixin",
    "JudgeLlamaForCausalLM",
    "become_judge",
    "judge_class",
    "judged",
]
