"""Loads heads that come with a model: its default judge, saved beside it, and JUDGE adapters."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os

from transformers import PreTrainedModel

from hf_judge.head.adapter import read_adapter
from hf_judge.head.config import HUB_OPTIONS
from hf_judge.head.files import CONFIG_NAME, WEIGHTS_NAME, is_judge_adapter
from hf_judge.head.hub import cached_commit, holds, locate
from hf_judge.head.judge_head import JudgeHead
from hf_judge.upstream.forward import commit_of, remember_commit
from hf_judge.upstream.peft.installed import require_peft
from hf_judge.verify.judge import JudgeCandidateVerifier
from hf_judge.verify.round import CandidateVerifier

logger = logging.getLogger(__name__)

JUDGE_FOLDER = "judge"  # beside a saved model: the head of its default judge


def set_default_judge(model: PreTrainedModel, judge, kwargs: dict) -> None:
    """Give a freshly loaded model its default judge: the caller's, else the one saved beside the model.

    Args:
        kwargs: what the model was loaded with.
    """
    name, commit = model.config.name_or_path, commit_of(model.config)
    if commit is None and not os.path.isdir(name):
        # upstream (5.23) no longer notes the commit, which check_fit compares with that of the head
        commit = cached_commit(name, kwargs.get("revision"), kwargs.get("cache_dir"))
        remember_commit(model.config, commit)
    if judge is None:
        options = {key: kwargs[key] for key in ("cache_dir", "token", "local_files_only") if key in kwargs}
        judge = _saved_head(name, commit, options)
    if judge is not None and judge is not False:
        model.default_judge = model.resolve_judge(judge)


def _saved_head(name: str, commit: str | None, options: dict) -> JudgeHead | None:
    """Return the head in the folder `judge/` beside a model, from the very commit that the model came from."""
    if os.path.isdir(name):
        found = os.path.isfile(os.path.join(name, JUDGE_FOLDER, CONFIG_NAME))
    else:
        found = commit is not None and holds(name, f"{JUDGE_FOLDER}/{CONFIG_NAME}", revision=commit, **options)
    return JudgeHead.from_pretrained(name, revision=commit, subfolder=JUDGE_FOLDER, **options) if found else None


def save_judge(verifier: CandidateVerifier, save_directory: str | os.PathLike) -> None:
    """Save the head of a default judge, with its threshold and window, in the folder `judge/` of a saved model."""
    if not isinstance(verifier, JudgeCandidateVerifier):
        logger.warning("the default judge %r is not a judge head and was not saved", verifier)
        return
    if verifier.rescue_stop_tokens or verifier.max_rescue_fraction is not None:
        logger.warning(
            "of the default judge, the head, its threshold and its window were saved, not its other settings"
        )
    head = copy.copy(verifier.head)
    head.config = dataclasses.replace(head.config, threshold=verifier.threshold, rescue_window=verifier.rescue_window)
    head.save_pretrained(os.path.join(save_directory, JUDGE_FOLDER))


def checked_adapter(name: str | os.PathLike, options: dict) -> str | None:
    """Return the directory with the strictly read files of a JUDGE adapter; None: an adapter of another kind.

    Args:
        name: directory or repository.
        options: the caller's options that say where to find it (revision, subfolder, token, ...).
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
