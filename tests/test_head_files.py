"""JudgeConfig, JudgeHead and their two files: round trips, atomic writes, and every refusal with its text."""

from __future__ import annotations

import json
import logging
import os
import pickle
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import WIDTH, noisy_copy, prompt, random_head, tiny_model

from hf_judge import JudgeConfig, JudgeHead, StrictVerifier, judged
from hf_judge.head.adapter import read_adapter, write_adapter
from hf_judge.head.files import BIAS_KEY, CONFIG_NAME, WEIGHT_KEY, WEIGHTS_NAME


@pytest.fixture
def directory(tmp_path) -> Path:
    """A good head's two files."""
    random_head(threshold=0.25).save_pretrained(tmp_path)
    return tmp_path


def rewrite_config(directory: Path, **changes) -> None:
    path = directory / CONFIG_NAME
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "(drop)"}))


def rewrite_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / WEIGHTS_NAME)
    save_file(change(dict(tensors)), directory / WEIGHTS_NAME)


class TestRoundTrip:
    def test_everything_comes_back(self, tmp_path):
        config = JudgeConfig(
            hidden_size=WIDTH,
            hidden_state="pre_norm",
            threshold=0.125,
            label="1 = correct",
            provenance={"data": ["a", {"b": 1.5}], "note": "ü"},
            base_model_name_or_path="someone/model",
            revision="abc123",
        )
        head = JudgeHead(config)
        torch.nn.init.normal_(head.weight)
        torch.nn.init.normal_(head.bias)
        head.save_pretrained(tmp_path / "deep" / "er")
        again = JudgeHead.from_pretrained(tmp_path / "deep" / "er")
        assert torch.equal(again.weight, head.weight)
        assert torch.equal(again.bias, head.bias)
        for field in fields(JudgeConfig):
            assert getattr(again.config, field.name) == getattr(config, field.name), field.name
        assert not again.weight.requires_grad

    def test_what_is_on_disk(self, directory):
        assert sorted(os.listdir(directory)) == [CONFIG_NAME, WEIGHTS_NAME]
        values = json.loads((directory / CONFIG_NAME).read_text())
        assert values["peft_type"] == "JUDGE"
        assert values["task_type"] == "CAUSAL_LM"
        assert values["format_version"] == 1
        assert values["hidden_size"] == WIDTH
        assert values["hidden_state"] == "post_norm"
        assert values["threshold"] == 0.25
        tensors = load_file(directory / WEIGHTS_NAME)
        assert {key: tuple(value.shape) for key, value in tensors.items()} == {
            "base_model.model.judge.judge_head.weight": (1, WIDTH),
            "base_model.model.judge.judge_head.bias": (1,),
        }
        assert {value.dtype for value in tensors.values()} == {torch.float32}

    def test_optional_keys_have_defaults(self, directory):
        (directory / CONFIG_NAME).write_text(json.dumps({"peft_type": "JUDGE", "hidden_size": WIDTH}))
        assert JudgeHead.from_pretrained(directory).config == JudgeConfig(hidden_size=WIDTH)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_any_float_on_disk_is_float32_in_memory(self, directory, dtype):
        rewrite_tensors(directory, lambda tensors: {key: value.to(dtype) for key, value in tensors.items()})
        head = JudgeHead.from_pretrained(directory)
        assert head.weight.dtype == head.bias.dtype == torch.float32
        torch.testing.assert_close(head.weight, random_head().weight, rtol=1e-2, atol=1e-2)

    def test_save_perturb_load(self, directory):
        head = JudgeHead.from_pretrained(directory)
        saved = head.weight.clone()
        with torch.no_grad():
            head.weight += 1
        assert torch.equal(JudgeHead.from_pretrained(directory).weight, saved)

    def test_pickles_and_prints(self, directory):
        head = JudgeHead.from_pretrained(directory)
        assert torch.equal(pickle.loads(pickle.dumps(head)).weight, head.weight)
        assert repr(head) == f"JudgeHead(hidden_size={WIDTH}, hidden_state='post_norm')"

    def test_unknown_keys_warn_by_name(self, directory, caplog):
        rewrite_config(directory, shiny_new_option=1, another=None)
        with caplog.at_level(logging.WARNING, logger="hf_judge"):
            JudgeHead.from_pretrained(directory)
        assert "unknown keys ignored: another, shiny_new_option" in caplog.text

    def test_known_keys_do_not_warn(self, directory, caplog):
        with caplog.at_level(logging.WARNING, logger="hf_judge"):
            JudgeHead.from_pretrained(directory)
        assert caplog.text == ""


class TestAtomicity:
    @pytest.mark.parametrize(("failing", "nth"), [("fsync", 1), ("fsync", 2), ("replace", 1)])
    def test_an_interrupted_save_leaves_the_old_files(self, directory, failing, nth, monkeypatch):
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        calls = []

        def fail(*args):
            calls.append(args)
            if len(calls) == nth:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"hf_judge.head.adapter.os.{failing}", fail)
            with pytest.raises(KeyboardInterrupt):
                random_head(seed=9, threshold=0.75).save_pretrained(directory)
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == before

    def test_a_config_that_could_not_be_read_again_is_not_saved(self, directory):
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        head = JudgeHead.from_pretrained(directory)
        head.config.threshold = 1.5
        with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
            head.save_pretrained(directory)
        head.config.threshold, head.config.provenance = 0.5, {"model": object()}
        with pytest.raises(TypeError, match="not JSON serializable"):
            head.save_pretrained(directory)
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == before

    def test_a_head_with_nan_is_not_saved(self, directory):
        before = (directory / WEIGHTS_NAME).read_bytes()
        head = JudgeHead.from_pretrained(directory)
        with torch.no_grad():
            head.weight[0, 3] = float("nan")
        with pytest.raises(ValueError, match="holds NaN or infinite values and is not saved: train it again"):
            head.save_pretrained(directory)
        assert (directory / WEIGHTS_NAME).read_bytes() == before

    def test_others_can_read_the_files(self, directory):
        assert all(path.stat().st_mode & 0o444 == 0o444 for path in directory.iterdir())


class TestBadFiles:
    def check(self, directory, message, error=ValueError):
        with pytest.raises(error, match=message):
            JudgeHead.from_pretrained(directory)
        # generate() says the same
        with pytest.raises(error, match=message):
            judged(tiny_model()).generate(prompt(0), judge=str(directory), prompt_lookup_num_tokens=2, max_new_tokens=2)

    def test_no_directory(self, tmp_path):
        self.check(tmp_path / "nowhere", r"no judge head at '.*nowhere': the directory does not exist")

    def test_a_file_for_a_directory(self, directory):
        self.check(directory / CONFIG_NAME, r"the directory does not exist")

    def test_no_config(self, directory):
        (directory / CONFIG_NAME).unlink()
        self.check(directory, r"no judge head at '.*': adapter_config.json is missing")

    def test_no_weights(self, directory):
        (directory / WEIGHTS_NAME).unlink()
        self.check(directory, r"no judge head at '.*': adapter_model.safetensors is missing$")

    @pytest.mark.parametrize("name", ["adapter_model.bin", "head.pt"])
    def test_a_pickle(self, directory, name):
        (directory / WEIGHTS_NAME).unlink()
        torch.save({}, directory / name)
        self.check(directory, rf"safetensors is missing \({name} is a pickle, which can run code and is not read\)")

    def test_a_pickle_by_another_name(self, directory):
        torch.save({WEIGHT_KEY: torch.zeros(1, WIDTH)}, directory / WEIGHTS_NAME)
        self.check(directory, r"is not a readable safetensors file")

    @pytest.mark.parametrize("n", [0, 4, 60, -1, -40])
    def test_truncated(self, directory, n):
        data = (directory / WEIGHTS_NAME).read_bytes()
        (directory / WEIGHTS_NAME).write_bytes(data[:n])
        self.check(directory, r"is not a readable safetensors file \(truncated or damaged\?\)")

    @pytest.mark.parametrize("key", [WEIGHT_KEY, BIAS_KEY])
    def test_missing_tensor(self, directory, key):
        rewrite_tensors(directory, lambda tensors: {name: v for name, v in tensors.items() if name != key})
        self.check(directory, rf"must hold exactly .*missing: \['{key}'\], not allowed: none")

    def test_extra_tensor(self, directory):
        rewrite_tensors(directory, lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.zeros(2)})
        self.check(directory, r"missing: none, not allowed: \['base_model.model.lm_head.weight'\]")

    @pytest.mark.parametrize(
        ("key", "shape"), [(WEIGHT_KEY, (WIDTH,)), (WEIGHT_KEY, (1, WIDTH - 1)), (BIAS_KEY, ()), (BIAS_KEY, (1, 1))]
    )
    def test_wrong_shape(self, directory, key, shape):
        rewrite_tensors(directory, lambda tensors: tensors | {key: torch.zeros(shape)})
        expected = [1, WIDTH] if key == WEIGHT_KEY else [1]
        self.check(directory, rf"tensor '{key}' has shape \[.*\], expected \[{str(expected)[1:-1]}\]")

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
    def test_no_floats(self, directory, dtype):
        rewrite_tensors(directory, lambda tensors: tensors | {BIAS_KEY: torch.zeros(1, dtype=dtype)})
        self.check(directory, rf"tensor '{BIAS_KEY}' has dtype \w+, expected one of")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("key", [WEIGHT_KEY, BIAS_KEY])
    def test_not_finite(self, directory, key, value):
        rewrite_tensors(directory, lambda tensors: tensors | {key: torch.full_like(tensors[key], value)})
        self.check(directory, rf"tensor '{key}' holds NaN or infinite values")

    def test_too_large_for_float32(self, directory):
        rewrite_tensors(directory, lambda tensors: tensors | {BIAS_KEY: torch.tensor([1e300], dtype=torch.float64)})
        self.check(directory, rf"tensor '{BIAS_KEY}' holds NaN or infinite values")

    def test_huge_weights_file(self, directory):
        with open(directory / WEIGHTS_NAME, "ab") as file:
            file.truncate(1 << 20)
        self.check(directory, r"has 1048576 bytes: a judge head of 32 features needs at most")

    def test_huge_config_file(self, directory):
        (directory / CONFIG_NAME).write_text(" " * (1 << 20) + "{}")
        self.check(directory, r"adapter_config.json is too large: at most 1048576 bytes are allowed")

    @pytest.mark.parametrize("text", ["", "{", "nonsense", "\xff\xfe", "[" * 5000])
    def test_config_that_is_no_json(self, directory, text):
        (directory / CONFIG_NAME).write_bytes(text.encode("latin-1"))
        self.check(directory, r"is not valid JSON")

    def test_config_that_is_no_object(self, directory):
        (directory / CONFIG_NAME).write_text("[1, 2]")
        self.check(directory, r"must hold a JSON object, got list")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"peft_type": "LORA"}, r"is not a judge head: expected peft_type 'JUDGE', got 'LORA'"),
            ({"peft_type": "(drop)"}, r"is not a judge head: expected peft_type 'JUDGE', got 'None'"),
            ({"hidden_size": "(drop)"}, r"lacks 'hidden_size'"),
            ({"hidden_size": 0}, r"hidden_size must be between 1 and"),
            ({"hidden_size": 10**9}, r"hidden_size must be between 1 and"),
            ({"hidden_state": "middle"}, r"hidden_state must be one of \('post_norm', 'pre_norm'\), got 'middle'"),
            ({"threshold": 1.5}, r"threshold must be between 0 and 1, got 1.5"),
            ({"threshold": -0.1}, r"threshold must be between 0 and 1"),
            ({"threshold": float("nan")}, r"threshold must be between 0 and 1"),
            ({"format_version": 2}, r"format_version 2 is not known .*upgrade hf_judge"),
            ({"task_type": "SEQ_CLS"}, r"task_type must be 'CAUSAL_LM', got 'SEQ_CLS'"),
            ({"auto_mapping": {"a": "b"}}, r"has the key 'auto_mapping', which names code to import"),
            ({"auto_map": {"a": "b"}}, r"has the key 'auto_map', which names code to import"),
            ({"label": "x" * 5000}, r"label has 5000 characters"),
            ({"hidden_size": WIDTH + 1}, r"tensor '.*weight' has shape \[1, 32\], expected \[1, 33\]"),
        ],
        ids=str,
    )
    def test_config_values(self, directory, changes, message):
        rewrite_config(directory, **changes)
        self.check(directory, message)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_size": "32"}, r"hidden_size must be int, got str: '32'"),
            ({"hidden_size": True}, r"hidden_size must be int, got bool"),
            ({"threshold": "0.5"}, r"threshold must be a number between 0 and 1, got '0.5'"),
            ({"threshold": None}, r"threshold must be a number"),
            ({"format_version": 1.0}, r"format_version must be int, got float"),
            ({"label": 1}, r"label must be str, got int"),
            ({"provenance": "me"}, r"provenance must be dict, got str"),
            ({"base_model_name_or_path": 3}, r"base_model_name_or_path must be str, got int"),
        ],
        ids=str,
    )
    def test_config_types(self, directory, changes, message):
        rewrite_config(directory, **changes)
        self.check(directory, message, TypeError)

    @pytest.mark.parametrize("hidden_state", [[], {}, 3, None])
    def test_hidden_state_of_any_type(self, directory, hidden_state):
        rewrite_config(directory, hidden_state=hidden_state)
        self.check(directory, "hidden_state must be one of")

    def test_a_head_that_reads_the_draft_too_is_refused(self, directory):
        rewrite_config(directory, draft_hidden_size=None)  # as every head of earlier releases says
        JudgeHead.from_pretrained(directory)
        rewrite_config(directory, draft_hidden_size=4)
        self.check(directory, "reads the draft's state beside the target's.*train a head on the target's state alone")

    def test_reader_and_writer_are_inverse(self, tmp_path):
        weight, bias = torch.randn(1, 8), torch.randn(1)
        write_adapter(tmp_path, JudgeConfig(hidden_size=8), weight, bias)
        config, weight_again, bias_again = read_adapter(tmp_path)
        assert config == JudgeConfig(hidden_size=8)
        assert torch.equal(weight, weight_again)
        assert torch.equal(bias, bias_again)


class TestHead:
    def test_new_head_is_undecided(self):
        assert JudgeHead(JudgeConfig(hidden_size=8))(torch.randn(2, 3, 8)).tolist() == [[0.0] * 3] * 2

    def test_formula(self):
        head, hidden = random_head(bias=0.5), torch.randn(2, 5, WIDTH)
        torch.testing.assert_close(head(hidden), (hidden * head.weight[0]).sum(-1) + 0.5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_computes_in_float32(self, dtype):
        head, hidden = random_head(), torch.randn(3, WIDTH).to(dtype)
        logits = head(hidden)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, head(hidden.float()))

    def test_a_head_in_half_precision_still_computes_in_float32(self):
        assert random_head().half()(torch.randn(3, WIDTH)).dtype == torch.float32

    def test_answers_on_the_device_of_the_rows(self):
        """The meta device stands for another accelerator: where the rows are, the logits are."""
        assert random_head()(torch.empty(2, WIDTH, device="meta")).device.type == "meta"

    def test_wrong_width(self):
        with pytest.raises(ValueError, match="head expects hidden size 32, got states of size 31"):
            random_head()(torch.zeros(1, 31))

    def test_needs_a_config_with_a_width(self):
        with pytest.raises(ValueError, match="JudgeConfig.hidden_size is not set"):
            JudgeHead(JudgeConfig())
        with pytest.raises(TypeError, match="JudgeHead expects a JudgeConfig, got dict"):
            JudgeHead({"hidden_size": 8})

    def test_gradients_reach_both_parameters(self):
        head = JudgeHead(JudgeConfig(hidden_size=8))
        head(torch.randn(4, 8)).sum().backward()
        assert head.weight.grad.abs().sum() > 0
        assert head.bias.grad.abs().sum() > 0

    def test_config_of_another_adapter(self):
        with pytest.raises(ValueError, match="a judge head has peft_type 'JUDGE', got 'LORA': this is another adapter"):
            JudgeConfig(peft_type="LORA", hidden_size=8)

    def test_provenance_must_be_json(self):
        with pytest.raises(TypeError, match="provenance must hold JSON values only"):
            JudgeConfig(provenance={"a": object()})
        with pytest.raises(ValueError, match="provenance takes"):
            JudgeConfig(provenance={"a": "x" * (1 << 18)})


class TestGenerateArguments:
    @pytest.fixture(scope="class")
    @classmethod
    def call(cls):
        stock = tiny_model()
        target, draft = judged(stock), noisy_copy(stock)

        def generate(**kwargs):
            return target.generate(
                prompt(0), **{"assistant_model": draft, "max_new_tokens": 4, "do_sample": False} | kwargs
            )

        return generate

    def test_judge_as_directory_path_or_head(self, call, directory):
        texts = [call(judge=judge).tolist() for judge in (str(directory), directory, random_head(threshold=0.25))]
        assert texts[0] == texts[1] == texts[2]

    def test_another_hidden_size(self, call):
        head = random_head(width=16, base_model_name_or_path="someone/big-model")
        message = (
            "head expects hidden size 16, target has 32: it was trained for 'someone/big-model'; "
            "load that target or train a head for this one"
        )
        with pytest.raises(ValueError, match=message):
            call(judge=head)
        with pytest.raises(ValueError, match="it was trained for 'an unnamed model'"):
            call(judge=random_head(width=64))

    @pytest.mark.parametrize("judge", [3, 0.5, True, object(), JudgeHead, StrictVerifier, torch.nn.Linear(32, 1), []])
    def test_unknown_type(self, call, judge):
        with pytest.raises(TypeError, match=r"judge must be a Hub id or directory \(str\), a JudgeHead, a Cand"):
            call(judge=judge)

    @pytest.mark.parametrize("threshold", [-0.01, 1.01, float("nan"), float("inf")])
    def test_threshold_outside_its_range(self, call, threshold):
        with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
            call(judge=random_head(), judge_threshold=threshold)

    @pytest.mark.parametrize("threshold", ["0.5", [0.5], True])
    def test_threshold_of_another_type(self, call, threshold):
        with pytest.raises(TypeError, match="threshold must be a number between 0 and 1, got"):
            call(judge=random_head(), judge_threshold=threshold)

    def test_threshold_without_a_judge(self, call):
        for judge in (None, False):
            with pytest.raises(ValueError, match="judge_threshold was given without a judge: pass judge= as well"):
                call(judge=judge, judge_threshold=0.5)

    def test_threshold_for_another_rule(self, call):
        with pytest.raises(ValueError, match=r"judge_threshold is for judge heads; StrictVerifier\(\) has settings"):
            call(judge=StrictVerifier(), judge_threshold=0.5)
