"""Names of the rule in one place, until every import has its new module."""

from hf_judge.verify.decide import StrictVerifier, decide
from hf_judge.verify.judge import JudgeCandidateVerifier, head_features, reads_draft_logits
from hf_judge.verify.round import Candidates, CandidateVerifier, TargetOutputs, Verdict
from hf_judge.verify.strict import StrictChoice, next_token, strict_choice

Rows = TargetOutputs
__all__ = [
    "Candidates",
    "CandidateVerifier",
    "TargetOutputs",
    "Verdict",
    "StrictChoice",
    "StrictVerifier",
    "decide",
    "next_token",
    "strict_choice",
    "JudgeCandidateVerifier",
    "head_features",
    "reads_draft_logits",
    "Rows",
]
