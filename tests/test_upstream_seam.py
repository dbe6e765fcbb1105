"""The seam: what transformers and peft do not promise is touched in `hf_judge/upstream/` alone."""

from __future__ import annotations

import ast
from pathlib import Path

import peft.tuners.tuners_utils
import pytest
import transformers
from transformers import GenerationMixin, PreTrainedModel

import hf_judge

PACKAGE = Path(hf_judge.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(PACKAGE / "upstream"))
LIBRARIES = ("transformers", "peft")
ALLOWED_MODULES = {"transformers", "transformers.utils.logging", "peft"}
OLD_AND_NEW_CACHE_NAMES = {"past_key_values", "cache_params"}
# private by their underscore, public by their documentation
NAMED_TUPLE = {"_replace", "_asdict", "_fields"}
UPSTREAM_CLASSES = (
    GenerationMixin,
    PreTrainedModel,
    transformers.Cache,
    transformers.LogitsProcessor,
    peft.tuners.tuners_utils.BaseTuner,
    peft.tuners.tuners_utils.BaseTunerLayer,
)
ANYWHERE_OURS = {"_decide"}  # of rules/base.py, called by the rules that extend it
PRIVATE_UPSTREAM = {
    name for cls in UPSTREAM_CLASSES for name in dir(cls) if name.startswith("_") and not name.startswith("__")
}


def own_names(tree: ast.AST) -> set[str]:
    """The private names that a file makes itself: functions, classes, and what it assigns to, also on `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            of_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names |= {node.attr} if of_itself else set()
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).rpartition(".")[2])
    return names


def leaks(source: str) -> list[str]:
    """Everything in a file that belongs into the seam."""
    tree = ast.parse(source)
    known, found = own_names(tree) | NAMED_TUPLE | ANYWHERE_OURS, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            library = (node.module or "").partition(".")[0]
            if library in LIBRARIES:
                is_module = node.module == "transformers" and any(alias.name in ("utils",) for alias in node.names)
                if node.module not in ALLOWED_MODULES or is_module:
                    found.append(f"line {node.lineno}: from {node.module} import ...")
                found += [
                    f"line {node.lineno}: private {alias.name}" for alias in node.names if alias.name.startswith("_")
                ]
        elif isinstance(node, ast.Import):
            found += [
                f"line {node.lineno}: import {alias.name}"
                for alias in node.names
                if alias.name.partition(".")[0] in LIBRARIES and alias.name not in ALLOWED_MODULES
            ]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if node.attr not in known or node.attr in PRIVATE_UPSTREAM:
                found.append(f"line {node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Attribute) and node.attr == "__version__":
            if isinstance(node.value, ast.Name) and node.value.id in LIBRARIES:
                found.append(f"line {node.lineno}: the version of {node.value.id}")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in PRIVATE_UPSTREAM:
            found.append(f"line {node.lineno}: def {node.name}")
        elif isinstance(node, ast.keyword) and node.arg in OLD_AND_NEW_CACHE_NAMES:
            found.append(f"line {node.lineno}: {node.arg}=")
        elif isinstance(node, ast.Attribute) and node.attr in OLD_AND_NEW_CACHE_NAMES:
            found.append(f"line {node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Constant) and node.value in OLD_AND_NEW_CACHE_NAMES:
            found.append(f"line {node.lineno}: {node.value!r}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else ""
            if str(name).startswith("_") and not str(name).startswith("__"):
                found.append(f"line {node.lineno}: {node.func.id}(..., {name!r})")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_upstream_is_touched_in_the_seam_alone(path):
    assert leaks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from transformers.cache_utils import Cache", "from transformers.cache_utils"),
        ("from transformers import utils", "from transformers"),
        ("import transformers.generation", "import transformers.generation"),
        ("from peft.utils import register_peft_method", "from peft.utils"),
        ("from transformers import _x", "private _x"),
        ("def f(model):\n    return model._is_stateful", "._is_stateful"),
        ("class A:\n    def f(self):\n        return self._prepare_generation_config()", "._prepare_generation_config"),
        ("class A(B):\n    def _assisted_decoding(self):\n        pass", "def _assisted_decoding"),
        ("class A(B):\n    def _create_and_replace(self):\n        pass", "def _create_and_replace"),
        ("model(past_key_values=cache)", "past_key_values="),
        ("outputs.past_key_values", ".past_key_values"),
        ("kwargs['past_key_values']", "'past_key_values'"),
        ("getattr(config, '_commit_hash', None)", "getattr(..., '_commit_hash')"),
        ("import transformers\nif transformers.__version__ > '5': pass", "the version of transformers"),
    ],
)
def test_a_leak_is_found(source, found):
    assert any(found in leak for leak in leaks(source))


def test_own_private_names_are_no_leak():
    source = "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other):\n        return other._x"
    assert leaks(source) == []
    assert leaks("from transformers.utils.logging import tqdm\nfrom transformers import Cache") == []
