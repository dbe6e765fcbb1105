"""After a judged call, or one that failed, the models are as they were: class, hooks, attributes, config, copies."""

import copy
import logging
import pickle

import peft
import pytest
import torch
from tiny_models import WIDTH, always_head, noisy_copy, prompt, random_head, tiny_model

from hf_judge import JudgeConfig, StrictVerifier, judged
from hf_judge.modeling.mixin import judge_class
from hf_judge.upstream.states import StateReader

SETTINGS = {"max_new_tokens": 10, "do_sample": False}
ENGINES = ("auto", "upstream")


def stock():
    return tiny_model()


def judge_model():
    model = tiny_model()
    model.__class__ = judge_class(type(model))
    return model


def with_lora():
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(tiny_model(), config)


KINDS = {"stock": stock, "Judge class": judge_model, "LoRA": with_lora}


def snapshot(model):
    """All that a call could change, but not the weights themselves."""
    modules = {}
    for name, module in model.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        own = {key for key in vars(module) if not key.startswith("_hf_")}
        modules[name] = (type(module), own, hooks, module.training)
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    configs = (base.config.to_dict(), base.generation_config.to_dict(), vars(base.config).keys())
    parameters = {name: (id(p), p.requires_grad, p._version) for name, p in model.named_parameters()}
    return modules, configs, parameters


class Failing(StrictVerifier):
    def verify(self, candidates, rows):
        raise RuntimeError("in the middle")


def call(model, draft, **options):
    options = SETTINGS | {"assistant_model": draft} | options
    return judged(model).generate(prompt(0), **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("state", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_leaves_nothing(kind, state, engine):
    model, draft = KINDS[kind](), noisy_copy(tiny_model())
    right = model.generate(input_ids=prompt(0), **SETTINGS)
    before, draft_before = snapshot(model), snapshot(draft)
    head = random_head(hidden_state=state)
    call(model, draft, judge=head, judge_engine=engine)
    assert snapshot(model) == before
    assert snapshot(draft) == draft_before
    failing = Failing()
    failing.hidden_state = state
    with pytest.raises(RuntimeError, match="in the middle"):
        call(model, draft, judge=failing, judge_engine=engine)
    assert snapshot(model) == before
    assert snapshot(draft) == draft_before
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.generate(input_ids=prompt(0), **SETTINGS), right)
    pickle.loads(pickle.dumps(draft))
    call(model, draft, judge=head, judge_engine=engine)  # the hooks come back for the next call
    assert snapshot(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_trains_after_a_call(kind):
    model, draft = KINDS[kind](), noisy_copy(tiny_model())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(kind != "LoRA" or "lora" in name)
    call(model, draft, judge=always_head())
    model.train()
    model(input_ids=prompt(0), labels=prompt(0)).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


def test_an_adapters_head_leaves_nothing():
    model = peft.get_peft_model(tiny_model(), JudgeConfig(hidden_size=WIDTH, task_type="CAUSAL_LM"))
    draft = noisy_copy(tiny_model())
    model.generate(input_ids=prompt(0), judge=False, **SETTINGS)  # peft leaves attributes of its own
    before = snapshot(model)
    model.generate(input_ids=prompt(0), assistant_model=draft, **SETTINGS)
    assert snapshot(model) == before
    pickle.loads(pickle.dumps(model.get_base_model()))


def test_a_callers_own_hooks_stay():
    """Upstream's capturing hooks that a plain call has put there are the caller's affair."""
    model, draft = stock(), noisy_copy(tiny_model())
    model.generate(prompt(0), output_hidden_states=True, return_dict_in_generate=True, **SETTINGS)
    before = snapshot(model)
    assert any(hooks["_forward_hooks"] for _, _, hooks, _ in before[0].values())
    call(model, draft, judge=random_head())
    assert snapshot(model) == before


def test_readers_of_one_model_share_the_hooks():
    model = stock()
    with StateReader(model, "post_norm") as outer:
        with StateReader(model, "post_norm") as inner:
            ids = {"input_ids": prompt(0)}
            states = [reader.read(model(**reader.request(ids, {})), 3) for reader in (outer, inner)]
        again = outer.read(model(**outer.request(ids, {})), 3)
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], again)
    assert not any(module._forward_hooks for module in model.modules())


class TestUnused:
    """A judge that was asked for is used or refused, never dropped."""

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"custom_generate": lambda model, input_ids, **kwargs: input_ids}, "custom_generate="),
            ({"custom_generate": "somebody/recipe"}, "custom_generate="),
            ({"cache_implementation": "paged"}, 'cache_implementation="paged"'),
        ],
    )
    def test_ways_past_the_judge(self, options, name):
        model = judge_model()
        message = f"{name} answers in a way of its own, which would ignore judge=: drop it, or pass judge=False"
        with pytest.raises(ValueError, match=message):
            model.generate(prompt(0), judge=always_head(), prompt_lookup_num_tokens=3, **SETTINGS, **options)
        model.default_judge = always_head()
        with pytest.raises(ValueError, match=message):
            model.generate(prompt(0), prompt_lookup_num_tokens=3, **SETTINGS, **options)
        with pytest.raises(ValueError, match=message):
            model.generate(prompt(0), assistant_model=noisy_copy(tiny_model()), **SETTINGS, **options)

    def test_a_recipe_of_the_callers_own(self):
        seen = []

        def recipe(model, input_ids, **kwargs):
            seen.append(set(kwargs))
            return input_ids

        model = judge_model()
        plain = judge_model().generate(prompt(0), judge=False, custom_generate=recipe, **SETTINGS)
        assert torch.equal(plain, prompt(0))
        model.default_judge = always_head()
        model.generate(prompt(0), custom_generate=recipe, **SETTINGS)  # nothing is drafted: nothing to judge
        assert seen[0] == seen[1]
        assert not any("judge" in key for key in seen[0])

    def test_positions_count_as_names(self):
        model = judge_model()
        with pytest.raises(ValueError, match="custom_generate="):
            model.generate(prompt(0), *[None] * 9, lambda model, **kwargs: None, judge=always_head())

    def test_a_generate_on_the_object(self):
        model = stock()
        model.generate = lambda *args, **kwargs: None
        with pytest.raises(ValueError, match="has a generate\\(\\) of its own on the object"):
            judged(model)


def test_settings_of_a_checkpoint_do_not_change_how_results_are_read(caplog):
    from test_labelling_responses import TOKENIZER
    from test_training_features import llama

    from hf_judge.evaluation.evaluate import Decoding, Method, Pair
    from hf_judge.labelling.greedy import greedy
    from hf_judge.rules.by_name import Setting
    from hf_judge.tasks.problems import Example

    model, prompts = llama(0), ["Tom has", "Ana"]
    ids = [TOKENIZER(text).input_ids for text in prompts]
    pair, examples = Pair(model, llama(0), TOKENIZER), [Example(text, text, bool) for text in prompts]

    def answers():
        found = [greedy(model, TOKENIZER, ids, [6, 6])]
        for rule in ("plain", "strict"):
            method = Method(pair, Setting(rule), Decoding(max_new_tokens=6, batch_size=2))
            found.append([answer.tokens for answer in method.answer(examples)])
        return found

    right = answers()
    as_asked = {
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True,
        "output_attentions": True, "num_beams": 2, "num_return_sequences": 2, "max_time": 1e-9,
        "prompt_lookup_num_tokens": 3,
    }  # fmt: skip
    model.generation_config.update(**as_asked)
    with caplog.at_level(logging.ERROR):
        assert answers() == right
