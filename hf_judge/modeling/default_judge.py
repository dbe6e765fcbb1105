"""Heads that come with a model: kept beside it when it is saved, and adapters that are checked before it gets them.

Knows nothing about generation.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os

from hf_judge.head.adapter import read_adapter
from hf_judge.head.config import HUB_OPTIONS
from hf_judge.head.files import CONFIG_NAME, WEIGHTS_NAME, is_judge_adapter
from hf_judge.head.hub import holds, locate
from hf_judge.head.judge_head import JudgeHead
from hf_judge.upstream.versions import require_peft
from hf_judge.verify.rule import CandidateVerifier, JudgeCandidateVerifier

logger = logging.getLogger(__name__)

JUDGE_FOLDER = "judge"  # beside a saved model: the head of its default judge


def saved_head(name: str, commit: str | None, options: dict) -> JudgeHead | None:
    """The head in the folder `judge/` beside a model, from the very commit that the model came from."""
    if os.path.isdir(name):
        found = os.path.isfile(os.path.join(name, JUDGE_FOLDER, CONFIG_NAME))
    else:
        found = commit is not None and holds(name, f"{JUDGE_FOLDER}/{CONFIG_NAME}", revision=commit, **options)
    return JudgeHead.from_pretrained(name, revision=commit, subfolder=JUDGE_FOLDER, **options) if found else None


def save_judge(verifier: CandidateVerifier, save_directory: str | os.PathLike) -> None:
    """Put the head of a default judge, with its threshold, into the folder `judge/` of a saved model."""
    if not isinstance(verifier, JudgeCandidateVerifier):
        logger.warning("the default judge %r is not a judge head and was not saved", verifier)
        return
    if verifier.rescue_stop_tokens or verifier.max_rescue_fraction is not None:
        logger.warning("of the default judge, the head and its threshold were saved, not its other settings")
    head = copy.copy(verifier.head)
    head.config = dataclasses.replace(head.config, threshold=verifier.threshold)
    head.save_pretrained(os.path.join(save_directory, JUDGE_FOLDER))


def checked_adapter(name: str | os.PathLike, options: dict) -> str | None:
    """The directory with the strictly read files of a JUDGE adapter; None: an adapter of another kind.

    Args:
        name: directory or repository.
        options: everything the caller said about where to find it.
    """
    options = {key: options[key] for key in (*HUB_OPTIONS, "subfolder") if options.get(key) is not None}
    located = locate(name, (CONFIG_NAME,), **options)
    if not is_judge_adapter(located.directory):
        return None
    require_peft()
    if located.commit is not None:
        located = locate(name, (CONFIG_NAME, WEIGHTS_NAME), **options | {"revision": located.commit})
    read_adapter(located.directory)
    return str(located.directory)
