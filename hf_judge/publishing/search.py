"""Find the judge heads on the Hub that were trained for a target, through the Hub's API.

Published heads carry the tag `hf-judge` and the Hub's own tag of an adapter's base model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from hf_judge.head.config import JudgeConfig
from hf_judge.head.files import CONFIG_NAME, read_values
from hf_judge.head.hub import explained, is_hub_id, locate
from hf_judge.head.repository.tables import is_of_both

logger = logging.getLogger(__name__)

TAG = "hf-judge"


@dataclass(frozen=True)
class PublishedHead:
    """Holds what the Hub says about one head."""

    repo_id: str
    commit: str  # 40 hex digits
    changed: str  # day of the last commit, as 2026-01-31
    downloads: int  # of the last 30 days
    threshold: float
    certificate: str | None  # what was certified about the threshold, in one sentence
    auc: float | None  # over the tokens on which the judge decides
    n_acceptable: int | None  # such tokens that the AUC is over
    n_mistaken: int | None
    draft: str | None  # whose tokens were labelled
    quantization: str | None  # of the target that the head was trained on


def find_heads(target: str, *, limit: int = 20, token: str | bool | None = None) -> list[PublishedHead]:
    """Return the heads for a target: those with a certificate first, and of each kind the newest first.

    A repository whose config is no judge head's is left out with a warning.

    Args:
        target: the target's repository, as `user/repo`.
        limit: largest number of heads; the newest are looked at.
        token: Hub token, as in `huggingface_hub.HfApi`.

    Raises:
        ValueError: the target is no repository id.
        OSError: the Hub cannot be reached, or refuses.
    """
    if not is_hub_id(target):
        raise ValueError(
            f"search needs the target's name on the Hub (user/repo), got {target!r:.120}: for a folder, pass the "
            "repository that the model came from"
        )
    tags = [TAG, f"base_model:adapter:{target}"]
    try:
        found = HfApi(token=token).list_models(filter=tags, sort="last_modified", limit=limit, full=True)
        listed = [(info.id, info.sha, info.last_modified, info.downloads or 0) for info in found]
    except (HTTPError, OSError) as error:
        raise explained(error, "the list of models", token=token) from error
    heads = []
    for repo_id, commit, changed, downloads in listed:
        try:
            directory = locate(repo_id, (CONFIG_NAME,), revision=commit, token=token).directory
            config = JudgeConfig.from_values(read_values(directory), f"{repo_id}/{CONFIG_NAME}")
        except (ValueError, TypeError, OSError) as error:
            logger.warning("'%s' is left out: %s", repo_id, error)
            continue
        day = "" if changed is None else changed.strftime("%Y-%m-%d")
        heads.append(_described(config, repo_id, commit, day, downloads))
    return sorted(heads, key=lambda head: (head.certificate is not None, head.changed), reverse=True)


def _described(config: JudgeConfig, repo_id: str, commit: str, changed: str, downloads: int) -> PublishedHead:
    validation = config.provenance.get("validation")
    validation = validation["decided"] if isinstance(validation, dict) and is_of_both(validation) else {}
    return PublishedHead(
        repo_id=repo_id,
        commit=commit,
        changed=changed,
        downloads=downloads,
        threshold=config.threshold,
        certificate=_certificate(config.provenance.get("calibration")),
        auc=validation.get("auc"),
        n_acceptable=validation.get("n_acceptable"),
        n_mistaken=validation.get("n_mistaken"),
        draft=config.draft_name_or_path or config.provenance.get("draft"),
        quantization=config.quantization,
    )


def _certificate(calibration: object) -> str | None:
    """Return the sentence of `hf-judge calibrate`; None: the head was not calibrated by it."""
    found = calibration.values() if isinstance(calibration, dict) else ()
    statements = [one.get("statement") for one in found if isinstance(one, dict)]
    return next((text for text in statements if isinstance(text, str)), None)
