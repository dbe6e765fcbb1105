"""Quantised targets: the judge reads their states as they are, and a head knows which ones it was trained on."""

import pytest
import torch
from naive import NaiveModel, naive_judged
from test_labelling_responses import TOKENIZER
from test_training_features import all_features, naive, rows
from tiny_models import EOS, noisy_copy, prompt, random_head, tiny_model
from transformers import AutoModelForCausalLM, TorchAoConfig

from hf_judge import AutoJudgeModelForCausalLM, JudgeCandidateVerifier, JudgeConfig, JudgeHead, judged
from hf_judge.head.compatibility import quantization_of
from hf_judge.training.extraction import extract_features
from hf_judge.training.fit import JudgeTrainingArguments, train_judge

ENGINES = ("ragged", "upstream")
INT8 = "torchao Int8WeightOnlyConfig"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("target")
    tiny_model(vocab_size=len(TOKENIZER)).save_pretrained(path)
    return path


def load(auto_class, directory):
    """The model with int8 weights, which are dequantised on the fly."""
    torchao = pytest.importorskip("torchao.quantization")
    return auto_class.from_pretrained(
        directory, quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig()), device_map="cpu"
    )


@pytest.fixture(scope="module")
def quantized(directory):
    return load(AutoJudgeModelForCausalLM, directory)


class TestGeneration:
    CALL = {"max_new_tokens": 16, "do_sample": False, "num_assistant_tokens": 4}

    @pytest.mark.parametrize("engine", ENGINES)
    def test_never_judge_is_plain(self, directory, quantized, engine):
        draft = noisy_copy(tiny_model(vocab_size=len(TOKENIZER)))
        plain = load(AutoModelForCausalLM, directory).generate(prompt(0), max_new_tokens=16, do_sample=False)
        never = JudgeCandidateVerifier(random_head(), 1)
        out = quantized.generate(prompt(0), assistant_model=draft, judge=never, judge_engine=engine, **self.CALL)
        assert out.tolist() == plain.tolist()
        assert never.stats.accepted > 0

    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_states_are_the_quantised_models(self, directory, quantized, engine):
        """The answer is that of a loop without caches over the quantised model."""
        draft = noisy_copy(tiny_model(vocab_size=len(TOKENIZER)))
        head = random_head(scale=3.0)
        options = {"assistant_confidence_threshold": 0.0, "num_assistant_tokens_schedule": "constant"}
        out = quantized.generate(
            prompt(0), assistant_model=draft, judge=head, judge_engine=engine, **self.CALL, **options
        )
        stock = load(AutoModelForCausalLM, directory)
        expected = naive_judged(
            NaiveModel(stock),
            NaiveModel(draft),
            prompt(0)[0].tolist(),
            weight=head.weight,
            bias=head.bias,
            threshold=0.5,
            n_draft=4,
            max_new_tokens=16,
            eos=(EOS,),
        )
        assert out[0, prompt(0).shape[1] :].tolist() == expected.new_tokens
        assert "rescued" in expected.kinds


def test_a_head_records_the_quantisation_it_was_trained_on(directory, quantized, tmp_path, caplog):
    store, _ = extract_features(quantized, TOKENIZER, rows(40), tmp_path / "features")
    states, *_ = naive(load(AutoModelForCausalLM, directory), "post_norm", rows(40))
    assert torch.allclose(all_features(store), states, atol=1e-4)
    original = AutoJudgeModelForCausalLM.from_pretrained(directory)
    assert not torch.allclose(naive(original, "post_norm", rows(40))[0], states, atol=1e-3)
    arguments = JudgeTrainingArguments(str(tmp_path / "head"), l2_grid=(0.1,), validation_fraction=0.3, seed=3)
    train_judge(store, arguments)
    head = JudgeHead.from_pretrained(tmp_path / "head")
    assert head.config.quantization == INT8
    quantized.resolve_judge(head)
    assert "quantization" not in caplog.text
    original.resolve_judge(head)
    assert f"trained on a target with quantization '{INT8}', this target has quantization 'none'" in caplog.text


CONFIGS = {
    "none": None,
    "bitsandbytes 8-bit": {"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"},
    "bitsandbytes 4-bit nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "gptq 4-bit": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "quanto int8": {"quant_method": "quanto", "weights": "int8", "activations": None},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    INT8: {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2}}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_names(name):
    model = tiny_model()
    if CONFIGS[name] is not None:
        model.config.quantization_config = CONFIGS[name]
    assert quantization_of(model) == name


def test_a_mismatch_warns_once_or_is_refused(caplog):
    target, head = judged(tiny_model()), random_head(quantization="gptq 3-bit", base_model_name_or_path="some/target")
    target.config.name_or_path = "some/target"
    for _ in range(2):
        target.resolve_judge(head)
    assert caplog.text.count("quantization 'gptq 3-bit', this target has quantization 'none'") == 1
    head.strict_base = True
    with pytest.raises(ValueError, match="quantization 'gptq 3-bit'.*load the target as it was, or set strict_base"):
        target.resolve_judge(head)


def test_the_config_keeps_it(tmp_path):
    random_head(quantization=INT8).save_pretrained(tmp_path)
    assert JudgeConfig.from_pretrained(tmp_path).quantization == INT8
    with pytest.raises(TypeError, match="quantization must be str, got int"):
        JudgeConfig(quantization=8)
