"""Writes the card of a finished judge beside its two files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_judge.files.durable import write_together
from hf_judge.head.adapter import read_adapter
from hf_judge.head.repository.card import head_card
from hf_judge.head.repository.publish import is_base_unknown, without_base_commit


def write_card(output: Path, repo_id: str | None = None) -> Path:
    """Write README.md from what the head's config holds, as a push would.

    Args:
        output: folder of the head.
        repo_id: repository that the examples of the card name; None: the folder's name.

    Returns:
        The file.
    """
    config = read_adapter(output).config
    base_unknown = is_base_unknown(config)
    if base_unknown:
        config = without_base_commit(replace(config, base_model_name_or_path=config.base_model_name_or_path or "model"))
    card = head_card(config, repo_id or output.resolve().name, base_unknown=base_unknown)
    write_together({output / "README.md": str(card)})
    return output / "README.md"
