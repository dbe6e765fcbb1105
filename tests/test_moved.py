"""Old module paths work for one release: the same objects, a warning that names the new place, old pickles."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

from hf_judge.moved import MOVED


@pytest.fixture(autouse=True)
def not_imported_yet(monkeypatch):
    for old in MOVED:
        monkeypatch.delitem(sys.modules, f"hf_judge.{old}", raising=False)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_moved_module_is_the_same_object_with_a_warning(old, new):
    current = importlib.import_module(f"hf_judge.{new}")
    spec = current.__spec__
    with pytest.warns(DeprecationWarning, match=rf"hf_judge\.{old} is now hf_judge\.{new}: import that") as caught:
        found = importlib.import_module(f"hf_judge.{old}")
    assert found is current
    assert found.__spec__ is spec
    assert found.__name__ == f"hf_judge.{new}"
    assert len(caught) == 1


def test_names_are_imported_from_old_paths():
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from hf_judge.data import LabelledResponse\nimport hf_judge.checkers as c\nimport hf_judge.features\n"
        "from hf_judge.calibration import choose_by_risk\n"
        "assert LabelledResponse.__module__ == 'hf_judge.labelling.responses', LabelledResponse.__module__\n"
        "assert c.__name__ == 'hf_judge.labelling.checkers'\n"
        "assert hf_judge.features.FeatureStore\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_warning_names_the_importing_line():
    code = "import warnings\nwarnings.simplefilter('default')\nimport hf_judge\nimport hf_judge.mining\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "<string>:4: DeprecationWarning: hf_judge.mining is now hf_judge.labelling.swaps" in done.stderr


def test_nothing_of_ours_uses_an_old_path():
    code = "import warnings\nwarnings.simplefilter('error', DeprecationWarning)\nimport hf_judge\n" + "".join(
        f"import hf_judge.{new}\n" for new in MOVED.values()
    )
    # other libraries have deprecations of their own: look for ours
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code.replace("error", "default")], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert " is now hf_judge" not in done.stderr


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("hf_judge.verify", "Verdict"),
        ("hf_judge.verify", "JudgeCandidateVerifier"),
        ("hf_judge.head", "JudgeHead"),
        ("hf_judge.training", "train_judge"),
        ("hf_judge.evaluation", "Pair"),
        ("hf_judge.bench", "bench"),
        ("hf_judge.modeling", "JudgeLlamaForCausalLM"),
        ("hf_judge.modeling", "JudgeQwen2ForCausalLM"),
        ("hf_judge.tiny", "load_pair"),
        ("hf_judge.rules", "TypicalVerifier"),
        ("hf_judge.cli", "main"),
    ],
)
def test_packages_give_the_names_that_their_modules_had(module, name):
    assert hasattr(importlib.import_module(module), name)
    pickled = f"c{module}\n{name}\n.".encode()  # as an old version wrote a class by its place
    assert pickle.loads(pickled) is getattr(importlib.import_module(module), name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pickles_by_a_moved_path_load():
    from hf_judge.labelling.responses import LabelledResponse

    assert pickle.loads(b"chf_judge.data\nLabelledResponse\n.") is LabelledResponse
