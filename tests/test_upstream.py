"""Every fact about transformers and peft that the seam relies on, one test each.

On a new release, the tests that fail here are the list of what moved.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import noisy_copy, prompt, tiny_model
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    StopStringCriteria,
)

from hf_judge import JudgeLlamaForCausalLM, StrictVerifier, judged
from hf_judge.upstream import forward, generation, private_names, versions
from hf_judge.upstream.peft import adapters
from hf_judge.upstream.versions import CACHE

pytestmark = pytest.mark.contract  # also run on every supported transformers: make test-matrix

SEAM = Path(versions.__file__).parent


@pytest.fixture(scope="module")
def stock():
    return tiny_model()


def test_the_cache_has_this_name_in_forwards(stock):
    assert CACHE in inspect.signature(LlamaForCausalLM.forward).parameters
    assert forward.takes_cache(stock)


def test_the_cache_has_this_name_in_outputs(stock):
    cache = DynamicCache()
    outputs = stock(prompt(0), use_cache=True, **forward.with_cache(cache))
    assert forward.cache_of(outputs) is cache
    assert cache.get_seq_length() == prompt(0).shape[1]
    out = stock.generate(prompt(0), max_new_tokens=2, return_dict_in_generate=True)
    assert isinstance(forward.cache_of(out), DynamicCache)
    assert CACHE in private_names.GenerateDecoderOnlyOutput.__dataclass_fields__


def test_a_negative_crop_rolls_back(stock):
    cache = DynamicCache()
    stock(prompt(0), use_cache=True, **forward.with_cache(cache))
    cache.crop(-3)
    assert cache.get_seq_length() == prompt(0).shape[1] - 3
    cache.crop(0)
    assert cache.get_seq_length() == prompt(0).shape[1] - 3
    assert cache.is_croppable
    assert not cache.is_compileable
    cache.activate_past_recording()


def test_an_index_of_hidden_states_means_the_input_of_the_lm_head(stock):
    seen = []
    handle = stock.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    n_layers = stock.config.num_hidden_layers
    index = n_layers if versions.HIDDEN_STATES_COUNT_EMBEDDINGS else n_layers - 1
    outputs = stock(prompt(0), output_hidden_states=[index])
    handle.remove()
    assert forward.records_hidden_states(stock.get_decoder())
    assert torch.equal(outputs.hidden_states[-1], seen[0])


def test_pipelines_fill_in_defaults_or_not():
    from hf_judge.tiny import load_pair

    model = tiny_model()
    tokenizer = load_pair().tokenizer
    given = {}

    def generate(**kwargs):
        given.update(kwargs)
        return kwargs["input_ids"]

    model.generate = generate
    transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)("1 + 1 =", max_new_tokens=2)
    filled = getattr(given.get("generation_config"), "num_assistant_tokens", None)
    assert (filled == 20) is versions.PIPELINES_FILL_DEFAULTS


def test_a_callable_receives_the_prepared_call_but_not_these(stock):
    seen = {}

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, inputs_tensor, **kwargs):
        seen.update(kwargs, model=model, config=generation_config, inputs_tensor=inputs_tensor)
        assert isinstance(logits_processor, LogitsProcessorList)
        return input_ids

    out = stock.generate(
        prompt(0),
        custom_generate=decode,
        max_new_tokens=5,
        assistant_model=noisy_copy(stock),
        tokenizer=object(),
        assistant_tokenizer=object(),
        synced_gpus=False,
    )
    assert torch.equal(out, prompt(0))
    assert seen["model"] is stock
    assert torch.equal(seen["inputs_tensor"], prompt(0))
    assert seen["config"].max_length == prompt(0).shape[1] + 5
    assert forward.cache_of(seen).get_seq_length() == 0
    assert not {"assistant_model", "tokenizer", "assistant_tokenizer", "synced_gpus", "streamer"} & set(seen)
    # a mask of ones is dropped, and its length kept here
    assert seen["attention_mask"] is None
    assert forward.known_length(seen | {"position_ids": None}, seen["config"], prompt(0)[:, :1]) == prompt(0).shape[1]
    assert forward.stop_tokens(seen["config"]).tolist() == [stock.config.eos_token_id]


def test_a_setting_given_as_none_switches_off_the_models_own(stock):
    settings = GenerationConfig(stop_strings=["x"], cache_implementation="static")
    model = judged(tiny_model())
    model.generation_config.stop_strings = ["y"]
    call = generation.Call(model, model.generate, (prompt(0),), {"generation_config": settings})
    assert call.settings().stop_strings == ["x"]
    kwargs = call._overridden({"generation_config": settings}, "stop_strings")
    config, _ = private_names.private(model, "_prepare_generation_config")(**kwargs)
    assert config.stop_strings is None
    assert settings.stop_strings == ["x"]  # the caller's object is left alone


def test_stop_strings_are_a_public_criterion():
    parameters = inspect.signature(StopStringCriteria.__init__).parameters
    assert {"tokenizer", "stop_strings"} <= set(parameters)


def test_the_mode_tells_whether_something_drafts(stock):
    config = GenerationConfig(prompt_lookup_num_tokens=3)
    assert config.get_generation_mode(None) == private_names.GenerationMode.ASSISTED_GENERATION
    assert GenerationConfig().get_generation_mode(stock) == private_names.GenerationMode.ASSISTED_GENERATION
    assert GenerationConfig().get_generation_mode(None) == private_names.GenerationMode.GREEDY_SEARCH


def test_upstream_compares_the_vocabularies_of_target_and_assistant(stock):
    with pytest.raises(ValueError, match="have different tokenizers"):
        judged(stock).generate(prompt(0), assistant_model=tiny_model(vocab_size=80), judge=StrictVerifier())


def seam_privates() -> list[str]:
    """The private names that the seam reads by `private(owner, name)`, as "file:name"."""
    found = set()
    for path in sorted(SEAM.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "private":
                found.add(node.args[1].value)
    return sorted(found)


OWNERS = {
    "_attn_implementation": lambda model: model.config,
    "_eos_token_tensor": lambda model: _prepared(model),
    "_pad_token_tensor": lambda model: _prepared(model),
    "_can_record_outputs": lambda model: model.get_decoder(),
    "_orig_mod": lambda model: torch.compile(model),
    "_prefix_allowed_tokens_fn": lambda model: transformers.PrefixConstrainedLogitsProcessor(lambda row, ids: [1], 1),
}
ONLY_WHEN_SHARDED = {"_device_mesh"}  # tests of tensor parallelism read it


def _prepared(model: PreTrainedModel) -> GenerationConfig:
    config = GenerationConfig(eos_token_id=1, pad_token_id=2)
    private_names.private(model, "_prepare_special_tokens")(config, device="cpu")
    return config


@pytest.mark.parametrize("name", sorted(set(seam_privates()) - ONLY_WHEN_SHARDED))
def test_the_private_name_is_there(name, stock):
    private_names.private(OWNERS.get(name, lambda model: model)(stock), name)


def test_the_seam_is_read_for_private_names():
    assert {"_prepare_generation_config", "_eos_token_tensor", "_device_mesh"} <= set(seam_privates())


def test_generators_have_the_settings_that_are_changed(stock):
    draft = noisy_copy(stock)
    config, kwargs = private_names.private(stock, "_prepare_generation_config")(GenerationConfig(max_length=30))
    private_names.private(stock, "_prepare_special_tokens")(config, device="cpu")
    generator = private_names.AssistedCandidateGenerator(
        prompt(0), draft, config, {"attention_mask": torch.ones_like(prompt(0))}, logits_processor=LogitsProcessorList()
    )
    assert not generator.requires_model_outputs
    for owner, name in (
        (generator, "num_assistant_tokens"),
        (generator, "assistant_confidence_threshold"),
        (generator, "assistant_kwargs"),
        (generator, "logits_processor"),
        (generator.generation_config, "output_logits"),
        (generator.assistant_generation_config, "num_assistant_tokens_schedule"),
    ):
        assert hasattr(owner, name), name
    assert kwargs == {}


def test_the_single_position_generator_drafts_by_argmax():
    source = inspect.getsource(private_names.SinglePositionMultiTokenCandidateGenerator.get_candidates)
    assert "argmax" in source
    assert "multinomial" not in source


def test_pipelines_compare_class_names_with_a_list():
    private_names.let_pipelines_take("JudgeNothingForCausalLM")
    assert "JudgeNothingForCausalLM" in private_names.SUPPORTED_PEFT_TASKS["text-generation"]
    assert JudgeLlamaForCausalLM.__name__ in private_names.SUPPORTED_PEFT_TASKS["text-generation"]
    private_names.SUPPORTED_PEFT_TASKS["text-generation"].remove("JudgeNothingForCausalLM")


def test_a_causal_lm_is_found_by_its_name():
    assert private_names.causal_lm_class("LlamaForCausalLM") is LlamaForCausalLM
    assert private_names.causal_lm_class("LlamaModel") is None


def test_forwards_are_updated_with_the_cache(stock):
    outputs = stock(prompt(0), use_cache=True)
    kwargs = forward.updated_kwargs(stock, outputs, {"attention_mask": torch.ones_like(prompt(0))}, 2)
    assert forward.cache_of(kwargs) is forward.cache_of(outputs)
    assert kwargs["attention_mask"].shape[1] == prompt(0).shape[1] + 2


def test_kwargs_are_continued_and_cut():
    kwargs = {"attention_mask": torch.ones(1, 4), "position_ids": torch.arange(4)[None], "token_type_ids": None}
    longer = forward.lengthened(kwargs, 2)
    assert longer["attention_mask"].shape == (1, 6)
    assert longer["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5]]
    assert forward.of_length(longer, 3)["position_ids"].tolist() == [[0, 1, 2]]
    assert kwargs["attention_mask"].shape == (1, 4)


def outgrown_longrope() -> tuple:
    """A model, a text longer than its first angles serve, and a cache of its beginning."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
    model = tiny_model("phi3", original_max_position_embeddings=16, rope_parameters=rope)
    text, cache = prompt(0, 24), DynamicCache()
    model(text[:, :10], use_cache=True, **forward.with_cache(cache))
    return model, text, cache


def test_a_longrope_text_that_outgrows_its_cache_is_read_again():
    model, text, cache = outgrown_longrope()
    again = model.generate(text, max_new_tokens=6, do_sample=False, **forward.with_cache(cache))
    whole = model.generate(text, max_new_tokens=6, do_sample=False)
    assert torch.equal(again, whole) is versions.LONGROPE_READS_ALL_AGAIN


def test_where_it_is_not_read_again_a_judge_is_refused():
    model, text, cache = outgrown_longrope()
    options = {"max_new_tokens": 6, "do_sample": False, "prompt_lookup_num_tokens": 2, "judge": StrictVerifier()}
    if not versions.LONGROPE_READS_ALL_AGAIN:
        with pytest.raises(ValueError, match="install transformers 5.20 or newer"):
            judged(model).generate(text, **options, **forward.with_cache(cache))
        return
    got = judged(model).generate(text, **options, **forward.with_cache(cache))
    assert torch.equal(got, model.generate(text, max_new_tokens=6, do_sample=False))


def test_compile_configs_say_where_to_compile():
    config = forward.compiling_everywhere(transformers.CompileConfig())
    assert config._compile_all_devices is True
    assert "_compile_all_devices" in inspect.getsource(transformers.CompileConfig)


def test_the_peft_that_adapter_methods_ask_for_is_a_module_constant(monkeypatch):
    monkeypatch.setattr(adapters.adapter_methods, "MIN_PEFT_VERSION", "0.99.0")
    monkeypatch.setattr(adapters, "is_tested", lambda: True)
    monkeypatch.setattr(adapters, "peft_is_tested", lambda: True)
    with pytest.raises(ValueError, match=r"0\.99\.0"):
        tiny_model().set_adapter("x")
    adapters.accept_installed_peft()
    with pytest.raises(ValueError, match="No adapter loaded"):
        tiny_model().set_adapter("x")


def test_another_peft_is_not_accepted(monkeypatch):
    monkeypatch.setattr(adapters.adapter_methods, "MIN_PEFT_VERSION", "0.99.0")
    monkeypatch.setattr(adapters, "peft_is_tested", lambda: False)
    adapters.accept_installed_peft()
    assert adapters.adapter_methods.MIN_PEFT_VERSION == "0.99.0"


@pytest.fixture
def untested(monkeypatch):
    monkeypatch.setattr(versions, "INSTALLED", Version("7.1.0"))
    monkeypatch.setattr(versions, "_RELEASE", Version("7.1.0"))
    versions.warn_if_untested.cache_clear()
    yield
    versions.warn_if_untested.cache_clear()


def test_an_untested_version_is_warned_about_once_and_used(untested, caplog):
    model = judged(tiny_model())
    for _ in range(2):
        out = model.generate(prompt(0), assistant_model=noisy_copy(model), judge=StrictVerifier(), max_new_tokens=3)
    assert torch.equal(out, model.generate(prompt(0), max_new_tokens=3))
    warnings = [record.getMessage() for record in caplog.records if record.name == versions.__name__]
    assert len(warnings) == 1
    assert "transformers 7.1.0 is installed, hf_judge was tested with 5.19 to 5." in warnings[0]
    assert "`hf-judge doctor`" in warnings[0]


def test_what_moved_is_named_with_versions_and_remedy(untested):
    with pytest.raises(ImportError, match=r"transformers 7\.1\.0 does not have \(.*_no_such_name\); tested: .*Install"):
        private_names.private(tiny_model(), "_no_such_name")


def test_a_tested_version_is_not_warned_about(caplog):
    versions.warn_if_untested.cache_clear()
    versions.warn_if_untested()
    assert versions.is_tested() is (not caplog.records)
