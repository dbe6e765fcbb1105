"""Says which transformers is installed, which were tested, and what changed between them."""

from __future__ import annotations

import functools
import logging

import transformers
from packaging.version import Version

logger = logging.getLogger(__name__)

# The range of setup.cfg. `make test-latest` passing on a newer release is what moves the ceiling.
FLOOR, CEILING = Version("5.19"), Version("5.25")  # tested: FLOOR <= transformers < CEILING
PEFT_FLOOR, PEFT_CEILING = Version("0.20"), Version("0.22")  # tested: PEFT_FLOOR <= peft < PEFT_CEILING
INSTALLED = Version(transformers.__version__)
_RELEASE = Version(INSTALLED.base_version)  # 5.24.0.dev0 has what 5.24.0 has

# The keyword of a forward, the key in generate()'s model kwargs, and the field of outputs that hold the cache.
CACHE = "cache" if Version("5.24") <= _RELEASE else "past_key_values"

# What an index of `output_hidden_states=[...]` counts: layers up to 5.22; since then also the embeddings, as number 0.
HIDDEN_STATES_COUNT_EMBEDDINGS = Version("5.23") <= _RELEASE

# 5.19 fills a generation config that a pipeline passes on with its defaults; later ones leave None.
PIPELINES_FILL_DEFAULTS = Version("5.20") > _RELEASE

# When a longrope sequence outgrows its first angles, 5.19 drops the cache but reads only the newest tokens again.
LONGROPE_READS_ALL_AGAIN = Version("5.20") <= _RELEASE


def tested_range() -> str:
    """Return the tested versions in words, as warnings and errors name them."""
    newest = f"{CEILING.major}.{CEILING.minor - 1}"
    return f"{FLOOR} to {newest}"


def is_tested() -> bool:
    """Tell whether the installed transformers lies in the tested range."""
    return FLOOR <= _RELEASE < CEILING


@functools.cache
def warn_if_untested() -> None:
    """Warn, once per process, about a transformers outside the tested range."""
    if not is_tested():
        logger.warning(
            "transformers %s is installed, hf_judge was tested with %s: going on. `hf-judge doctor` checks whether "
            "judged generation still gives the right tokens here",
            INSTALLED,
            tested_range(),
        )


def moved(what: str) -> ImportError:
    """Return the error for a part of transformers that is not where it was in the tested versions.

    Args:
        what: the missing part, in words.
    """
    return ImportError(
        f"hf_judge relies on a part of transformers that transformers {INSTALLED} does not have ({what}); tested: "
        f"transformers {tested_range()}. Install one of these, or a newer hf_judge; `hf-judge doctor` shows what works"
    )
