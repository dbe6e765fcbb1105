"""What Windows and macOS lack is imported only where it is used."""

import subprocess
import sys

import pytest

from hf_judge.checking.checkers import UnitTestChecker


def run(code, missing=("resource", "fcntl", "pwd", "grp", "termios")):
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    script = (
        "import sys\n"
        "import torch, transformers, accelerate, peft, tqdm, safetensors  # on those systems they do without\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, LlamaForCausalLM, pipeline\n"
        "from transformers.generation.streamers import BaseStreamer\n"
        "import torch._dynamo, torch._inductor.config\n"
        f"assert not any(name.startswith('hf_judge') for name in sys.modules)\n{blocked}{code}"
    )
    return subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=240)


def test_commands_start_without_posix():
    done = run(
        "import hf_judge.cli.commands\n"
        "from hf_judge.tiny import HOME\n"
        "assert hf_judge.cli.commands.main(['info', str(HOME / 'judge')]) == 0\n"
        "from hf_judge.checking.checkers import NumericChecker, UnitTestChecker\n"
        "assert NumericChecker()('It is 42.', {}) == 42\n"
        "try:\n"
        "    UnitTestChecker(allow_code_execution=True)('x = 1', {'tests': 'assert x == 1'})\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "threshold 0.7" in done.stdout
    assert "unit tests of what a model wrote need POSIX's limits on a process" in done.stdout


def test_every_module_imports_without_posix():
    """All of the package, but the plugins of libraries that are not there."""
    done = run(
        "import importlib, pkgutil, hf_judge\n"
        "for found in pkgutil.walk_packages(hf_judge.__path__, 'hf_judge.'):\n"
        "    if not found.name.startswith(('hf_judge.integrations.', 'hf_judge.hub_cards.')):\n"
        "        importlib.import_module(found.name)\n"
        "print('all of them')\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "all of them" in done.stdout


def test_the_limits_are_there_where_they_can_be():
    pytest.importorskip("resource")
    checker = UnitTestChecker(allow_code_execution=True)
    assert checker("x = 1", {"tests": "assert x == 1"})
    assert not checker("x = 1", {"tests": "assert x == 2"})
