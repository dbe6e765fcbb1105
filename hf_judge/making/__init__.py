"""Makes a judge for a pair of models in one call: labels, fit, threshold, figures and card."""

from hf_judge.making.make import MadeJudge, make
from hf_judge.making.settings import MakeSettings

__all__ = ["MadeJudge", "MakeSettings", "make"]
