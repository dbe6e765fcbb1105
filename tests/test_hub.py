"""Judge heads and the real Hub client, against a loopback Hub in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_scenarios
import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, str | None]:
    """The traceback of every scenario, or None."""
    # not this process's own switches: the worker sets what its client is to read
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), env.get("PYTHONPATH", "")])
    folder = tmp_path_factory.mktemp("hub")
    done = subprocess.run(
        [sys.executable, str(HERE / "hub_worker.py"), str(folder)], env=env, capture_output=True, text=True, timeout=280
    )
    lines = [line.removeprefix("SCENARIO ") for line in done.stdout.splitlines() if line.startswith("SCENARIO ")]
    assert lines, done.stderr
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("name", hub_scenarios.SCENARIOS)
def test_hub(results, name):
    error = results[name]
    assert error is None, error
