"""The shape of the house: packages in one order, no circles, few modules at the top, and only `cli` prints."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path

import pytest

import hf_judge
from hf_judge.integrations import public

PACKAGE = Path(hf_judge.__file__).parent
# A package imports only from those before it. docs/architecture.md tells what each is for.
ORDER = (
    "moved",
    "files",
    "upstream",
    "head",
    "checking",
    "labelling",
    "importing",
    "verify",
    "training",
    "rules",
    "decoding",
    "speculators",
    "ragged",
    "modeling",
    "tiny",
    "integrations",
    "__init__",
    "publishing",
    "tasks",
    "evaluation",
    "bench",
    "doctor",
    "making",
    "cli",
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "hub_cards" not in path.parts)
MODULES = [path for path in FILES if path.name != "__init__.py"]
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def place_of(path: Path) -> str:
    """The package, or the module at the top, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """The dotted name of a file below hf_judge; of a face, the package's."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(source: str) -> set[str]:
    """The dotted names below hf_judge that a file imports, anywhere in it: modules, or names of the whole package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports of hf_judge in full"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            are_modules = all(
                (PACKAGE.parent / Path(*name.split("."))).with_suffix(".py").is_file() for name in submodules
            )
            names = submodules if are_modules or node.module == "hf_judge" else [node.module]
        else:
            continue
        found |= {name.removeprefix("hf_judge.") for name in names if name.startswith("hf_judge.")}
    return found


def places(source: str) -> set[str]:
    """The packages and top modules among them; a public name of the whole package comes from its `__init__`."""
    roots = {name.partition(".")[0] for name in imported(source)} - {"hub_cards"}
    return {root if root in ORDER else "__init__" for root in roots}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_only_from_packages_before_its_own(path):
    place = place_of(path)
    assert place in ORDER, f"{place} has no place: give it one here and in docs/architecture.md"
    for other in places(path.read_text(encoding="utf-8")) - {place}:
        assert ORDER.index(other) < ORDER.index(place), f"{place} may not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=map(name_of, MODULES))
def test_modules_import_modules_not_faces(path):
    faces = {name_of(face) for face in FILES if face.name == "__init__.py"} - {"__init__"}
    assert imported(path.read_text(encoding="utf-8")) & faces == set()


def test_no_circle_among_modules():
    arrows = {name_of(path): imported(path.read_text(encoding="utf-8")) for path in MODULES}
    done, doing = set(), []

    def visit(name):
        assert name not in doing, " -> ".join([*doing, name])
        if name in done or name not in arrows:
            return
        doing.append(name)
        for other in sorted(arrows[name]):
            visit(other)
        doing.pop()
        done.add(name)

    for name in sorted(arrows):
        visit(name)


def test_the_import_finder_finds():
    """The tests above are empty if this one fails."""
    source = (
        "import hf_judge.cli.commands, os\nfrom hf_judge.upstream import versions\n"
        "def f():\n    from hf_judge import judged\n    from hf_judge.ragged.cache import RaggedCache"
    )
    assert imported(source) == {"cli.commands", "upstream.versions", "judged", "ragged.cache"}
    assert places(source) == {"cli", "upstream", "__init__", "ragged"}
    rule = (PACKAGE / "verify" / "decide.py").read_text(encoding="utf-8")
    assert imported(rule) == {"verify.round", "verify.stats", "verify.strict"}


def test_the_picture_of_the_packages_shows_these_imports():
    import architecture_picture  # which reads this module

    committed = (PACKAGE.parent / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert committed == architecture_picture.draw(), (
        "draw it again: python tests/architecture_picture.py docs/architecture.svg, and look at it"
    )


def test_the_picture_leaves_out_what_follows():
    import architecture_picture

    found = {"moved": {"files", "head"}, "files": set(), "head": {"files"}}
    assert architecture_picture.needed(found | {name: set() for name in ORDER if name not in found}) == [
        ("moved", "head"),
        ("head", "files"),
    ]


def test_few_modules_stand_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 4


def test_packages_are_of_a_size_that_a_reader_sees_at_once():
    larger = {"cli": 11, "evaluation": 10, "making": 11}  # to be divided
    for folder in {path.parent for path in FILES} - {PACKAGE}:
        n_modules = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert n_modules <= larger.get(folder.name, 9), folder.name


def test_faces_are_short():
    for path in FILES:
        if path.name == "__init__.py":
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


def test_setup_lists_every_package():
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    folders = {f"hf_judge.{name_of(path)}" for path in FILES if path.name == "__init__.py"} - {"hf_judge.__init__"}
    assert set(config["options"]["packages"].split()) == folders | {"hf_judge", "hf_judge.hub_cards"}


@pytest.mark.parametrize("name", ["round", "strict", "decide", "judge"])
def test_the_rule_imports_torch_and_nothing_else(name):
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / "verify" / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    assert found <= {"__future__", "typing", "torch", "hf_judge"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_the_command_line_prints(path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert place_of(path) == "cli" or calls == []


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_all_is_sorted_and_complete():
    names = hf_judge.__all__
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert all(hasattr(hf_judge, name) for name in names)
    assert public.__all__ == names
    tree = ast.parse(Path(public.__file__).read_text(encoding="utf-8"))
    imported_names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(names) == imported_names
