"""Judge Decoding (arXiv 2501.19309) as a drop-in extension of Hugging Face ``generate()``."""

import importlib as _importlib
import sys as _sys

import hf_judge.moved as _moved

__version__ = "0.2.0.dev0"

__all__ = [  # noqa: F405
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

_moved.install()

# The command hf-judge imports torch and transformers once its arguments are right: see docs/architecture.md.
if _sys.argv[:1] and _sys.argv[0].replace("\\", "/").rpartition("/")[2] in ("hf-judge", "hf-judge.exe"):

    def __getattr__(name: str):
        if name in __all__:
            return getattr(_importlib.import_module("hf_judge.integrations.public"), name)
        raise AttributeError(f"module 'hf_judge' has no attribute {name!r}")
else:
    from hf_judge.integrations.public import *  # noqa: F403
