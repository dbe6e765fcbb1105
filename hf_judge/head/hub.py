"""Fetch files of a repository on the Hub, all from one commit, and say in plain words what went wrong.

Exactly the named files are fetched, and none is run.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the HTTP library's base class, whichever that is: httpx up to huggingface_hub 1.x, then httpx2
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from hf_judge.files.durable import write_together

logger = logging.getLogger(__name__)

_COMMIT = re.compile("[0-9a-f]{40}")
# what is looked for, and what it is made of, in errors
HEAD = "judge head: a head is the two files adapter_config.json and adapter_model.safetensors"


class Located(NamedTuple):
    """Says where the files of a repository or directory lie."""

    directory: Path  # holds the files
    commit: str | None  # 40 hex digits; None: a local directory


def is_hub_id(name: str | os.PathLike) -> bool:
    """Return whether `name` can only mean a repository: `user/repo` or `repo`, and no directory has that name."""
    if not isinstance(name, str) or os.path.isdir(name) or name.count("/") > 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def public_name(name: str) -> str:
    """Return the name that others may read of a model: its Hub id, or of a path on this machine the last part."""
    return name if is_hub_id(name) else os.path.basename(os.path.abspath(name.replace("\\", "/"))) or "model"


def locate(
    pretrained_model_name_or_path: str | os.PathLike,
    filenames: tuple[str, ...],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    subfolder: str | None = None,
    kind: str = HEAD,
) -> Located:
    """Find files in a directory, or fetch them from a repository, all at one commit.

    A branch or tag is resolved once, and its commit is noted in the cache only when every file is there: an interrupted
    call, or a commit that lands in between, leaves no mixture behind. Without a connection the cached copy serves.

    Args:
        pretrained_model_name_or_path: a directory, or a repository id.
        filenames: names of the files to fetch from a repository; a directory is not looked into.
        revision, cache_dir, force_download, local_files_only, token, subfolder: arguments of
            `huggingface_hub.hf_hub_download`.
        kind: what is looked for, and what it is made of, in words.

    Raises:
        OSError: a file cannot be fetched; the message says why and what to do.
        ValueError: the name is neither a directory nor a repository id, or the subfolder leaves the repository.
    """
    folder = _checked_folder("subfolder", subfolder)
    # transformers passes a ResolvedRevision, a str that holds a commit too
    revision = None if revision is None else str(revision)
    _checked_folder("revision", revision)  # it names a file in the cache
    if os.path.isdir(pretrained_model_name_or_path):
        return Located(Path(pretrained_model_name_or_path) / folder, None)
    repo_id = os.fspath(pretrained_model_name_or_path)
    if isinstance(pretrained_model_name_or_path, os.PathLike) or not is_hub_id(repo_id):
        raise ValueError(
            f"no {kind.partition(':')[0]} at '{repo_id:.200}': the directory does not exist, and it is no repository "
            "id (user/repo)"
        )
    where = f"'{repo_id}'" + (f" at revision '{revision}'" if revision else "")
    options = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only or constants.HF_HUB_OFFLINE}
    try:
        commit, online = _resolve(repo_id, revision, **options)
        paths = [
            hf_hub_download(
                repo_id,
                str(folder / name),
                revision=commit,
                force_download=force_download and online,
                **options | {"local_files_only": not online},
            )
            for name in filenames
        ]
    except (HTTPError, OSError, EntryNotFoundError) as error:
        raise explained(error, where, token=token, offline=options["local_files_only"], kind=kind) from error
    if online:
        _remember(repo_id, revision, commit, cache_dir)
    return Located(Path(paths[0]).parent, commit)


def holds(
    repo_id: str,
    filename: str,
    *,
    revision: str,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> bool:
    """Fetch a file if the commit has it, and return whether it is there; False where the Hub cannot be reached.

    Args:
        repo_id: the repository.
        filename: the file.
        revision: the commit.
        cache_dir, token, local_files_only: arguments of `huggingface_hub.hf_hub_download`.
    """
    offline = local_files_only or constants.HF_HUB_OFFLINE
    try:
        hf_hub_download(
            repo_id, filename, revision=revision, cache_dir=cache_dir, token=token, local_files_only=offline
        )
    except (HTTPError, OSError, EntryNotFoundError) as error:
        if not isinstance(error, EntryNotFoundError):
            logger.warning("'%s' could not be searched for %s: %s", repo_id, filename, _first_line(error))
        return False
    return True


def cached_commit(repo_id: str, revision: str | None, cache_dir: str | os.PathLike | None) -> str | None:
    """Return the commit of a branch or tag that the cache noted last; None: there is none."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return _reference(repo_id, revision, cache_dir).read_text().strip()
    except OSError:
        return None


def explained(
    error: Exception, where: str, *, token: str | bool | None = None, offline: bool = False, kind: str = HEAD
) -> OSError:
    """Return an error that says what a failed call to the Hub means and what to do about it.

    Args:
        error: error of huggingface_hub.
        where: the repository, in words.
        token: token that the user passed.
        offline: whether the user switched the network off.
        kind: what was looked for, and what it is made of, in words.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    has_token = isinstance(token, str) or (token is not False and get_token() is not None)
    if isinstance(error, GatedRepoError):
        who = "your account is not on its list" if has_token else "you are not logged in"
        text = (
            f"{where} is gated and {who}: ask for access on its page on the Hub, then log in with `hf auth login` or "
            "pass token="
        )
    elif isinstance(error, RepositoryNotFoundError) and has_token:
        text = (
            f"{where} was not found, or it is private and your token may not read it: check the name, and that the "
            "token belongs to an account with access"
        )
    elif isinstance(error, RepositoryNotFoundError):
        text = (
            f"{where} was not found, neither as a directory nor on the Hub: check the name; if it is private, log in "
            "with `hf auth login` or pass token="
        )
    elif isinstance(error, RevisionNotFoundError):
        text = f"{where} was not found: the repository exists, but has no such branch, tag or commit"
    elif isinstance(error, LocalEntryNotFoundError) and offline:
        text = (
            f"{where} is not in the cache and the network is switched off (local_files_only or HF_HUB_OFFLINE): load "
            "it once with the network on, or pass a directory"
        )
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        text = (
            f"{where} holds no {kind.partition(': ')[0]}: a file is missing ({_first_line(error)}). "
            f"{kind.partition(': ')[2].capitalize()}; pickles (*.bin) are not read. If they lie in a folder of the "
            "repository, pass subfolder="
        )
    elif status == 401:
        text = f"{where} could not be read: the Hub does not accept your token. Log in again with `hf auth login`"
    elif status == 403:
        text = f"your token is not allowed to do this with {where}: it needs write access to that namespace"
    elif status is not None and status >= 500:
        text = f"{where} could not be reached: the Hub answered with an error ({status}). Try again later"
    else:
        text = (
            f"the Hub did not do what was asked of {where} ({_first_line(error)}): check the connection and try again"
        )
    return OSError(text)


def _resolve(repo_id, revision, *, cache_dir, token, local_files_only) -> tuple[str, bool]:
    """Return the commit of a branch or tag, and whether the Hub (True) or the cache (False) gave it."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision, not local_files_only
    if local_files_only:
        return _remembered(repo_id, revision, cache_dir), False
    try:
        return HfApi().model_info(repo_id, revision=revision, token=token).sha, True
    except (HTTPError, ConnectionError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        try:
            commit = _remembered(repo_id, revision, cache_dir)
        except LocalEntryNotFoundError:
            raise error from None
        logger.warning("the Hub could not be asked about '%s' (%s): using the cached copy", repo_id, _first_line(error))
        return commit, False


def _reference(repo_id: str, revision: str | None, cache_dir) -> Path:
    # the cache's documented layout: refs/<branch or tag> holds a commit
    folder = Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    return folder / "refs" / (revision or constants.DEFAULT_REVISION)


def _remembered(repo_id: str, revision: str | None, cache_dir) -> str:
    commit = cached_commit(repo_id, revision, cache_dir)
    if commit is None:
        raise LocalEntryNotFoundError(f"'{repo_id}' is not in the cache")
    return commit


def _remember(repo_id: str, revision: str | None, commit: str, cache_dir) -> None:
    if revision == commit:
        return
    path = _reference(repo_id, revision, cache_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_together({path: commit.encode()})
    except OSError as error:  # a cache that others own may be read-only: only offline use needs the entry
        logger.info("%s could not be written: %s", path, error)


def _checked_folder(name: str, value: str | None) -> PurePosixPath:
    folder = PurePosixPath(value or "")
    if folder.is_absolute() or ".." in folder.parts or any(c in str(folder) for c in "\\:\0"):
        raise ValueError(f"{name} must be a relative path without '..', got {value!r:.80}")
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
