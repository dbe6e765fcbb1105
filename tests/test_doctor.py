"""The doctor: on the embedded pair, on pairs that do not work, and on an engine that lies."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import noisy_copy, random_head, save_models, tiny_model
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from hf_judge.cli.commands import main
from hf_judge.doctor import Diagnosis, diagnose, environment
from hf_judge.doctor.pair import Models
from hf_judge.doctor.self_check import N_NEW, probe
from hf_judge.ragged.backend import RaggedBackend
from hf_judge.ragged.model import PREFILL_CHUNK
from hf_judge.tiny import HOME, load_pair


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Directories of a pair that works, and of things that do not."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(HOME / "target")
    target = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512)
    models = {
        "target": target,
        "draft": noisy_copy(target),
        "padded": tiny_model(vocab_size=len(tokenizer) + 13),
        "encoder_decoder": T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
    }
    save_models(root, tokenizer, **models)
    other = AutoTokenizer.from_pretrained(HOME / "target")
    other.add_tokens(["<a token of its own>"])
    models["padded"].save_pretrained(root / "other_tokenizer")
    other.save_pretrained(root / "other_tokenizer")
    target.save_pretrained(root / "bare")
    tokenizer.chat_template = tokenizer.pad_token = None
    tokenizer.save_pretrained(root / "bare")
    random_head().save_pretrained(root / "head")
    random_head(width=48).save_pretrained(root / "wide_head")
    random_head(base_model_name_or_path="someone/else").save_pretrained(root / "foreign_head")
    (root / "nothing").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text('{"model_type": "llama", ')
    return root


def lines(found, status):
    return [f"{check.name}: {check.message}" for check in found.checks if check.status == status]


def test_the_embedded_pair(tmp_path, capsys):
    path = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["usable"] is True
    assert found["engine"] == "ragged"
    assert found["engine_reason"] is None
    for engine in ("ragged", "upstream"):
        assert found["self_check"][engine]["equal"] is True
        assert found["self_check"][engine]["tokens_compared"] == 2 * N_NEW
        assert found["self_check"][engine]["state_error"] < 1e-5
    assert 0 < found["costs"]["c"] < 1
    assert set(found["costs"]["v"]) == {"4", "8", "16", "32"}
    assert {"python", "torch", "transformers", "peft", "hf-judge"} <= set(found["versions"])
    assert not [check for check in found["checks"] if check["status"] == "problem"]
    out = capsys.readouterr().out
    assert "the ragged engine serves this pair" in out
    assert "\nusable\n" in out


def test_a_pair_from_folders(folders):
    found = diagnose(str(folders / "target"), str(folders / "draft"), str(folders / "head"))
    assert found.usable, lines(found, "problem")
    assert found.self_check["ragged"]["equal"]
    assert found.self_check["upstream"]["equal"]
    assert any(line.startswith("costs: a draft step costs") for line in lines(found, "warning") + lines(found, "ok"))


@pytest.mark.parametrize("state", ["post_norm", "pre_norm"])
def test_a_target_alone_drafts_for_itself(folders, state, tmp_path):
    random_head(hidden_state=state).save_pretrained(tmp_path / "head")
    found = diagnose(str(folders / "target"), judge=str(tmp_path / "head"))
    assert found.usable
    assert found.costs == {}
    assert found.self_check["ragged"]["state_error"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "missing"}, r"target: '.*missing' cannot be loaded: "),
        ({"target": "nothing"}, r"target: '.*nothing' cannot be loaded: "),
        ({"target": "broken"}, r"target: '.*broken' cannot be loaded: "),
        ({"target": "encoder_decoder"}, r"target: '.*' cannot be loaded: "),
        ({"target": "target", "draft": "nothing"}, r"draft: '.*nothing' cannot be loaded: "),
        ({"target": "target", "draft": "draft", "judge": "nothing"}, r"judge: '.*nothing' cannot be loaded: "),
        ({"target": "target", "judge": "wide_head"}, "judge: head expects hidden size 48, target has 32"),
        ({"draft": "draft"}, "target: a draft or a judge was given without a target"),
    ],
)
def test_what_cannot_be_used(folders, arguments, message, capsys):
    argv = [part for name, folder in arguments.items() for part in (f"--{name}", str(folders / folder))]
    assert main(["doctor", *argv]) == 1
    captured = capsys.readouterr()
    problems = [line.removeprefix("PROBLEM ") for line in captured.out.splitlines() if line.startswith("PROBLEM")]
    assert len([line for line in problems if __import__("re").match(message, line)]) == 1, problems
    assert "not usable" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_doubts_are_warnings(folders):
    found = diagnose(str(folders / "bare"), judge=str(folders / "foreign_head"))
    warnings = lines(found, "warning")
    assert found.usable
    assert any("trained for 'someone/else'" in line for line in warnings)
    assert any(line.startswith("padding: the tokenizer has no padding token") for line in warnings)
    assert any(line.startswith("chat: the tokenizer has no chat template") for line in warnings)
    assert all(check.remedy for check in found.checks if check.status == "warning")


def test_other_tokenizers_are_named(folders):
    found = diagnose(str(folders / "target"), str(folders / "other_tokenizer"))
    assert any("the tokenizers disagree (target: 483 tokens, draft: 484)" in line for line in lines(found, "warning"))
    assert found.engine == "upstream"
    assert found.self_check["upstream"]["equal"]


def test_a_pair_padded_to_two_widths_passes_its_self_check(folders, tmp_path):
    for name, n_rows in (("target", 496), ("draft", 488)):
        tiny_model(vocab_size=n_rows, max_position_embeddings=512).save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(folders / "target").save_pretrained(tmp_path / name)
    found = diagnose(str(tmp_path / "target"), str(tmp_path / "draft"))
    assert any("padded to 496 rows (target) and 488 (draft)" in line for line in lines(found, "warning"))
    assert found.self_check["ragged"]["equal"]
    assert found.self_check["upstream"]["equal"]
    assert found.usable


def test_padded_vocabularies_are_named(folders):
    found = diagnose(str(folders / "padded"), str(folders / "padded"))
    assert any("one vocabulary of 483 tokens, padded to 496 rows" in line for line in lines(found, "ok"))
    assert found.usable


def test_an_engine_that_lies_is_found_out(folders, monkeypatch, capsys):
    honest = RaggedBackend.forward

    def lying(self, answers, draft):
        forward = honest(self, answers, draft)
        return forward._replace(logits=forward.logits.roll(1, dims=-1))

    monkeypatch.setattr(RaggedBackend, "forward", lying)
    assert main(["doctor", "--target", str(folders / "target"), "--draft", str(folders / "draft")]) == 1
    assert "PROBLEM ragged engine: strict verification gave another token" in capsys.readouterr().out


def test_states_that_are_wrong_are_found_out(folders, monkeypatch):
    honest = RaggedBackend.forward

    def lying(self, answers, draft):
        forward = honest(self, answers, draft)
        return forward._replace(hidden=forward.hidden.roll(1, dims=1))

    monkeypatch.setattr(RaggedBackend, "forward", lying)
    found = diagnose(str(folders / "target"), str(folders / "draft"))
    assert any("the hidden states that a judge reads differ" in line for line in lines(found, "problem"))


def test_an_untested_version_is_a_warning(monkeypatch):
    real = environment.importlib.metadata.version
    monkeypatch.setattr(
        environment.importlib.metadata, "version", lambda name: "9.0.0" if name == "transformers" else real(name)
    )
    found = Diagnosis()
    environment.check_versions(found)
    assert found.versions["transformers"] == "9.0.0"
    (warning,) = [check for check in found.checks if check.name == "transformers"]
    assert warning.status == "warning"
    assert "9.0.0 is not among the tested versions" in warning.message
    assert "pip install 'transformers" in warning.remedy


def test_an_unwritable_file_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["doctor", "--json", str(tmp_path / "file" / "found.json")]) == 2
    assert capsys.readouterr().err.startswith("hf-judge: error: ")


def test_the_probe_is_longer_than_a_chunk():
    pair = load_pair(4)
    models = Models(pair.target, pair.draft, pair.tokenizer, pair.tokenizer, None)
    long, short = probe(models)
    assert long.shape[1] > PREFILL_CHUNK > short.shape[1] > 0
    assert not torch.equal(long[:, : short.shape[1]], short)
