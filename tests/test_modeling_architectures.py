"""Architectures, and what a user may do with a Judge model: save, pickle, wrap, put into a pipeline."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from naive import NaiveModel, naive_judged
from tiny_models import (
    ARCHITECTURES,
    EOS,
    WHOLLY_OFFLOADED,
    WIDTH,
    always_head,
    noisy_copy,
    prompt,
    random_head,
    tiny_model,
)
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from hf_judge import (
    AutoJudgeModelForCausalLM,
    JudgeCandidateVerifier,
    JudgeGenerationMixin,
    JudgeLlamaForCausalLM,
    VerdictCode,
    judged,
)
from hf_judge.modeling.mixin import judge_class

pytestmark = pytest.mark.contract  # also run on every supported transformers: make test-matrix

CALL = {
    "num_assistant_tokens": 4,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
    "do_sample": False,
}
KINDS = {code.name.lower(): int(code) for code in VerdictCode}
# the module whose input is the paper's state, by architecture
FINAL_NORM = {"gpt2": "transformer.ln_f", "bloom": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
N_NEW = 16  # with a prompt of 12: sliding windows of 8 are exceeded twice over


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def stock(architecture):
    return tiny_model(architecture)


@pytest.fixture(scope="module")
def noisy(architecture, stock):
    # two of them hardly mind the usual noise
    return noisy_copy(stock, noise=0.2 if architecture in ("gemma2", "gpt2") else 0.06)


def test_never_judge_is_plain(stock, noisy):
    target, never = judged(stock), JudgeCandidateVerifier(random_head(), 1.0)
    for seed in range(3):
        plain = stock.generate(prompt(seed), max_new_tokens=N_NEW, do_sample=False)
        ours = target.generate(prompt(seed), assistant_model=noisy, judge=never, max_new_tokens=N_NEW, **CALL)
        assert ours.tolist() == plain.tolist()
    assert never.stats.accepted > 0
    assert never.stats.corrected > 0


@pytest.mark.parametrize("hidden_state", ["post_norm", "pre_norm"])
def test_judged_is_the_naive_loop(architecture, stock, noisy, hidden_state):
    """The head reads the input of the LM head, or of the final norm: hooks of the test's own say what that is."""
    norm = stock.get_submodule(FINAL_NORM.get(architecture, "model.norm"))
    state = None if hidden_state == "post_norm" else norm
    reference = copy.deepcopy(stock)
    if state is not None:
        state = reference.get_submodule(FINAL_NORM.get(architecture, "model.norm"))
    naive_target, naive_draft = NaiveModel(reference, state=state), NaiveModel(copy.deepcopy(noisy))
    target = judged(stock)
    # a head for states of any scale: about half of the tokens are acceptable to it
    head = random_head(scale=2.0, hidden_state=hidden_state)
    with torch.no_grad():
        _, states = naive_target.rows(tuple(prompt(99, 40)[0].tolist()))
        logits = states @ head.weight[0]
        head.weight /= logits.std()
        head.bias.fill_(-float(logits.median() / logits.std()))
    judge = JudgeCandidateVerifier(head, 0.5)
    for seed in range(3):
        out = target.generate(
            prompt(seed), assistant_model=noisy, judge=judge, max_new_tokens=N_NEW, return_dict_in_generate=True, **CALL
        )
        expected = naive_judged(
            naive_target,
            naive_draft,
            prompt(seed)[0].tolist(),
            weight=head.weight,
            bias=head.bias,
            threshold=0.5,
            n_draft=4,
            max_new_tokens=N_NEW,
            eos=(EOS,),
        )
        assert out.sequences[0, 12:].tolist() == expected.new_tokens
        assert out.verdicts[0].tolist() == [KINDS[kind] for kind in expected.kinds]
    assert judge.stats.rescued > 0
    assert judge.stats.corrected > 0


def test_pre_norm_of_an_unknown_architecture():
    stock = tiny_model("llama")
    target = judged(stock)
    target.model = copy.deepcopy(stock.model)
    target.model.closing_norm = target.model.norm
    del target.model.norm
    with pytest.raises(ValueError, match=r"final norm of LlamaModel is not known \(looked for norm, .*'post_norm'"):
        target.generate(prompt(0), assistant_model=stock, judge=random_head(hidden_state="pre_norm"), max_new_tokens=4)


class TestRefused:
    def test_encoder_decoder(self):
        config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
        with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model"):
            judged(T5ForConditionalGeneration(config))

    def test_stateful(self):
        config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
        with pytest.raises(ValueError, match="MambaForCausalLM is stateful: its state cannot be rolled back"):
            judged(MambaForCausalLM(config))

    def test_no_cache(self):
        stock = tiny_model("openai-gpt", n_embd=WIDTH, n_layer=1, n_head=4)
        with pytest.raises(ValueError, match="OpenAIGPTLMHeadModel keeps no key-value cache"):
            judged(stock)

    def test_cache_switched_off_in_the_config(self):
        stock = tiny_model(use_cache=False)
        with pytest.raises(ValueError, match="needs the key-value cache to verify drafts: pass use_cache=True"):
            judged(stock).generate(
                prompt(0), judge=random_head(), prompt_lookup_num_tokens=3, max_new_tokens=3, use_cache=False
            )
        never = JudgeCandidateVerifier(random_head(), 1)
        plain = stock.generate(prompt(0), max_new_tokens=9, do_sample=False)
        ours = judged(stock).generate(
            prompt(0), judge=never, assistant_model=tiny_model(), max_new_tokens=9, do_sample=False
        )
        assert ours.tolist() == plain.tolist()

    def test_stateful_from_disk(self, tmp_path):
        MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="is stateful"):
            AutoJudgeModelForCausalLM.from_pretrained(tmp_path)

    def test_compiled_wrapper(self):
        with pytest.raises(TypeError, match=r"torch.compile'd wrapper.*model.forward = torch.compile"):
            judged(torch.compile(tiny_model()))

    def test_no_language_model(self):
        with pytest.raises(TypeError, match="needs a transformers model that generates, got Linear"):
            judged(torch.nn.Linear(2, 2))
        with pytest.raises(TypeError, match="needs a transformers model that generates, got LlamaModel"):
            judged(tiny_model().model)

    def test_auto_class_is_no_constructor(self):
        with pytest.raises(OSError, match="AutoJudgeModelForCausalLM.from_pretrained"):
            AutoJudgeModelForCausalLM()


class TestJudged:
    """judged(model): another class over the same weights; the user's object stays what it was."""

    def test_class(self, stock, architecture):
        target = judged(stock)
        assert type(target).__name__ == f"Judge{type(stock).__name__}"
        assert isinstance(target, type(stock))
        assert isinstance(target, JudgeGenerationMixin)
        assert judged(target) is target
        assert type(judged(tiny_model(architecture))) is type(target)

    def test_the_users_object_is_not_changed(self, stock, noisy):
        before = type(stock), stock.config.to_dict(), stock.generation_config.to_dict(), set(stock.__dict__)
        target = judged(stock)
        target.generate(prompt(0), assistant_model=noisy, judge=random_head(), max_new_tokens=4, **CALL)
        target.default_judge = JudgeCandidateVerifier(random_head())
        target.some_attribute = 1
        target.extra = torch.nn.Linear(1, 1)
        assert (type(stock), stock.config.to_dict(), stock.generation_config.to_dict(), set(stock.__dict__)) == before
        assert "extra" not in dict(stock.named_children())
        with pytest.raises(ValueError, match="judge"):
            stock.generate(prompt(0), judge=random_head(), max_new_tokens=2)

    def test_weights_are_shared(self, stock):
        ours, theirs = dict(judged(stock).named_parameters()), dict(stock.named_parameters())
        assert ours.keys() == theirs.keys()
        assert all(ours[name] is theirs[name] for name in ours)

    def test_without_a_judge_it_is_upstream(self, stock, noisy):
        target = judged(stock)
        for kwargs in ({}, {"judge": None}, {"judge": False}):
            for drafting in ({}, {"assistant_model": noisy}):
                ours = target.generate(prompt(0), max_new_tokens=6, do_sample=False, **drafting, **kwargs)
                theirs = stock.generate(prompt(0), max_new_tokens=6, do_sample=False, **drafting)
                assert ours.tolist() == theirs.tolist()

    def test_a_batch_without_a_judge(self, stock):
        ids = torch.cat([prompt(0), prompt(1)])
        ours = judged(stock).generate(ids, max_new_tokens=5, num_beams=2, do_sample=False)
        assert ours.tolist() == stock.generate(ids, max_new_tokens=5, num_beams=2, do_sample=False).tolist()


class TestDefaultJudge:
    def test_used_where_something_drafts(self):
        stock = tiny_model()
        target = judged(stock)
        target.default_judge = JudgeCandidateVerifier(always_head())
        drafted = {"assistant_model": noisy_copy(stock), "max_new_tokens": 8, "return_dict_in_generate": True} | CALL
        assert target.generate(prompt(0), **drafted).judge_stats.rescued > 0
        assert not hasattr(target.generate(prompt(0), judge=False, **drafted), "judge_stats")

    def test_steps_aside_where_nothing_drafts(self):
        stock = tiny_model()
        target = judged(stock)
        target.default_judge = JudgeCandidateVerifier(always_head())
        ids = torch.cat([prompt(0), prompt(1)])
        for kwargs in ({}, {"num_beams": 2}, {"max_new_tokens": 3}):
            kwargs = {"max_new_tokens": 5, "do_sample": False} | kwargs
            assert target.generate(ids, **kwargs).tolist() == stock.generate(ids, **kwargs).tolist()

    def test_threshold_of_a_call(self):
        stock = tiny_model()
        target = judged(stock)
        target.default_judge = JudgeCandidateVerifier(always_head())
        plain = stock.generate(prompt(0), max_new_tokens=8, do_sample=False)
        ours = target.generate(
            prompt(0), judge_threshold=1, assistant_model=noisy_copy(stock), max_new_tokens=8, **CALL
        )
        assert ours.tolist() == plain.tolist()
        assert target.default_judge.threshold == 0.5

    def test_a_judged_draft_drafts_on_its_own(self):
        """A draft that is a Judge model with a default judge of its own is only a draft here."""
        stock = tiny_model()
        draft = judged(noisy_copy(stock))
        draft.default_judge = JudgeCandidateVerifier(always_head())
        out = judged(stock).generate(
            prompt(0), judge=JudgeCandidateVerifier(random_head(), 1), assistant_model=draft, max_new_tokens=8, **CALL
        )
        assert out.tolist() == stock.generate(prompt(0), max_new_tokens=8, do_sample=False).tolist()
        assert draft.default_judge.stats.rounds == 0


class TestPeft:
    def lora(self, stock):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(stock, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero at first: the adapter would do nothing
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model.eval()

    def test_lora(self):
        draft, unadapted = noisy_copy(tiny_model()), tiny_model()
        model = self.lora(tiny_model())
        before = type(model), type(model.base_model.model)
        target = judged(model)
        assert isinstance(target, JudgeLlamaForCausalLM)
        never = JudgeCandidateVerifier(random_head(), 1.0)
        different = 0
        for seed in range(3):
            plain = model.generate(input_ids=prompt(seed), max_new_tokens=10, do_sample=False)
            ours = target.generate(prompt(seed), assistant_model=draft, judge=never, max_new_tokens=10, **CALL)
            assert ours.tolist() == plain.tolist()
            different += unadapted.generate(prompt(seed), max_new_tokens=10, do_sample=False).tolist() != plain.tolist()
        assert different > 0  # the adapter was active
        assert (type(model), type(model.base_model.model)) == before

    def test_adapter_switched_off_is_off(self):
        model = self.lora(tiny_model())
        target = judged(model)
        with model.disable_adapter():
            ours = target.generate(prompt(0), max_new_tokens=10, do_sample=False)
        assert ours.tolist() == tiny_model().generate(prompt(0), max_new_tokens=10, do_sample=False).tolist()

    def test_lora_over_a_judge_class(self):
        model = self.lora(judged(tiny_model()))
        never = JudgeCandidateVerifier(random_head(), 1.0)
        plain = model.generate(input_ids=prompt(0), max_new_tokens=10, do_sample=False)
        ours = model.generate(
            input_ids=prompt(0), assistant_model=noisy_copy(tiny_model()), judge=never, max_new_tokens=10, **CALL
        )
        assert ours.tolist() == plain.tolist()
        assert never.stats.rounds > 0

    def test_prompt_learning_is_refused(self):
        from peft import PromptTuningConfig, get_peft_model

        config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
        with pytest.raises(ValueError, match="prompt learning lives in the PeftModel"):
            judged(get_peft_model(tiny_model(), config))


class TestSaving:
    @pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
    def test_upstreams_architecture_is_written(self, name, tmp_path):
        stock = tiny_model(name)
        target = judged(stock)
        target.save_pretrained(tmp_path)
        on_disk = json.loads((tmp_path / "config.json").read_text())["architectures"]
        assert on_disk == target.config.architectures == stock.config.architectures == [type(stock).__name__]
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert type(again) is type(stock)
        expected = stock.generate(prompt(0), max_new_tokens=6, do_sample=False)
        assert again.generate(prompt(0), max_new_tokens=6, do_sample=False).tolist() == expected.tolist()

    @pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
    def test_auto_class(self, name, tmp_path):
        stock = tiny_model(name)
        stock.save_pretrained(tmp_path / "model")
        random_head(threshold=1.0).save_pretrained(tmp_path / "judge")
        target = AutoJudgeModelForCausalLM.from_pretrained(tmp_path / "model", judge=str(tmp_path / "judge"))
        assert type(target) is judge_class(type(stock))
        assert target.default_judge.threshold == 1.0
        ours = target.generate(prompt(0), assistant_model=noisy_copy(stock), max_new_tokens=6, **CALL)
        assert ours.tolist() == stock.generate(prompt(0), max_new_tokens=6, do_sample=False).tolist()
        assert target.default_judge.stats.rounds > 0
        # a Judge model that came from disk goes back as upstream's
        target.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == [type(stock).__name__]

    def test_auto_class_keywords(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        target, info = AutoJudgeModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(target, JudgeLlamaForCausalLM)
        assert not info["missing_keys"]
        half = AutoJudgeModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16

    def test_judge_llama_from_pretrained(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        target = JudgeLlamaForCausalLM.from_pretrained(tmp_path, judge=random_head())
        assert isinstance(target.default_judge, JudgeCandidateVerifier)
        assert JudgeLlamaForCausalLM.from_pretrained(tmp_path).default_judge is None

    def test_judge_of_another_size_at_load(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        for load in (AutoJudgeModelForCausalLM.from_pretrained, JudgeLlamaForCausalLM.from_pretrained):
            with pytest.raises(ValueError, match="head expects hidden size 16, target has 32"):
                load(tmp_path, judge=random_head(width=16))


class TestPickling:
    @pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
    def test_instances_and_classes(self, name):
        target = judged(tiny_model(name))
        target.default_judge = JudgeCandidateVerifier(random_head(), 0.25)
        again = pickle.loads(pickle.dumps(target))
        assert type(again) is type(target)
        assert again.default_judge.threshold == 0.25
        ours = again.generate(prompt(0), max_new_tokens=6, judge=False, do_sample=False)
        assert ours.tolist() == target.generate(prompt(0), max_new_tokens=6, judge=False, do_sample=False).tolist()
        assert pickle.loads(pickle.dumps(type(target))) is type(target)
        copied = copy.deepcopy(target)
        assert type(copied) is type(target)
        assert next(copied.parameters()) is not next(target.parameters())

    def test_in_another_process(self, tmp_path):
        target = judged(tiny_model("qwen2"))
        (tmp_path / "model.pkl").write_bytes(pickle.dumps((type(target), target)))
        code = (
            "import pickle, sys, torch\n"
            "cls, model = pickle.load(open(sys.argv[1], 'rb'))\n"
            "assert type(model) is cls and cls.__name__ == 'JudgeQwen2ForCausalLM', cls\n"
            f"ids = torch.tensor({prompt(0).tolist()})\n"
            "sys.stdout.write(str(model.generate(ids, max_new_tokens=6, do_sample=False).tolist()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "model.pkl"], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == str(target.generate(prompt(0), max_new_tokens=6, do_sample=False).tolist())

    def test_a_users_own_subclass_stays_one(self):
        target = object.__new__(OwnJudgeLlama)
        target.__dict__.update(judged(tiny_model()).__dict__)
        for again in (pickle.loads(pickle.dumps(target)), copy.deepcopy(target)):
            assert type(again) is OwnJudgeLlama
            assert again.own() == "own"


class OwnJudgeLlama(JudgeLlamaForCausalLM):
    """What a user may write."""

    def own(self):
        return "own"


class TestOffloading:
    """Weights on disk: the target's `device` is then meta, and only the inputs know where to compute."""

    @pytest.mark.parametrize(
        "on_disk", [["model.embed_tokens"], ["model.layers.0", "lm_head"], pytest.param([""], marks=WHOLLY_OFFLOADED)]
    )
    @pytest.mark.parametrize("source", ["ragged", "upstream", "lookup", "early_exit"])
    def test_as_if_it_were_here(self, tmp_path, on_disk, source):
        stock = tiny_model()
        stock.save_pretrained(tmp_path / "model")
        places = dict.fromkeys(
            ["model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"], "cpu"
        )
        places["model.layers.0"] = places["model.layers.1"] = places.pop("model.layers")
        places = {"": "disk"} if on_disk == [""] else places | dict.fromkeys(on_disk, "disk")
        target = AutoJudgeModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
        )
        assert any(parameter.is_meta for parameter in target.parameters())
        drafting = {
            "ragged": {"assistant_model": noisy_copy(stock), "judge_engine": "ragged"} | CALL,
            "upstream": {"assistant_model": noisy_copy(stock), "judge_engine": "upstream"} | CALL,
            "lookup": {"prompt_lookup_num_tokens": 3, "do_sample": False},
            "early_exit": {"assistant_early_exit": 1} | CALL,
        }[source]
        if source == "early_exit" and target.device.type == "meta":
            with pytest.raises(ValueError, match="cannot draft while its first weights are offloaded"):
                target.generate(prompt(0), judge=random_head(), max_new_tokens=9, **drafting)
            return
        dispatched = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
        )
        plain = stock.generate(prompt(0), max_new_tokens=9, do_sample=False)
        for model in (target, judged(dispatched)):
            never = JudgeCandidateVerifier(random_head(), 1)
            assert model.generate(prompt(0), judge=never, max_new_tokens=9, **drafting).tolist() == plain.tolist()
            assert never.stats.drafted > 0 or source == "lookup"
            out = model.generate(prompt(0), judge=random_head(), max_new_tokens=9, **drafting)
            here = judged(stock).generate(prompt(0), judge=random_head(), max_new_tokens=9, **drafting)
            assert out.tolist() == here.tolist()

    @WHOLLY_OFFLOADED
    def test_offloaded_draft(self, tmp_path):
        tiny_model().save_pretrained(tmp_path / "model")
        draft = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
        )
        with pytest.raises(ValueError, match="LlamaForCausalLM cannot draft while its first weights are offloaded"):
            judged(tiny_model()).generate(prompt(0), judge=random_head(), assistant_model=draft, max_new_tokens=4)


class TestPipeline:
    def test_text_generation(self, tmp_path):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {"<unk>": 0} | {chr(33 + i): i + 1 for i in range(63)}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")
        stock = tiny_model(eos_token_id=None)
        never = JudgeCandidateVerifier(random_head(), 1.0)
        call = {"assistant_model": noisy_copy(stock), "judge": never, "max_new_tokens": 9} | CALL
        ours = pipeline("text-generation", model=judged(stock), tokenizer=tokenizer)("ABCDEF", **call)
        theirs = pipeline("text-generation", model=stock, tokenizer=tokenizer)(
            "ABCDEF", max_new_tokens=9, do_sample=False
        )
        assert ours == theirs
        assert never.stats.rounds > 0


def test_class_names_are_found_as_attributes():
    import hf_judge.modeling.mixin

    assert hf_judge.modeling.mixin.JudgeQwen2ForCausalLM is judge_class(type(tiny_model("qwen2")))
    assert hf_judge.modeling.mixin.JudgeLlamaForCausalLM is judge_class(LlamaForCausalLM)
    with pytest.raises(AttributeError, match="JudgeNothingForCausalLM"):
        _ = hf_judge.modeling.mixin.JudgeNothingForCausalLM


def test_bfloat16_target():
    """The head stays float32, and the loop runs in the target's precision."""
    stock = tiny_model().to(torch.bfloat16)
    head = random_head(scale=2.0)
    out = judged(stock).generate(
        prompt(0),
        assistant_model=noisy_copy(tiny_model()).to(torch.bfloat16),
        judge=head,
        max_new_tokens=12,
        return_dict_in_generate=True,
        output_scores=True,
        **CALL,
    )
    assert head.weight.dtype == torch.float32
    assert out.scores[0].dtype == torch.float32
    assert out.judge_stats.rescued > 0
    assert head.weight.shape == (1, WIDTH)
