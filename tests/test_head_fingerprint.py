"""Which model a head belongs to is decided by the weights: casts and copies pass, strangers do not."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import hub_fixtures as fx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, OPTConfig

from hf_judge import JudgeHead, JudgeLlamaForCausalLM, judged
from hf_judge.head import compatibility
from hf_judge.head.fingerprint import EMBEDDING, fingerprint_of, same_weights
from hf_judge.tiny import load_pair
from hf_judge.tiny.pair import HOME


@pytest.fixture(autouse=True)
def every_warning_is_said_again():
    compatibility._warn_once.cache_clear()


@pytest.fixture(scope="module")
def pair():
    return load_pair(4)


def head_of(target, draft=None, **config) -> JudgeHead:
    own = {"fingerprint": fingerprint_of(target), "draft_fingerprint": fingerprint_of(draft) if draft else None}
    return fx.random_head(**{"base_model_name_or_path": "user/base"} | own | config)


def saved(folder, seed: int):
    fx.tiny_target(seed).save_pretrained(folder)
    return JudgeLlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_cast_keeps_the_fingerprint(dtype):
    target = fx.tiny_target()
    assert same_weights(fingerprint_of(target), fx.tiny_target().to(dtype)) is True
    assert same_weights(fingerprint_of(fx.tiny_target().to(dtype)), target) is True


def test_the_fingerprint_follows_the_weights():
    target, recorded = fx.tiny_target(), fingerprint_of(fx.tiny_target())
    assert same_weights(recorded, fx.tiny_target(1)) is False
    assert fingerprint_of(target) == recorded
    with torch.no_grad():  # a training step as small as they come: 1% of the weights' spread, in one layer
        weight = target.model.layers[1].mlp.down_proj.weight
        weight += 0.01 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert same_weights(recorded, target) is False, "a kept result must not outlive the weights"


def test_views_adapters_and_further_tokens_keep_the_fingerprint():
    target = fx.tiny_target()
    recorded = fingerprint_of(target)
    assert same_weights(recorded, judged(target)) is True
    with_adapter = get_peft_model(fx.tiny_target(), LoraConfig(target_modules=["q_proj", "down_proj"]))
    assert fingerprint_of(with_adapter) == recorded
    target.resize_token_embeddings(fx.VOCAB + 8)
    assert same_weights(recorded, target) is True


def test_what_cannot_be_read_is_left_out():
    target, recorded = fx.tiny_target(), fingerprint_of(fx.tiny_target())
    for layer in target.model.layers:  # as a library of quantisation leaves it
        layer.self_attn.q_proj.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    assert {EMBEDDING, "layers.0.mlp.down_proj.weight"} < fingerprint_of(target).keys()
    assert same_weights(recorded, target) is True
    assert same_weights(recorded, fx.tiny_target().to("meta")) is None
    assert same_weights({}, target) is None


@pytest.mark.parametrize(
    "config", [GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32), OPTConfig(hidden_size=16, ffn_dim=16,
    num_hidden_layers=2, num_attention_heads=2, vocab_size=32, word_embed_proj_dim=16)], ids=["gpt2", "opt"]
)  # fmt: skip
def test_other_architectures_have_one(config):
    torch.manual_seed(0)
    one, other = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    assert len(fingerprint_of(one)) > 3
    assert same_weights(fingerprint_of(one), other) is False


def test_a_saved_target_passes_and_a_stranger_of_its_name_does_not(tmp_path, caplog):
    own, stranger = saved(tmp_path / "elsewhere", 0), saved(tmp_path / "base", 1)
    head = head_of(own)
    with caplog.at_level(logging.WARNING):
        own.resolve_judge(head)
    assert caplog.records == []
    assert compatibility.doubts(head, own) == []
    with caplog.at_level(logging.WARNING):
        stranger.resolve_judge(head)
    assert "trained for 'user/base', and the weights of the target" in caplog.text
    head.strict_base = True
    own.resolve_judge(head)
    with pytest.raises(ValueError, match="are others: load that one, or set strict_base=False"):
        stranger.resolve_judge(head)


def test_a_head_without_a_fingerprint_goes_by_the_name(tmp_path, caplog):
    head = fx.random_head(base_model_name_or_path="user/base")
    with caplog.at_level(logging.WARNING):
        saved(tmp_path / "base", 1).resolve_judge(head)
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        saved(tmp_path / "other", 0).resolve_judge(head)
    assert "the target is '" in caplog.text


def test_another_draft_is_told(caplog):
    target, draft = judged(fx.tiny_target()), fx.noisy_draft(fx.tiny_target())
    head = head_of(target, draft, draft_name_or_path="user/draft")
    call = {"input_ids": fx.prompt(), "judge": head, "max_new_tokens": 4, "do_sample": False}
    with caplog.at_level(logging.WARNING):
        target.generate(assistant_model=draft, **call)
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        target.generate(assistant_model=fx.tiny_target(3), **call)
    assert "trained for the draft 'user/draft', this draft is 'unnamed'" in caplog.text


def test_the_embedded_judge_knows_its_pair(pair, tmp_path):
    head = JudgeHead.from_pretrained(pair.judge)
    assert compatibility.doubts(head, pair.target, pair.draft) == []
    assert compatibility.doubts(head, load_pair(6, torch.bfloat16).target) == [], "at any depth and dtype"
    pair.target.save_pretrained(tmp_path / "copy")
    assert compatibility.doubts(head, JudgeLlamaForCausalLM.from_pretrained(tmp_path / "copy")) == []
    torch.manual_seed(0)
    stranger = JudgeLlamaForCausalLM(AutoConfig.from_pretrained(HOME / "target"))
    stranger.save_pretrained(tmp_path / "target")
    stranger = JudgeLlamaForCausalLM.from_pretrained(tmp_path / "target")
    assert len(compatibility.doubts(head, stranger, stranger)) == 2


@pytest.mark.parametrize(
    ("value", "error"),
    [("x", TypeError), ({"a": 1}, TypeError), ({"a": "zz"}, ValueError), ({"a": "0" * 17}, ValueError)],
)
def test_a_config_refuses_what_is_no_fingerprint(tmp_path, value, error):
    fx.random_head().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": value}))
    with pytest.raises(error, match="fingerprint must"):
        JudgeHead.from_pretrained(tmp_path)


def test_a_config_of_before_is_read(tmp_path):
    head = fx.random_head()
    head.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    for name in ("fingerprint", "draft_fingerprint", "draft_name_or_path"):
        del values[name]
    path.write_text(json.dumps(values))
    assert dataclasses.asdict(JudgeHead.from_pretrained(tmp_path).config) == dataclasses.asdict(head.config)
    shutil.rmtree(tmp_path)
