"""The shape of the package: modules import only from rows above their own, and only the command line prints."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hf_judge

PACKAGE = Path(hf_judge.__file__).parent
ROWS = (
    ("files", "stats", "metrics", "checkers", "journal", "significance", "terminal", "upstream"),
    ("distributions", "greedy"),
    ("hub",),
    ("config",),
    ("adapter", "cards", "data"),
    ("publish", "labelling", "jobs"),
    ("head",),
    ("verify", "binding"),
    ("rules",),
    ("settings",),
    ("record", "attached"),
    ("features",),
    ("solvers", "calibration", "autojudge"),
    ("training",),
    ("decoding",),
    ("cropping", "ragged"),
    ("modeling",),
    ("tiny", "peft_tuner", "mining", "draft_labels", "answering"),
    ("peft_method",),
    ("demo", "tasks"),
    ("evaluation",),
    ("figures", "floor", "speedup"),
    ("scoring", "report", "bench", "integrations"),
    ("measuring",),
    ("cli_train", "cli_measure", "doctor"),
    ("cli_bench", "cli_evaluate", "cli_doctor"),
    ("cli",),
)
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}
PRINTERS = {"cli", "cli_bench", "cli_doctor", "cli_evaluate", "cli_measure", "cli_train"}


def module_of(path: Path) -> str:
    """The module or subpackage of hf_judge that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if "hub_cards" not in path.parts)
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def imported_modules(tree: ast.AST) -> set[str]:
    """The modules of hf_judge that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports of hf_judge in full"
            whole_package = node.module == "hf_judge"
            names = [f"hf_judge.{alias.name}" for alias in node.names] if whole_package else [node.module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("hf_judge.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_only_from_rows_above(path):
    module = module_of(path)
    if module == "__init__":
        return
    assert module in ROW_OF, f"{module} has no row: give it one here and in the design"
    for imported in imported_modules(ast.parse(path.read_text())) - {module, "__version__", "hub_cards"}:
        assert imported in ROW_OF, f"{module} imports {imported}, which has no row"
        assert ROW_OF[imported] < ROW_OF[module], f"{module} may not import {imported}"


def test_the_import_finder_finds():
    """The test above is empty if this one fails."""
    tree = ast.parse(
        "import hf_judge.cli, os\nfrom hf_judge import verify\ndef f():\n    from hf_judge.ragged.cache import Cache"
    )
    assert imported_modules(tree) == {"cli", "verify", "ragged"}
    of_verify = imported_modules(ast.parse((PACKAGE / "verify.py").read_text()))
    assert of_verify == {"config", "distributions", "head", "stats"}


def test_the_rule_imports_torch_and_nothing_else():
    tree = ast.parse((PACKAGE / "verify.py").read_text())
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert modules == {"__future__", "typing", "torch", "hf_judge"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_the_command_line_prints(path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert module_of(path) in PRINTERS or calls == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_all_is_sorted_and_complete():
    names = hf_judge.__all__
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert all(hasattr(hf_judge, name) for name in names)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(names) == imported


def test_readme_lists_the_public_names():
    readme = (PACKAGE.parent / "README.md").read_text()
    table = readme.split("## Public names")[1].split("\n## ")[0]
    names = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert names == hf_judge.__all__
