"""Decides about one round of drafted tokens: strict verification, and the judge."""

from hf_judge.verify.decide import StrictVerifier, decide
from hf_judge.verify.judge import JudgeCandidateVerifier, head_features
from hf_judge.verify.round import Candidates, CandidateVerifier, TargetOutputs, Verdict
from hf_judge.verify.stats import JudgeStats, VerdictCode
from hf_judge.verify.strict import StrictChoice, next_token, strict_choice

Rows = TargetOutputs  # its name in 0.1.0

__all__ = [
    "CandidateVerifier",
    "Candidates",
    "JudgeCandidateVerifier",
    "JudgeStats",
    "Rows",
    "StrictChoice",
    "StrictVerifier",
    "TargetOutputs",
    "Verdict",
    "VerdictCode",
    "decide",
    "head_features",
    "next_token",
    "strict_choice",
]
