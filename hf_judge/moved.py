"""Keeps old paths of modules that moved into packages: they work for one release, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings

MOVED = {
    "hf_judge.autojudge": "hf_judge.integrations.autojudge",
    "hf_judge.calibration": "hf_judge.training.calibration",
    "hf_judge.cards": "hf_judge.head.repository.card",
    "hf_judge.checkers": "hf_judge.checking.checkers",
    "hf_judge.config": "hf_judge.head.config",
    "hf_judge.data": "hf_judge.labelling.responses",
    "hf_judge.draft_labels": "hf_judge.labelling.drafts",
    "hf_judge.evaluation.tasks": "hf_judge.tasks.load",
    "hf_judge.features": "hf_judge.training.extraction",
    "hf_judge.head.card": "hf_judge.head.repository.card",
    "hf_judge.head.publish": "hf_judge.head.repository.publish",
    "hf_judge.metrics": "hf_judge.training.metrics",
    "hf_judge.mining": "hf_judge.labelling.swaps",
    "hf_judge.publish": "hf_judge.head.repository.publish",
    "hf_judge.rules.ensemble": "hf_judge.rules.both.ensemble",
    "hf_judge.rules.fly": "hf_judge.rules.target.fly",
    "hf_judge.rules.kl": "hf_judge.rules.both.kl",
    "hf_judge.rules.thresholds": "hf_judge.rules.target.thresholds",
    "hf_judge.rules.top_k": "hf_judge.rules.target.top_k",
    "hf_judge.rules.typical": "hf_judge.rules.target.typical",
    "hf_judge.stats": "hf_judge.verify.stats",
}


class _OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module at its old path. What is imported is the module at the new path itself, not a copy."""

    def find_spec(self, fullname: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Python makes an empty module, which `exec_module` replaces."""

    def exec_module(self, module: types.ModuleType) -> None:
        old, new = module.__name__, MOVED[module.__name__]
        # 2 is the caller: Python leaves out the frames of its own import system
        text = f"{old} has moved: import {new} (the old path will be removed in 0.3)"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)  # the import system takes the module that it finds here


_FINDER = _OldPaths()


def install() -> None:
    """Make the old paths importable. The finder is the last in `sys.meta_path`, so it costs other imports nothing."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
