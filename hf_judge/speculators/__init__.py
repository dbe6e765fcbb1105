"""Drafts that read the target's own hidden states: EAGLE-3 heads (arXiv 2503.01840)."""

from hf_judge.speculators.auto import AutoDraftModel
from hf_judge.speculators.model import Eagle3DraftModel

__all__ = ["AutoDraftModel", "Eagle3DraftModel"]
