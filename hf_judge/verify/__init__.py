"""The acceptance rule: one round of drafted tokens, what strict verification decides, and what a judge does."""

from hf_judge.verify.rule import (
    Candidates,
    CandidateVerifier,
    JudgeCandidateVerifier,
    Rows,
    StrictChoice,
    StrictVerifier,
    Verdict,
    decide,
    head_features,
    next_token,
    strict_choice,
)
from hf_judge.verify.stats import JudgeStats, VerdictCode

__all__ = [
    "CandidateVerifier",
    "Candidates",
    "JudgeCandidateVerifier",
    "JudgeStats",
    "Rows",
    "StrictChoice",
    "StrictVerifier",
    "Verdict",
    "VerdictCode",
    "decide",
    "head_features",
    "next_token",
    "strict_choice",
]
