"""The lock, the ranges and the targets that install them go together."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from matrix import counts, newest_patches
from packaging.requirements import Requirement
from packaging.version import Version

from hf_judge.upstream import versions

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements(path: str) -> list[Requirement]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked(python: str, path: str = "constraints.txt") -> dict[str, Version]:
    """Name -> the version that a Linux machine with this Python gets."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found = {}
    for requirement in requirements(path):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert requirement.name not in found, f"{requirement.name} is locked twice"
            found[requirement.name] = Version(specifier.version)
    return found


def declared(*extras: str) -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][extra] for extra in extras)]
    return [Requirement(line) for text in texts for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_every_direct_dependency_within_its_range(python):
    lock = locked(python)
    for requirement in declared("test", "lint", "data", "plot"):
        assert requirement.name in lock
        assert lock[requirement.name] in requirement.specifier, requirement


def test_the_lock_keeps_the_torch_that_has_a_cpu_build():
    assert locked("3.11")["torch"] == locked("3.11", "constraints-torch.txt")["torch"]
    assert not [name for name in locked("3.11") if name.startswith(("nvidia", "cuda", "triton"))]
    assert all(version.local is None for version in locked("3.11").values())


def test_the_lock_has_what_installs():
    assert {"pip", "setuptools", "uv"} <= set(locked("3.11"))


def test_the_floor_is_the_lower_bound_of_every_range():
    floor = locked("3.11", "constraints-floor.txt")
    for requirement in declared():
        lowest = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        if requirement.name != "torch":
            assert [floor[requirement.name]] == lowest, requirement


def test_the_ranges_are_those_of_the_code():
    ranges = {requirement.name: requirement.specifier for requirement in declared()}
    assert str(ranges["transformers"]) in (
        f"<{versions.CEILING},>={versions.FLOOR}",
        f">={versions.FLOOR},<{versions.CEILING}",
    )
    assert Version(f"{versions.PEFT_CEILING}.0") not in ranges["peft"]
    assert Version(f"{versions.PEFT_FLOOR}.0") in ranges["peft"]


def test_targets_install_under_the_lock():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = re.findall(r"\$\(PIP\).*?(?:\n(?!\t    )|$)", text, flags=re.DOTALL)
    assert len(installs) > 8
    assert all(re.search(r"-c (\$\((LOCK|FLOOR)\)|constraints-torch.txt)", line) for line in installs)
    for name in re.findall(r"constraints[\w-]*\.txt", text):
        assert (ROOT / name).is_file()


def test_targets_name_test_files_that_are_there():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    patterns = re.findall(r"tests/[\w*/]+\.py", text)
    assert len(patterns) > 2
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


def test_the_matrix_takes_the_newest_patch_of_each_minor_in_range():
    available = ["4.57.0", "5.18.0", "5.19.0", "5.22.1", "5.22.2", "5.23.0rc1", f"{versions.CEILING}.0"]
    assert list(map(str, newest_patches(available))) == ["5.19.0", "5.22.2"]


def test_the_matrix_counts_errors_as_failures():
    line = "2 failed, 3 passed, 1 skipped, 4 errors in 1.0s"
    assert counts(line) == {"passed": 3, "failed": 6, "skipped": 1}
    assert counts("no tests ran") == {"passed": 0, "failed": 0, "skipped": 0}
