"""Import the `datasets` package, which is an extra, where something needs it."""

from __future__ import annotations

from types import ModuleType


def import_datasets() -> ModuleType:
    """Return the package.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError("this needs the `datasets` package: pip install 'hf-judge[data]'") from None
    return datasets
