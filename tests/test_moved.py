"""What older releases named, pickled or pushed still works: old module paths, faces, a head and objects of b78ca87.

data/head_of_b78ca87.zip holds what `publish.write_repository` of commit b78ca87 (before modules moved into packages)
wrote for `hub_fixtures.random_head(base_model_name_or_path="alice/base", ...)`, and a pickle of objects made there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import hub_fixtures as fx
import pytest
import torch

import hf_judge
from hf_judge import JudgeHead, judged
from hf_judge.moved import MOVED, install

FIXTURES = Path(__file__).parent / "fixtures"
ARCHIVE = FIXTURES / "data" / "head_of_b78ca87.zip"
# what docs of b78ca87 and scripts written for it import, and where from
OLD_NAMES = {
    "autojudge": ["import_autojudge_head"],
    "bench": ["bench", "recommend"],
    "calibration": ["RiskCertificate", "calibrate_by_risk", "head_scores"],
    "cards": ["head_card"],
    "checkers": ["MultipleChoiceChecker", "NumericChecker", "RegexChecker", "UnitTestChecker"],
    "cli": ["main"],
    "config": ["JudgeConfig"],
    "data": ["LabelledResponse", "load_rows", "read_jsonl", "write_jsonl"],
    "decoding": ["JudgeDecoderOnlyOutput", "VerdictStreamer", "judged_decoding"],
    "evaluation": ["Decoding", "Pair", "evaluate"],
    "features": ["FeatureStore", "extract_features"],
    "head": ["JudgeHead"],
    "integrations.vllm": ["register"],
    "labelling": ["encode_prompt", "label_rows"],
    "mining": ["mine_swaps"],
    "modeling": ["AutoJudgeModelForCausalLM", "JudgeGenerationMixin", "JudgeQwen2ForCausalLM", "judged"],
    "publish": ["publish"],
    "rules": ["FlyVerifier", "KLVerifier", "TypicalVerifier"],
    "stats": ["JudgeStats", "VerdictCode"],
    "tiny": ["HOME", "TinyPair", "load_pair"],
    "tiny.world": ["check_answer", "problems"],
    "training": ["JudgeTrainingArguments", "train_judge"],
    "verify": ["CandidateVerifier", "Candidates", "Rows", "StrictVerifier", "Verdict", "decide", "strict_choice"],
}


@pytest.fixture
def forget():
    """Old paths are forgotten, as in a fresh process: the warning comes once in each."""

    def forget_all() -> None:
        for old in MOVED:
            sys.modules.pop(old, None)
            hf_judge.__dict__.pop(old.removeprefix("hf_judge."), None)

    forget_all()
    yield
    forget_all()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "judge"
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("module", sorted(OLD_NAMES))
@pytest.mark.filterwarnings("ignore:hf_judge.* has moved:DeprecationWarning")
def test_old_paths_have_their_names(module):
    found = importlib.import_module(f"hf_judge.{module}")
    assert [name for name in OLD_NAMES[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize(("old", "new"), sorted(MOVED.items()))
def test_an_old_path_is_the_new_module_with_one_warning(old, new, forget):
    place = importlib.import_module(new)
    spec = place.__spec__
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: import {new} ") as caught:
        assert importlib.import_module(old) is place
    assert len(caught) == 1
    assert place.__name__ == new
    assert place.__spec__ is spec, "the module is as it was"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importlib.import_module(old) is place, "the second import says nothing"


def test_the_warning_is_of_the_line_that_imports(forget):
    with pytest.warns(DeprecationWarning, match="has moved") as caught:
        import hf_judge.data as data
    from hf_judge.data import load_rows

    assert caught[0].filename == __file__
    assert load_rows is data.load_rows
    assert hf_judge.data is data


def test_other_names_are_as_unknown_as_before():
    assert importlib.util.find_spec("hf_judge.nothing") is None
    with pytest.raises(ModuleNotFoundError, match=r"hf_judge\.nothing"):
        importlib.import_module("hf_judge.nothing")


def test_installing_again_changes_nothing():
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before


@pytest.mark.filterwarnings("ignore:hf_judge.* has moved:DeprecationWarning")
def test_pickles_of_before_load(repository, forget):
    things = pickle.loads((repository / "objects.pickle").read_bytes())
    from hf_judge.labelling.responses import LabelledResponse
    from hf_judge.training.calibration import RiskCertificate
    from hf_judge.verify.round import Verdict

    assert type(things["verdict"]) is Verdict
    assert things["verdict"].next_token.tolist() == [1]
    assert type(things["certificate"]) is RiskCertificate
    assert things["response"] == LabelledResponse(prompt="2 + 2?", response="4")
    assert things["config"] == JudgeHead.from_pretrained(repository).config
    assert torch.equal(things["head"].weight, fx.random_head().weight)
    assert things["verifier"].threshold == 0.4
    modeling = importlib.import_module("hf_judge.modeling")
    assert things["classes"] == [
        hf_judge.JudgeLlamaForCausalLM,
        modeling.JudgeQwen2ForCausalLM,
        hf_judge.JudgeGenerationMixin,
    ]


@pytest.mark.parametrize("name", ["JudgeLlamaForCausalLM", "JudgeQwen2ForCausalLM"])
def test_judge_classes_are_pickled_under_the_public_path(name):
    cls = getattr(importlib.import_module("hf_judge.modeling"), name)
    assert cls.__module__ == "hf_judge.modeling"
    assert pickle.loads(pickle.dumps(cls)) is cls


def test_a_head_pushed_before_loads_and_judges(repository):
    target = fx.tiny_target()
    draft, ids = fx.noisy_draft(target), fx.prompt()
    model = judged(target)
    settings = {"assistant_model": draft, "max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(ids, judge=str(repository), **settings)
    assert out.judge_stats.rescued > 0
    ours = model.generate(ids, judge=fx.random_head(), **settings)
    assert out.sequences.tolist() == ours.sequences.tolist()


def test_the_code_that_was_pushed_with_it_runs_on_this_package(repository, tmp_path):
    code = """
import sys
import hub_fixtures as fx
target = fx.tiny_target()
settings = {"assistant_model": fx.noisy_draft(target), "max_new_tokens": 24, "do_sample": False}
out = target.generate(fx.prompt(), custom_generate=sys.argv[1], trust_remote_code=True, **settings)
print(*out[0].tolist())
copies = ("custom_generate.head", "custom_generate.verify")
print(type(target).__name__, *[name for name in sys.modules if name.endswith(copies)])
"""
    environment = os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(FIXTURES), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, repository], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    tokens, modules = done.stdout.splitlines()
    target = fx.tiny_target()
    settings = {"assistant_model": fx.noisy_draft(target), "max_new_tokens": 24, "do_sample": False}
    expected = judged(target).generate(fx.prompt(), judge=fx.random_head(), **settings)
    assert [int(token) for token in tokens.split()] == expected[0].tolist()
    assert expected[0].tolist() != judged(target).generate(fx.prompt(), judge=False, **settings)[0].tolist()
    assert modules == "LlamaForCausalLM", "the package did the work, not the copies in the repository"
