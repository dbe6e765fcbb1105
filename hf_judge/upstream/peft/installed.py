"""Says which PEFT is installed, and whether it can serve judge heads. Importing this module does not need peft."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging

from packaging.version import Version

from hf_judge.upstream.versions import PEFT_CEILING, PEFT_FLOOR

logger = logging.getLogger(__name__)


def peft_problem() -> str | None:
    """Return why PEFT cannot serve judge heads here, with the remedy; None where it can, or where it was not tested."""
    remedy = f"pip install 'peft>={PEFT_FLOOR},<{PEFT_CEILING}'. JudgeHead and generate(judge=) work without it"
    installed = installed_peft()
    if installed is None:
        return f"peft is not installed: {remedy}"
    if installed < PEFT_FLOOR:
        return f"peft {installed} is not supported by this hf_judge: {remedy}"
    if not peft_is_tested():
        _warn_untested_peft(installed)
    return None


def installed_peft() -> Version | None:
    """Return the release of peft that is installed; None: there is none."""
    try:
        return Version(Version(importlib.metadata.version("peft")).base_version)
    except importlib.metadata.PackageNotFoundError:
        return None


def peft_is_tested() -> bool:
    """Tell whether the installed peft lies in the tested range."""
    installed = installed_peft()
    return installed is not None and PEFT_FLOOR <= installed < PEFT_CEILING


def asked_for_by_transformers() -> Version:
    """Return the oldest release of peft that transformers' own adapter methods accept."""
    return Version(importlib.import_module("transformers.integrations.peft").MIN_PEFT_VERSION)


def require_peft() -> None:
    """Refuse to go on where PEFT cannot serve judge heads.

    Raises:
        ImportError: peft is missing or older than the supported range.
    """
    problem = peft_problem()
    if problem is not None:
        raise ImportError(problem)


@functools.cache
def _warn_untested_peft(installed: Version) -> None:
    logger.warning(
        "peft %s is installed, hf_judge was tested with %s <= peft < %s: going on. `hf-judge doctor` checks the rest",
        installed,
        PEFT_FLOOR,
        PEFT_CEILING,
    )
