"""What README shows runs: its first example is examples/quickstart.py, and every example runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_judge
from hf_judge.tiny import HOME

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = {
    "quickstart.py": ([], "Ivy has 48 pens left"),
    "your_models.py": ([str(HOME / part) for part in ("target", "draft", "judge")], "48 pens"),
    "batch_and_stream.py": ([], "pens left"),
    "own_rule.py": ([], "rescued"),
    "compare_rules.py": ([], "target forwards per answer"),
    "imported_labels.py": (["80", "1"], "judge threshold 0.5"),
}


def code_of(path: Path) -> str:
    """A script without its docstring."""
    source = path.read_text(encoding="utf-8")
    end = ast.parse(source).body[0].end_lineno
    return "\n".join(source.splitlines()[end:]).strip()


def test_the_first_example_is_the_quickstart():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks[0].strip() == code_of(ROOT / "examples" / "quickstart.py")


def test_the_rule_is_that_of_the_example():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks[-1].strip() in code_of(ROOT / "examples" / "own_rule.py")


def test_every_public_name_is_documented():
    page = (ROOT / "docs" / "names.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == set(hf_judge.__all__)


def test_readme_is_short():
    assert len(README.splitlines()) < 120


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name):
    arguments, expected = EXAMPLES[name]
    path = ROOT / "examples" / name
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    done = subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_links_of_the_documentation_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_architecture_page_names_every_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = Path(hf_judge.__file__).parent
    named = re.findall(r"^\| `hf_judge/(\w+)(?:/|\.py)` ", page, re.MULTILINE)
    there = {path.parent.name for path in package.glob("*/__init__.py")} | {"doctor"}
    assert set(named) == there
