"""Judge heads and the real Hub client, against a loopback Hub in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_scenarios
import pytest
from filelock import FileLock

FIXTURES = Path(__file__).parent / "fixtures"
pytestmark = pytest.mark.timeout(1200)  # the first test waits for all scenarios: half a minute of work


def run_scenarios(folder: Path) -> dict[str, str | None]:
    # not this process's own switches: the worker sets what its client is to read
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env["PYTHONPATH"] = os.pathsep.join([str(FIXTURES), str(FIXTURES.parents[1]), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(FIXTURES / "hub_worker.py"), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1100)
    lines = [line.removeprefix("SCENARIO ") for line in done.stdout.splitlines() if line.startswith("SCENARIO ")]
    assert lines, done.stderr
    return dict(json.loads(line) for line in lines)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, str | None]:
    """The traceback of every scenario, or None; run once, even where several processes share the tests (xdist)."""
    folder = tmp_path_factory.mktemp("hub")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return run_scenarios(folder)
    shared = tmp_path_factory.getbasetemp().parent / f"hub-{run}.json"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            shared.write_text(json.dumps(run_scenarios(folder)))
        return json.loads(shared.read_text())


@pytest.mark.parametrize("name", hub_scenarios.SCENARIOS)
def test_hub(results, name):
    error = results[name]
    assert error is None, error
