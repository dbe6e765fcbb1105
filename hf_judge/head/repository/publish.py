"""Publish a judge head: its two files, a card, and a `custom_generate/` entry for transformers, in one commit.

Nothing leaves this machine that the strict reader would refuse or that looks private.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HTTPError

from hf_judge.head.adapter import Adapter, read_adapter, write_adapter
from hf_judge.head.config import JudgeConfig
from hf_judge.head.files import CONFIG_NAME, WEIGHTS_NAME
from hf_judge.head.hub import explained, is_hub_id, public_name
from hf_judge.head.repository.card import head_card

logger = logging.getLogger(__name__)

# The requirements of custom_generate/, which holds no copy of this package: a copy would stop working with the next
# release of transformers, while the package is kept up to date, and users would have far more code to read and trust.
REQUIREMENTS = "hf-judge\n"
MAX_EXAMPLE = 2000  # characters of an example prompt
_PRIVATE = {
    "a token": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
        r"|xox[a-z]-[\w-]{10,}|AKIA[0-9A-Z]{16})"
    ),
    "a local path": re.compile(
        r"(?:(?<![\w.:/<-])(?:~|/[\w.-]+)/[\w.-]+[\w./-]*)|(?:\b[A-Za-z]:\\+\w[^\s\"]*)|(?:\bfile://\S+)"
    ),
    "an address of a machine": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])|\blocalhost\b"),
}


def publish(
    adapter: Adapter,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    base_unknown: bool = False,
) -> CommitInfo:
    """Create the repository where needed and commit everything at once.

    The base model's commit is filled in where the config lacks it. A card that stands in the repository is replaced.

    Args:
        adapter: the head; its config must name the base model by its Hub id.
        repo_id: repository, as `user/repo`.
        commit_message: message of the commit; default: "Publish a judge head".
        private: whether a new repository is private.
        token: Hub token, as in `huggingface_hub.HfApi`.
        revision: branch, made when missing; default: main.
        create_pr: whether to open a pull request instead of writing to the branch.
        base_unknown: whether the base model is local or private; the card then says that its commit is unknown.

    Raises:
        ValueError: the head would not pass strict loading, names no base model on the Hub, or holds something private.
        OSError: the Hub refused or could not be reached; the repository is then as it was.
    """
    repo_id, api = checked_repo_id(repo_id), HfApi(token=token)
    own = adapter.config
    config = without_base_commit(own) if base_unknown else with_base_commit(own, api, token=token)
    with tempfile.TemporaryDirectory() as folder:
        write_repository(folder, adapter._replace(config=config), repo_id, base_unknown=base_unknown)
        try:
            full_name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(full_name, branch=revision, exist_ok=True)
            return api.upload_folder(
                repo_id=full_name,
                folder_path=folder,
                commit_message=commit_message or "Publish a judge head",
                revision=revision,
                create_pr=create_pr,
                delete_patterns="custom_generate/*",  # modules that an earlier version copied
            )
        except (HTTPError, OSError, RuntimeError) as error:  # the client raises RuntimeError for a failed LFS upload
            raise explained(error, f"'{repo_id}'", token=token) from error


def checked_repo_id(repo_id: str) -> str:
    """Return the name of a repository.

    Raises:
        ValueError: the name is none.
    """
    if not is_hub_id(repo_id) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(repo_id)):
        raise ValueError(f"repo_id must be user/repo, got {repo_id!r:.120}")
    return repo_id


def with_base_commit(config: JudgeConfig, api: HfApi, *, token: str | bool | None = None) -> JudgeConfig:
    """Return the config with the base model's commit in `revision`.

    Raises:
        ValueError: the base model is not named, or named by a path.
        OSError: the Hub does not return its commit.
    """
    base = config.base_model_name_or_path
    if is_base_unknown(config):
        raise ValueError(
            f"base_model_name_or_path must be the Hub id of the target the head was trained on, got {base!r:.200}: "
            "set head.config.base_model_name_or_path (--base; a path on this machine helps nobody else), or pass "
            "base_unknown=True (--base-unknown) if the target is not on the Hub"
        )
    if config.revision is not None and re.fullmatch("[0-9a-f]{40}", config.revision):
        return config
    try:
        commit = api.model_info(base, revision=config.revision).sha
    except (HTTPError, OSError) as error:
        why = explained(error, f"'{base}'", token=token)
        raise OSError(
            f"the commit of the base model could not be found: {why}. Or set head.config.revision to the commit that "
            "the head was trained on, or pass base_unknown=True (--base-unknown) if the target is private"
        ) from error
    return dataclasses.replace(config, revision=commit)


def is_base_unknown(config: JudgeConfig) -> bool:
    """Tell whether a config names its base model by nothing that the Hub could know."""
    return not is_hub_id(config.base_model_name_or_path or "")


def without_base_commit(config: JudgeConfig) -> JudgeConfig:
    """Return the config of a head whose base model others cannot find: of a path, the folder's name alone.

    Raises:
        ValueError: the base model is not named at all.
    """
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(
            "base_model_name_or_path is not set: name the target that the head was trained on (--base NAME), also "
            "where it is not on the Hub"
        )
    name = public_name(base)
    logger.warning(
        "the base model '%s' is published as unknown: nobody can check that a target is the head's own%s",
        name,
        ", but by its fingerprint" if config.fingerprint else ", and the head has no fingerprint of its weights",
    )
    return dataclasses.replace(config, base_model_name_or_path=name, revision=None)


def write_repository(folder: str | os.PathLike, adapter: Adapter, repo_id: str, *, base_unknown: bool = False) -> None:
    """Write everything that a judge head's repository holds, and check it.

    Args:
        folder: the folder to fill.
        adapter: the head.
        repo_id: the name that the card's examples use.
        base_unknown: argument of [`hf_judge.head.repository.card.head_card`].

    Raises:
        ValueError: the files do not pass strict loading, or hold something private.
        TypeError: a field of the config has the wrong type.
    """
    folder = Path(folder)
    draft = adapter.config.draft_name_or_path
    if draft is not None:
        config = dataclasses.replace(adapter.config, draft_name_or_path=public_name(draft))
        adapter = adapter._replace(config=config)
    write_adapter(folder, *adapter)
    read_adapter(folder)
    card = head_card(adapter.config, repo_id, base_unknown=base_unknown)
    (folder / "README.md").write_text(str(card), encoding="utf-8")
    for name in (CONFIG_NAME, "README.md"):
        refuse_private((folder / name).read_text(encoding="utf-8"), name)
    code = folder / "custom_generate"
    code.mkdir(exist_ok=True)
    entry = files("hf_judge.hub_cards").joinpath("generate.py").read_text(encoding="utf-8")
    (code / "generate.py").write_text(entry, encoding="utf-8")
    (code / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    data = base64.b64encode((folder / WEIGHTS_NAME).read_bytes()).decode()
    text = (folder / CONFIG_NAME).read_text(encoding="utf-8")
    (code / "head_data.py").write_text(
        '"""The two files of the judge head, as this commit holds them beside this folder."""\n\n'
        f"CONFIG = {ascii(text)}\nWEIGHTS = {data!r}\n",
        encoding="utf-8",
    )


def is_private(text: str) -> bool:
    """Tell whether [`refuse_private`] refuses a text."""
    try:
        refuse_private(text, "")
    except ValueError:
        return True
    return False


def example_of(prompts: Iterable[str | list[dict]]) -> str | list[dict] | None:
    """Return the first prompt that is short and names no token, path or machine; None: there is none."""
    for prompt in prompts:
        texts = [prompt] if isinstance(prompt, str) else [str(message.get("content")) for message in prompt]
        if sum(map(len, texts)) <= MAX_EXAMPLE and not any(map(is_private, texts)):
            return prompt
    return None


def refuse_private(text: str, source: str) -> None:
    """Refuse text that names a token, a path or a machine.

    Raises:
        ValueError: it does; the message shows what was found, of a token only the first characters.
    """
    for what, pattern in _PRIVATE.items():
        found = pattern.search(text)
        if found:
            shown = found.group()[:6] + "..." if what == "a token" else found.group()[:120]
            raise ValueError(f"{source} would publish {what} ({shown}): remove it from the head's config first")
    host = socket.gethostname()
    if len(host) > 3 and re.search(rf"\b{re.escape(host)}\b", text):
        raise ValueError(f"{source} would publish the name of this machine ({host}): remove it from the head's config")
