"""Write a head's repository to a folder instead of the Hub, with its card as a page to look at."""

from __future__ import annotations

import html
import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, ModelCard
from markdown_it import MarkdownIt

from hf_judge.files.durable import check_writable, write_together
from hf_judge.head.adapter import Adapter
from hf_judge.head.repository.publish import checked_repo_id, with_base_commit, without_base_commit, write_repository

logger = logging.getLogger(__name__)

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2328}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #d0d7de;padding:.3rem .6rem}"
    "pre{background:#f6f8fa;padding:1rem;overflow-x:auto}code{font-size:.9em}"
    "@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}pre{background:#161b22}a{color:#79b8ff}}"
)


class DryRun(NamedTuple):
    """Says what a dry run wrote."""

    repository: Path  # the files that a push would commit
    page: Path  # the card as HTML


def dry_run(
    adapter: Adapter,
    repo_id: str,
    output_dir: str | os.PathLike,
    *,
    base_unknown: bool = False,
    token: str | bool | None = None,
) -> DryRun:
    """Write what a push would commit, and the card as a page. Nothing is sent; the Hub is asked for the base's commit.

    Where the Hub does not tell it, the commit is "unknown" in this run, with a warning.

    Args:
        adapter: the head.
        repo_id: repository of the push, as `user/repo`.
        output_dir: folder that gets a folder with the repository's name, and `card.html`; both are replaced.
        base_unknown, token: arguments of [`hf_judge.head.repository.publish.publish`].

    Raises:
        ValueError, TypeError: a push would refuse the head, for the same reasons.
        OSError: the folder cannot be written to.
    """
    repo_id = checked_repo_id(repo_id)
    check_writable(Path(output_dir) / "card.html")
    if base_unknown:
        config = without_base_commit(adapter.config)
    else:
        try:
            config = with_base_commit(adapter.config, HfApi(token=token), token=token)
        except OSError as error:
            logger.warning("%s; this dry run goes on with an unknown commit, a push would stop here", error)
            config, base_unknown = without_base_commit(adapter.config), True
    output_dir = Path(output_dir)
    repository, staged = (output_dir / (repo_id.rpartition("/")[2] + end) for end in ("", ".part"))
    for folder in (repository, staged):
        if folder.exists() and not (folder / "custom_generate").is_dir() and any(folder.iterdir()):
            raise ValueError(f"'{folder}' holds something else than an earlier dry run: choose another --output-dir")
        shutil.rmtree(folder, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        write_repository(staged, adapter._replace(config=config), repo_id, base_unknown=base_unknown)
        staged.rename(repository)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    page = output_dir / "card.html"
    write_together({page: card_page((repository / "README.md").read_text(encoding="utf-8"), repo_id)})
    return DryRun(repository, page)


def card_page(text: str, repo_id: str) -> str:
    """Return a card as a self-contained HTML page: what the Hub reads about it first, then its text.

    Args:
        text: the README of the repository; HTML in it is shown, not drawn.
        repo_id: the title.
    """
    card = ModelCard(text)
    facts = html.escape(card.data.to_yaml())
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(card.text)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(repo_id)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<details><summary>What the Hub reads (metadata)</summary>"
        f"<pre>{facts}</pre></details>\n{body}</body></html>\n"
    )
