"""JUDGE as a PEFT method: every way in and out, with the base model untouched."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import threading

import hub_fixtures as fx
import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel, pipeline

import hf_judge.integrations.peft_method
from hf_judge import JudgeConfig, JudgeHead, JudgeLlamaForCausalLM, StrictVerifier, judged
from hf_judge.integrations.peft_method import register
from hf_judge.upstream.peft import installed as installed_peft

pytestmark = pytest.mark.contract  # also run on every supported transformers: make test-matrix


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    return fx.save_pair(tmp_path_factory.mktemp("pair"))[0]


@pytest.fixture(scope="module")
def draft():
    return fx.noisy_draft(fx.tiny_target())


@pytest.fixture(scope="module")
def head_dir(tmp_path_factory, base_dir):
    """One head, and another with the threshold of strict verification in the folder `strict`."""
    folder = tmp_path_factory.mktemp("head")
    fx.random_head(base_model_name_or_path=str(base_dir)).save_pretrained(folder)
    fx.random_head(3, threshold=1.0, base_model_name_or_path=str(base_dir)).save_pretrained(folder / "strict")
    return folder


@pytest.fixture
def base(base_dir):
    return AutoModelForCausalLM.from_pretrained(base_dir).eval()


@pytest.fixture(scope="module")
def tokens(draft, head_dir):
    """What generation gives: plain, with the head, with the other head. All three differ."""
    target = judged(fx.tiny_target())
    kwargs = {"max_new_tokens": 24, "do_sample": False}
    plain = target.generate(fx.prompt(), judge=False, **kwargs)
    with_head = target.generate(fx.prompt(), assistant_model=draft, judge=str(head_dir), **kwargs)
    strict = target.generate(fx.prompt(), assistant_model=draft, judge=str(head_dir / "strict"), **kwargs)
    assert not torch.equal(plain, with_head)
    assert torch.equal(plain, strict)
    return {"plain": plain, "head": with_head}


def generate(model, draft=None, **kwargs):
    return model.generate(input_ids=fx.prompt(), assistant_model=draft, max_new_tokens=24, do_sample=False, **kwargs)


def holds_head(model, folder) -> bool:
    """Whether the active head of a model is the one in a folder."""
    active, expected = model.active_judge_head(), JudgeHead.from_pretrained(folder)
    return torch.equal(active.weight, expected.weight) and torch.equal(active.bias, expected.bias)


def test_registration_is_idempotent_and_complete():
    register()
    register()
    assert list(PeftType).count("JUDGE") == 1
    assert PeftType("JUDGE") is PeftType.JUDGE
    assert PeftType.JUDGE == "JUDGE"
    assert "JUDGE" in [t.value for t in PeftType]
    assert pickle.loads(pickle.dumps(PeftType.JUDGE)) is PeftType.JUDGE
    assert copy.deepcopy(PeftType.JUDGE) is PeftType.JUDGE
    assert json.dumps(PeftType.JUDGE) == '"JUDGE"'
    config = JudgeConfig(hidden_size=4)
    assert config.peft_type is PeftType.JUDGE
    assert config.peft_type == "JUDGE"
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)


@pytest.mark.parametrize(("version", "message"), [("0.19.1", "peft 0.19.1 is not supported"), (None, "not installed")])
def test_other_peft_versions_are_named_with_the_remedy(monkeypatch, version, message):
    def installed(name):
        if version is None:
            raise installed_peft.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(installed_peft.importlib.metadata, "version", installed)
    with pytest.raises(ImportError, match=rf"{message}.*pip install 'peft>="):
        installed_peft.require_peft()


@pytest.mark.parametrize("version", ["0.20.0", "0.21.2", "0.21.3.dev0"])
def test_supported_peft_versions(monkeypatch, version):
    monkeypatch.setattr(installed_peft.importlib.metadata, "version", lambda name: version)
    assert installed_peft.peft_problem() is None


def test_a_newer_peft_is_tried_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(installed_peft.importlib.metadata, "version", lambda name: "0.77.1")
    assert installed_peft.peft_problem() is None
    assert "peft 0.77.1 is installed, hf_judge was tested with 0.20 <= peft < 0.22" in caplog.text


def test_another_peft_is_warned_about_on_import(monkeypatch, caplog):
    monkeypatch.setattr(hf_judge.integrations.peft_method, "PEFT_TYPES", {"LORA": "LORA"})
    monkeypatch.setattr(hf_judge.integrations.peft_method, "peft_problem", lambda: "peft 0.19.1 is not supported")
    register()
    assert "PEFT does not know judge heads: peft 0.19.1 is not supported" in caplog.text


def test_a_head_loads_without_peft(head_dir):
    code = """
import importlib.metadata, sys
sys.modules["peft"] = None  # as if it were not installed
real = importlib.metadata.version
def version(name):
    if name == "peft":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
import hf_judge
head = hf_judge.JudgeHead.from_pretrained(sys.argv[1])
assert head.config.peft_type == "JUDGE" and type(head.config.peft_type) is str
"""
    done = subprocess.run([sys.executable, "-c", code, str(head_dir)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "peft" not in done.stderr


def test_get_peft_model(base, draft):
    ids = fx.prompt()
    before = base(ids).logits
    model = get_peft_model(base, JudgeConfig())
    assert torch.equal(model(ids).logits, before)
    assert type(base) is JudgeLlamaForCausalLM
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "base_model.model.judge.judge_head.default.weight",
        "base_model.model.judge.judge_head.default.bias",
    ]
    status = model.get_model_status()
    assert status.active_adapters == ["default"]
    assert status.trainable_params == fx.WIDTH + 1
    assert [s.name for s in model.get_layer_status()] == ["model.judge"]
    # an untrained head scores 0.5 everywhere, which is not above the threshold 0.5
    assert torch.equal(generate(model, draft), generate(model, judge=False))


def test_several_heads(base, draft, head_dir, tokens):
    before = base(fx.prompt()).logits
    model = PeftModel.from_pretrained(base, head_dir)
    loaded = model.load_adapter(head_dir, "strict", subfolder="strict")
    assert not loaded.missing_keys or all("judge" not in key for key in loaded.missing_keys)
    assert not loaded.unexpected_keys
    assert torch.equal(model(fx.prompt()).logits, before)
    assert holds_head(base, head_dir)
    assert torch.equal(generate(model, draft), tokens["head"])
    model.set_adapter("strict")
    assert holds_head(base, head_dir / "strict")
    assert torch.equal(generate(model, draft), tokens["plain"])
    model.set_adapter("default")
    with model.disable_adapter():
        assert base.active_judge_head() is None
        assert torch.equal(generate(model, draft), tokens["plain"])
    assert torch.equal(generate(model, draft), tokens["head"])
    model.delete_adapter("default")
    assert model.active_adapters == ["strict"]
    assert isinstance(base, JudgeLlamaForCausalLM)
    model.delete_adapter("strict")
    assert type(base) is LlamaForCausalLM
    assert "judge" not in dict(base.named_children())
    model.load_adapter(head_dir, "again")
    model.set_adapter("again")
    assert torch.equal(generate(model, draft), tokens["head"])


def test_judge_argument_through_a_peft_model(base, draft, head_dir, tokens):
    model = PeftModel.from_pretrained(base, head_dir)
    assert torch.equal(generate(model, draft, judge=False), tokens["plain"])
    assert torch.equal(generate(model, draft, judge=StrictVerifier()), tokens["plain"])
    assert torch.equal(generate(model, draft, judge_threshold=1.0), tokens["plain"])
    assert torch.equal(generate(model, draft, judge=str(head_dir)), tokens["head"])


@pytest.mark.parametrize("options", [{"adapter_name": "mine"}, {"low_cpu_mem_usage": True}, {"is_trainable": True}])
def test_peft_from_pretrained_options(base, draft, head_dir, tokens, options):
    model = PeftModel.from_pretrained(base, head_dir, **options)
    assert model.active_adapters == [options.get("adapter_name", "default")]
    weight = base.active_judge_head().weight
    assert weight.device.type == "cpu"
    assert weight.requires_grad == options.get("is_trainable", False)
    assert torch.equal(generate(model, draft), tokens["head"])


def test_auto_peft_and_auto_model(base_dir, draft, head_dir, tokens):
    model = AutoPeftModelForCausalLM.from_pretrained(head_dir)
    assert torch.equal(generate(model, draft), tokens["head"])
    assert type(PeftConfig.from_pretrained(head_dir)) is JudgeConfig
    model = AutoModelForCausalLM.from_pretrained(head_dir)
    assert type(model) is JudgeLlamaForCausalLM
    assert torch.equal(generate(model, draft), tokens["head"])
    model = JudgeLlamaForCausalLM.from_pretrained(head_dir)
    assert torch.equal(generate(model, draft), tokens["head"])


def test_transformers_adapters(base, draft, head_dir, tokens):
    ids = fx.prompt()
    before = base(ids).logits
    base.load_adapter(str(head_dir))
    base.load_adapter(str(head_dir), adapter_name="strict", adapter_kwargs={"subfolder": "strict"})
    assert torch.equal(base(ids).logits, before)
    base.set_adapter("default")
    assert torch.equal(generate(base, draft), tokens["head"])
    base.set_adapter("strict")
    assert holds_head(base, head_dir / "strict")
    assert torch.equal(generate(base, draft), tokens["plain"])
    base.set_adapter("default")
    base.disable_adapters()
    assert torch.equal(generate(base, draft), tokens["plain"])
    base.enable_adapters()
    assert torch.equal(generate(base, draft), tokens["head"])
    base.set_adapter(["default", "strict"])
    with pytest.raises(ValueError, match="several judge heads are active"):
        generate(base, draft)
    base.delete_adapter("strict")
    base.delete_adapter("default")
    assert type(base) is LlamaForCausalLM
    assert torch.equal(base(ids).logits, before)


def test_a_judge_class_stays_one(base_dir, head_dir, draft, tokens):
    model = JudgeLlamaForCausalLM.from_pretrained(base_dir)
    model.load_adapter(str(head_dir))
    assert torch.equal(generate(model, draft), tokens["head"])
    model.delete_adapter("default")
    assert type(model) is JudgeLlamaForCausalLM
    assert torch.equal(generate(model, draft), tokens["plain"])


def test_default_judge_comes_before_the_active_adapter(base_dir, head_dir, draft, tokens):
    model = JudgeLlamaForCausalLM.from_pretrained(head_dir, judge=StrictVerifier())
    assert torch.equal(generate(model, draft), tokens["plain"])


def test_an_active_adapter_steps_aside_where_nothing_is_drafted(base, head_dir):
    plain = generate(base)
    base.load_adapter(str(head_dir))
    assert torch.equal(generate(base), plain)
    two = fx.prompt().repeat(2, 1)
    assert base.generate(two, max_new_tokens=3, do_sample=False, num_beams=2).shape == (2, 13)


def test_adapter_files_written_by_peft_and_transformers(base, base_dir, head_dir, tmp_path):
    AutoModelForCausalLM.from_pretrained(head_dir).save_pretrained(tmp_path / "transformers")
    model = PeftModel.from_pretrained(base, head_dir)
    model.load_adapter(head_dir, "strict", subfolder="strict")
    model.save_pretrained(tmp_path / "peft")
    for folder in (tmp_path / "peft", tmp_path / "peft" / "strict", tmp_path / "transformers"):
        source = head_dir / "strict" if folder.name == "strict" else head_dir
        again = JudgeHead.from_pretrained(folder)
        assert torch.equal(again.weight, JudgeHead.from_pretrained(source).weight)
        assert again.config.threshold == JudgeHead.from_pretrained(source).config.threshold
    with safe_open(tmp_path / "peft" / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == {
            "base_model.model.judge.judge_head.weight",
            "base_model.model.judge.judge_head.bias",
        }


def test_a_trained_adapter_is_a_head(base, tmp_path):
    model = get_peft_model(base, JudgeConfig())
    with torch.no_grad():
        model.get_submodule("base_model.model.judge.judge_head.default").weight.fill_(0.25)
    model.save_pretrained(tmp_path)
    head = JudgeHead.from_pretrained(tmp_path)
    assert head.config.hidden_size == fx.WIDTH
    assert torch.equal(head.weight, torch.full((1, fx.WIDTH), 0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_stays_float32_on_a_half_precision_target(base_dir, head_dir, dtype):
    stock = AutoModelForCausalLM.from_pretrained(base_dir, dtype=dtype)
    by_peft = PeftModel.from_pretrained(stock, head_dir).get_base_model()
    by_auto = AutoModelForCausalLM.from_pretrained(head_dir, dtype=dtype)
    by_transformers = AutoModelForCausalLM.from_pretrained(base_dir, dtype=dtype)
    by_transformers.load_adapter(str(head_dir))
    for model in (by_peft, by_auto, by_transformers):
        assert model.lm_head.weight.dtype == dtype
        assert holds_head(model, head_dir), model


def test_lora_and_judge_together(base_dir, base, draft, head_dir, tmp_path):
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), LoraConfig(target_modules=["q_proj"], r=2))
    torch.manual_seed(0)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    lora.save_pretrained(tmp_path)
    plain = generate(lora)
    expected = generate(judged(lora), draft, judge=str(head_dir))
    assert torch.equal(generate(judged(lora), draft, judge=False), plain)
    for order in ([tmp_path, head_dir], [head_dir, tmp_path]):
        model = AutoModelForCausalLM.from_pretrained(base_dir)
        for folder in order:
            model.load_adapter(str(folder), adapter_name="lora" if folder == tmp_path else "a_head")
        assert {str(c.peft_type.value) for c in model.peft_config.values()} == {"LORA", "JUDGE"}
        assert torch.equal(generate(model, draft), expected)
        model.set_adapter(["lora", "a_head"])
        assert torch.equal(generate(model, draft), expected)
        model.set_adapter("lora")
        assert torch.equal(generate(model, draft), plain)
        model.set_adapter(["lora", "a_head"])
        model.delete_adapter("lora")
        assert torch.equal(generate(model), generate(base))


def test_judged_of_a_peft_model_with_a_head(base, draft, head_dir, tokens):
    assert torch.equal(generate(judged(PeftModel.from_pretrained(base, head_dir)), draft), tokens["head"])


def test_inject_and_state_dict(base):
    inject_adapter_in_model(JudgeConfig(), base)
    assert isinstance(base, JudgeLlamaForCausalLM)
    assert set(get_peft_model_state_dict(base)) == {"judge.judge_head.weight", "judge.judge_head.bias"}


def test_add_adapter(base):
    base.add_adapter(JudgeConfig(threshold=0.25), "mine")
    assert base.active_judge_head().config.threshold == 0.25
    assert [n for n, p in base.named_parameters() if p.requires_grad] == [
        "judge.judge_head.mine.weight",
        "judge.judge_head.mine.bias",
    ]


def test_merge_is_refused_and_unload_gives_the_model_back(base, head_dir):
    model = PeftModel.from_pretrained(base, head_dir)
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_adapter()
    given_back = model.unload()
    assert given_back is base
    assert type(base) is LlamaForCausalLM
    assert "judge" not in dict(base.named_children())


def test_what_does_not_fit_is_refused_and_leaves_the_model_alone(head_dir):
    other = fx.tiny_target(hidden_size=16, intermediate_size=16)
    for attempt in (
        lambda: PeftModel.from_pretrained(other, head_dir),
        lambda: other.load_adapter(str(head_dir)),
        lambda: get_peft_model(other, JudgeConfig(hidden_size=5)),
    ):
        with pytest.raises(ValueError, match="head expects hidden size (32|5), target has 16: it was trained for"):
            attempt()
        assert type(other) is LlamaForCausalLM
        assert "judge" not in dict(other.named_children())
    with pytest.raises(TypeError, match="a judge needs a transformers model that generates, got LlamaModel"):
        get_peft_model(LlamaModel(other.config), JudgeConfig())


def test_another_base_is_warned_about_once(base, head_dir, tmp_path, caplog):
    head = fx.random_head(base_model_name_or_path="someone/else-7b")
    head.save_pretrained(tmp_path)
    for _ in range(2):
        judged(base).resolve_judge(str(tmp_path))
    assert caplog.text.count("trained for 'someone/else-7b'") == 1
    strict = JudgeHead.from_pretrained(tmp_path, strict_base=True)
    with pytest.raises(ValueError, match="trained for 'someone/else-7b', the target is .*strict_base=False"):
        judged(base).resolve_judge(strict)


def test_another_commit_is_warned_about(base, caplog):
    base.config._name_or_path, base.config._commit_hash = "a/b", "1" * 40
    judged(base).resolve_judge(fx.random_head(base_model_name_or_path="a/b", revision="1" * 40))
    assert not caplog.text
    head = fx.random_head(base_model_name_or_path="a/b", revision="2" * 40)
    judged(base).resolve_judge(head)
    assert f"'a/b' at commit {'2' * 40}, the target is at {'1' * 40}" in caplog.text
    head.strict_base = True
    with pytest.raises(ValueError, match="the target is at 1111"):
        judged(base).resolve_judge(head)


@pytest.mark.parametrize("known", ["head", "target"])
def test_strict_base_needs_both_names(base, known):
    if known == "head":
        base.config._name_or_path = ""
    head = fx.random_head(base_model_name_or_path="a/b" if known == "head" else None)
    head.strict_base = True
    with pytest.raises(ValueError, match=f"the {'target' if known == 'head' else 'head'} does not say which model"):
        judged(base).resolve_judge(head)


def test_threads_share_a_model_with_heads(base, draft, head_dir, tokens):
    model = PeftModel.from_pretrained(base, head_dir).get_base_model()
    state = set(model.__dict__)
    results = {}

    def run(i):
        judge = False if i % 2 else None
        results[i] = [generate(model, draft if judge is None else None, judge=judge) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, outputs in results.items():
        for output in outputs:
            assert torch.equal(output, tokens["plain" if i % 2 else "head"])
    assert set(model.__dict__) == state


def test_a_model_with_a_head_pickles_and_copies(base, draft, head_dir, tokens):
    base.load_adapter(str(head_dir))
    for again in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert torch.equal(generate(again, draft), tokens["head"])
        again.delete_adapter("default")
        assert type(again) is LlamaForCausalLM
    assert torch.equal(generate(base, draft), tokens["head"])
    gc.collect()


def test_saved_default_judge_comes_back(base_dir, head_dir, draft, tokens, tmp_path):
    model = JudgeLlamaForCausalLM.from_pretrained(base_dir, judge=str(head_dir))
    model.save_pretrained(tmp_path)
    again = JudgeLlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(generate(again, draft), tokens["head"])
    again = hf_judge.AutoJudgeModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(generate(again, draft), tokens["head"])
    assert JudgeLlamaForCausalLM.from_pretrained(tmp_path, judge=False).default_judge is None
    # anywhere else it is the plain model it was
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM
    model.default_judge = model.default_judge.with_threshold(1.0)
    model.save_pretrained(tmp_path)
    assert torch.equal(generate(JudgeLlamaForCausalLM.from_pretrained(tmp_path), draft), tokens["plain"])


def test_a_default_judge_that_is_no_head_is_not_saved(base_dir, tmp_path, caplog):
    model = JudgeLlamaForCausalLM.from_pretrained(base_dir, judge=StrictVerifier())
    model.save_pretrained(tmp_path)
    assert "StrictVerifier() is not a judge head and was not saved" in caplog.text
    assert JudgeLlamaForCausalLM.from_pretrained(tmp_path).default_judge is None


def pipelines(base, base_dir, head_dir):
    """Every kind of model that pipeline() takes, with the head as its own judge."""
    yield JudgeLlamaForCausalLM.from_pretrained(base_dir, judge=str(head_dir))
    yield PeftModel.from_pretrained(base, head_dir)
    yield str(head_dir)


def test_pipelines(base, base_dir, head_dir, draft, tokens, caplog):
    tokenizer = fx.tiny_tokenizer()
    text = tokenizer.decode(fx.prompt()[0])
    options = {"max_new_tokens": 24, "do_sample": False, "return_full_text": False}
    expected = {name: tokenizer.decode(ids[0, 10:], skip_special_tokens=True) for name, ids in tokens.items()}
    for model in pipelines(base, base_dir, head_dir):
        pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu", assistant_model=draft)
        assert pipe(text, **options)[0]["generated_text"] == expected["head"], model
        assert pipe(text, judge=False, **options)[0]["generated_text"] == expected["plain"]
        assert [row[0]["generated_text"] for row in pipe([text, text], **options)] == [expected["head"]] * 2
        pipe = pipeline(
            "text-generation", model=model, tokenizer=tokenizer, device="cpu", assistant_model=draft, judge=False
        )
        assert pipe(text, **options)[0]["generated_text"] == expected["plain"]
        assert pipe(text, judge=str(head_dir), **options)[0]["generated_text"] == expected["head"]
    assert "not supported for text-generation" not in caplog.text


def test_pipeline_with_chat_and_streamer(base_dir, head_dir, draft, caplog):
    from transformers import TextStreamer

    class Keep(TextStreamer):
        text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    model = JudgeLlamaForCausalLM.from_pretrained(base_dir)
    tokenizer = fx.tiny_tokenizer()
    pipe = pipeline(
        "text-generation", model=model, tokenizer=tokenizer, device="cpu", assistant_model=draft, judge=str(head_dir)
    )
    streamer = Keep(tokenizer, skip_prompt=True, skip_special_tokens=True)
    chat = [{"role": "user", "content": "w5 w6 w7"}]
    out = pipe(chat, max_new_tokens=12, do_sample=False, streamer=streamer)
    answer = out[0]["generated_text"][-1]
    assert answer["role"] == "assistant"
    assert streamer.text.strip() == answer["content"].strip() != ""
    # no error log about the class, and none about the names of other architectures made at run time
    judged(AutoModelForCausalLM.from_pretrained(base_dir))
    assert "not supported for" not in caplog.text
