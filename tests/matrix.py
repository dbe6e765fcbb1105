"""Runs the contract tests on each minor release of transformers in range, and writes docs/compatibility.md.

    python tests/matrix.py [--only 5.24] [--keep]

Each release gets a virtual environment of its own with the lock's other packages as far as they fit.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import venv
from pathlib import Path

from packaging.version import Version

from hf_judge.upstream import versions

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
HOME = ROOT / ".venv-matrix"
SHOWN = ("transformers", "peft", "torch", "accelerate", "huggingface_hub", "tokenizers")
COMMAND = "make test-matrix"


def newest_patches(available: list[str]) -> list[Version]:
    """The newest final patch of each minor release in the tested range, oldest minor first."""
    found = {}
    for version in map(Version, available):
        if not version.is_prerelease and versions.FLOOR <= version < versions.CEILING:
            minor = (version.major, version.minor)
            found[minor] = max(version, found.get(minor, version))
    return [found[minor] for minor in sorted(found)]


def available_versions() -> list[str]:
    """The releases of transformers that the package index has."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "transformers"], capture_output=True, text=True, check=True
    )
    return re.search(r"Available versions: (.*)", listing.stdout)[1].split(", ")


def environment(transformers: Version) -> Path:
    """The Python of an environment with that transformers; made where it is missing."""
    home = HOME / str(transformers)
    python = home / "bin" / "python"
    if not (home / ".installed").exists():
        venv.create(home, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pins = ["-c", "constraints-torch.txt"]
        subprocess.run([*install, *pins, "-e", ".[test]", f"transformers=={transformers}"], cwd=ROOT, check=True)
        (home / ".installed").touch()
    return python


def counts(output: str) -> dict[str, int]:
    """Passed, failed and skipped tests of pytest's last line."""
    numbers = {name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
    numbers["failed"] = numbers.get("failed", 0) + numbers.pop("error", 0)
    return {name: numbers.get(name, 0) for name in ("passed", "failed", "skipped")}


def tested(transformers: Version) -> dict[str, str]:
    """One row of the page: versions and counts."""
    python = environment(transformers)
    code = f"import importlib.metadata as m; print(*(m.version(n) for n in {SHOWN}))"
    installed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    run = subprocess.run(
        [python, "-m", "pytest", "-n", "2", "-m", "contract"], cwd=ROOT, capture_output=True, text=True
    )
    numbers = counts(run.stdout)
    if numbers["failed"] or not numbers["passed"]:
        print(run.stdout[-8000:], run.stderr[-2000:])
    return dict(zip(SHOWN, installed, strict=True)) | {name: str(n) for name, n in numbers.items()}


def page(rows: list[dict[str, str]]) -> str:
    """docs/compatibility.md."""
    columns = [*SHOWN, "passed", "failed", "skipped"]
    table = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    table += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return f"""# Compatibility

hf_judge works with transformers {versions.tested_range()} and peft {versions.PEFT_FLOOR} to below
{versions.PEFT_CEILING}; setup.cfg has the ranges of all packages. transformers 5.21 and newer need Python 3.11.

The contract tests cover strict verification against plain greedy decoding on both engines, sampling, batches, each
source of drafts, adapters, saving and loading, and pipelines. Their results on each minor release of transformers, as
`{COMMAND}` wrote them on {datetime.date.today()} (Python {sys.version.split()[0]}):

{chr(10).join(table)}

On a version that is not in this table, hf_judge warns once and goes on. `hf-judge doctor` checks whether judged
generation still gives the right tokens there.

transformers 5.24.0 asks for peft 0.22 in its own adapter methods (`add_adapter`, `set_adapter`, ...), when the newest
release of peft was 0.21.2. Once a judge adapter hangs on a model, hf_judge accepts a tested peft there;
`add_adapter` on a model without one is refused by transformers.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="VERSION", help="one minor release; the page is not written")
    args = parser.parse_args()
    releases = newest_patches(available_versions())
    if args.only:
        releases = [release for release in releases if f"{release.major}.{release.minor}" == args.only]
    rows = []
    for release in releases:
        rows.append(tested(release))
        print(f"transformers {release}: " + ", ".join(f"{rows[-1][n]} {n}" for n in ("passed", "failed", "skipped")))
    if not args.only:
        PAGE.write_text(page(rows), encoding="utf-8")
    return int(not rows or any(int(row["failed"]) or not int(row["passed"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
