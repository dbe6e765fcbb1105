"""Old module paths that the documentation named: they work for one more release, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# old name below hf_judge -> new name below hf_judge
MOVED = {
    "autojudge": "integrations.autojudge",
    "calibration": "training.calibration",
    "cards": "head.card",
    "checkers": "labelling.checkers",
    "data": "labelling.responses",
    "features": "training.extraction",
    "mining": "labelling.swaps",
    "publish": "head.publish",
}


class MovedFinder(MetaPathFinder):
    """Finds a moved module under its old name: the very same module object."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, _MovedLoader()) if package == "hf_judge" and name in MOVED else None


class _MovedLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = f"hf_judge.{MOVED[spec.name.rpartition('.')[2]]}"
        warnings.warn(
            f"{spec.name} is now {name}: import that; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,  # Python leaves out importlib's own frames
        )
        module = importlib.import_module(name)
        self._spec = module.__spec__  # importlib puts its own in the place of it
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def install() -> None:
    """Let old names be found, once."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
