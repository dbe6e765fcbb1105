"""Apply other people's acceptance rules under the judge's protocol, each as its paper states it, and a control.

Every rule is a pure function over one round and a verifier that holds its settings, for ``generate(judge=...)``. In
formulas, p is the target's distribution, softmax(outputs.scores), q the draft's, and x a drafted token. `decide` guards
all of them: hard constraints, stop tokens, values that are not finite. AutoJudge's rule is `JudgeCandidateVerifier`.
"""

from hf_judge.rules.both.block import BlockVerifier, block_accepts
from hf_judge.rules.both.cactus import CactusVerifier, cactus_distribution
from hf_judge.rules.both.cascades import CascadeVerifier, TokenCascadeVerifier
from hf_judge.rules.both.diversed import DiversedVerifier, diversed_weights
from hf_judge.rules.both.ensemble import EnsembleVerifier, ensemble_accepts, ensemble_tokens
from hf_judge.rules.both.fuzzy import FuzzyVerifier, fuzzy_accepts
from hf_judge.rules.both.kl import KLVerifier, kl_accepts
from hf_judge.rules.both.mentored import MentoredVerifier, mentored_distribution
from hf_judge.rules.combine import CombinedVerifier
from hf_judge.rules.control import RandomVerifier, random_accepts
from hf_judge.rules.target.fly import FlyVerifier, VllmFlyVerifier, fly_accepts, vllm_fly_accepts
from hf_judge.rules.target.mars import MarsVerifier, mars_accepts
from hf_judge.rules.target.thresholds import ThresholdsVerifier, thresholds_accept
from hf_judge.rules.target.top_k import RelaxedVerifier, TopKVerifier, relaxed_accepts, top_k_accepts
from hf_judge.rules.target.typical import TypicalVerifier, typical_accepts
from hf_judge.rules.thinking import ThinkingVerifier

__all__ = [
    "BlockVerifier", "CactusVerifier", "CascadeVerifier", "CombinedVerifier", "DiversedVerifier", "EnsembleVerifier",
    "FlyVerifier", "FuzzyVerifier", "KLVerifier", "MarsVerifier", "MentoredVerifier", "RandomVerifier",
    "RelaxedVerifier", "ThinkingVerifier", "ThresholdsVerifier", "TokenCascadeVerifier", "TopKVerifier",
    "TypicalVerifier", "VllmFlyVerifier", "block_accepts", "cactus_distribution", "diversed_weights",
    "ensemble_accepts", "ensemble_tokens", "fly_accepts", "fuzzy_accepts", "kl_accepts", "mars_accepts",
    "mentored_distribution", "random_accepts", "relaxed_accepts", "thresholds_accept", "top_k_accepts",
    "typical_accepts", "vllm_fly_accepts",
]  # fmt: skip
