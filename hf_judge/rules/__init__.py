"""Apply other people's acceptance rules under the judge's protocol, each as its paper states it, and a control.

Every rule is a pure function over one round and a verifier that holds its settings, for ``generate(judge=...)``. In
formulas, p is the target's distribution, softmax(outputs.scores), q the draft's, and x a drafted token. `decide` guards
all of them: hard constraints, stop tokens, values that are not finite. AutoJudge's rule is `JudgeCandidateVerifier`.
"""

from hf_judge.rules.control import RandomVerifier, random_accepts
from hf_judge.rules.ensemble import EnsembleVerifier, ensemble_accepts, ensemble_tokens
from hf_judge.rules.fly import FlyVerifier, fly_accepts
from hf_judge.rules.kl import KLVerifier, kl_accepts
from hf_judge.rules.thresholds import ThresholdsVerifier, thresholds_accept
from hf_judge.rules.top_k import RelaxedVerifier, TopKVerifier, relaxed_accepts, top_k_accepts
from hf_judge.rules.typical import TypicalVerifier, typical_accepts

__all__ = [
    "EnsembleVerifier",
    "FlyVerifier",
    "KLVerifier",
    "RandomVerifier",
    "RelaxedVerifier",
    "ThresholdsVerifier",
    "TopKVerifier",
    "TypicalVerifier",
    "ensemble_accepts",
    "ensemble_tokens",
    "fly_accepts",
    "kl_accepts",
    "random_accepts",
    "relaxed_accepts",
    "thresholds_accept",
    "top_k_accepts",
    "typical_accepts",
]
