"""The ragged engine's allow-list: everything of the installed transformers is classified, and what is not is refused.

Right values are plain greedy decoding of upstream; the judge never accepts.
"""

from __future__ import annotations

import copy
import functools
import inspect
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import VOCAB, noisy_copy, prompt, randomize, tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    StoppingCriteria,
)

from hf_judge import StrictVerifier, judged
from hf_judge.ragged import eligibility
from hf_judge.ragged.allow_list import CRITERIA, KEYWORDS, MODEL_KWARGS, PROCESSORS, SETTINGS
from hf_judge.upstream.forward import with_cache

DOCS = Path(__file__).parent.parent / "docs"
GROUPS = {
    "Settings of the generation config": SETTINGS,
    "Keywords of `generate()`": KEYWORDS,
    "Keyword arguments of the model": MODEL_KWARGS,
    "Logits processors of transformers": PROCESSORS,
    "Stopping criteria of transformers": CRITERIA,
}
N_NEW = 12
REMEDY = (
    "classify it in hf_judge/ragged/allow_list.py, then write docs/engines.md: "
    "PYTHONPATH=tests/fixtures python tests/test_ragged_eligibility.py"
)


def classes_below(base: type) -> set[str]:
    """Names of transformers' own public subclasses of a class."""
    found, todo = set(), [base]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            if cls.__module__.startswith("transformers.") and hasattr(transformers, cls.__name__):
                found.add(cls.__name__)
    return found


def test_every_setting_is_classified():
    names = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    assert names - set(SETTINGS) == set(), REMEDY


def test_every_keyword_is_classified():
    assert set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"} == set(KEYWORDS), REMEDY


def test_every_processor_is_classified():
    assert classes_below(LogitsProcessor) - set(PROCESSORS) == set(), REMEDY


def test_every_criterion_is_classified():
    assert classes_below(StoppingCriteria) - set(CRITERIA) == set(), REMEDY


def page() -> str:
    """docs/engines.md, from the tables that the code uses."""
    parts = [(DOCS / "engines.md").read_text(encoding="utf-8").split("\n## Settings of")[0].rstrip()]
    for title, table in GROUPS.items():
        parts.append(f"\n\n## {title}\n\n| name | served by |\n|---|---|")
        parts += [f"\n| `{name}` | {table[name]} |" for name in sorted(table)]
    return "".join(parts) + "\n"


def test_the_page_is_written_from_the_tables():
    text = page().replace("`cache` |", "`past_key_values` |")
    assert (DOCS / "engines.md").read_text(encoding="utf-8").replace("`cache` |", "`past_key_values` |") == text


# --- what is served, and how ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    target = tiny_model()
    return target, noisy_copy(target)


def batch(*lengths: int) -> dict:
    width = max(lengths)
    rows = [torch.nn.functional.pad(prompt(n, n), (width - n, 0)) for n in lengths]
    masks = [torch.nn.functional.pad(torch.ones(1, n, dtype=torch.long), (width - n, 0)) for n in lengths]
    return {"input_ids": torch.cat(rows), "attention_mask": torch.cat(masks)}


def call(target, draft, inputs: dict, **options):
    options = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0} | options
    options |= {"assistant_model": draft, "num_assistant_tokens": 4, "judge": StrictVerifier()}
    return judged(target).generate(**inputs, **options)


def plain(target, inputs: dict, **options):
    return target.generate(**inputs, **{"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0} | options)


@pytest.mark.parametrize("lengths", [(9,), (9, 5, 7)], ids=["one", "batch"])
def test_positions_that_follow_from_the_mask_are_served_by_the_engine(pair, lengths):
    inputs = batch(*lengths)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert torch.equal(call(*pair, inputs, judge_engine="ragged"), plain(pair[0], inputs))


@pytest.mark.parametrize("shift", [1, 5])
def test_other_positions_go_to_upstreams_caches(pair, shift):
    inputs = batch(9) | {"position_ids": torch.arange(shift, 9 + shift)[None]}
    assert torch.equal(call(*pair, inputs), plain(pair[0], inputs))
    with pytest.raises(ValueError, match="position_ids that do not follow"):
        call(*pair, inputs, judge_engine="ragged")


def test_other_positions_of_a_batch_are_refused_by_name(pair):
    inputs = batch(9, 5) | {"position_ids": torch.arange(3, 12).repeat(2, 1)}
    with pytest.raises(ValueError, match="position_ids that do not follow from the attention_mask"):
        call(*pair, inputs)


@pytest.mark.parametrize("make", [DynamicCache, lambda: DynamicCache(config=tiny_model().config)])
def test_a_callers_cache_holds_the_turn(pair, make):
    mine, theirs = make(), make()
    got = call(*pair, batch(9), **with_cache(mine))
    assert torch.equal(got, plain(pair[0], batch(9), **with_cache(theirs)))
    assert mine.get_seq_length() == theirs.get_seq_length() == 9 + N_NEW - 1
    longer = torch.cat([got, prompt(3, 4)], dim=1)
    again = call(*pair, {"input_ids": longer}, **with_cache(mine))
    assert torch.equal(again, plain(pair[0], {"input_ids": longer}, **with_cache(theirs)))


def test_a_callers_cache_with_a_batch_is_refused_by_name(pair):
    with pytest.raises(ValueError, match="the caller passed a cache"):
        call(*pair, batch(9, 5), **with_cache(DynamicCache()))


def test_masks_of_another_shape_are_refused(pair):
    for mask in (torch.ones(2, 4), torch.ones(1, 9), torch.ones(2, 12)):
        with pytest.raises(ValueError, match="attention_mask must have one entry for each token"):
            call(*pair, batch(9, 9) | {"attention_mask": mask.long()})


@pytest.mark.parametrize("row", [[0] * 9, [1, 1, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 0], [1, 2] + [1] * 7])
def test_odd_masks_of_a_batch_are_refused_by_name(pair, row):
    inputs = batch(9, 9)
    inputs["attention_mask"][1] = torch.tensor(row)
    with pytest.raises(ValueError, match="attention_mask"):
        call(*pair, inputs)


class ByRow(LogitsProcessor):
    """Bans other tokens in each row, and looks at how many rows there are."""

    def __init__(self):
        self.n_rows = set()

    def __call__(self, input_ids, scores):
        self.n_rows.add(input_ids.shape[0])
        scores = scores.clone()
        for row in range(scores.shape[0]):
            scores[row, row :: scores.shape[0]] = -torch.inf
        return scores


class EndByRow(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] >= 9 + 3 * (row + 1) for row in range(input_ids.shape[0])])


def test_a_processor_finds_each_row_at_its_place(pair):
    processor = ByRow()
    inputs = batch(9, 5, 7)
    got = call(*pair, inputs, logits_processor=[processor], judge_engine="ragged")
    assert torch.equal(got, plain(pair[0], inputs, logits_processor=[ByRow()]))
    assert processor.n_rows == {3}


def test_a_criterion_finds_each_row_at_its_place(pair):
    inputs = batch(9, 5, 7)
    got = call(*pair, inputs, stopping_criteria=[EndByRow()], judge_engine="ragged")
    assert torch.equal(got, plain(pair[0], inputs, stopping_criteria=[EndByRow()]))


def test_one_number_for_all_rows_is_served_too(pair):
    class EndAll(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 14)

    got = call(*pair, batch(9, 5), stopping_criteria=[EndAll()], judge_engine="ragged")
    assert torch.equal(got, plain(pair[0], batch(9, 5), stopping_criteria=[EndAll()]))


# --- models ---------------------------------------------------------------------------------------------------------


def built(model_type: str, **settings):
    common = {
        "vocab_size": VOCAB,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = AutoConfig.for_model(model_type, **common | settings)
    return randomize(AutoModelForCausalLM.from_config(config).eval(), 0)


@pytest.mark.parametrize("lengths", [(20,), (20, 9, 14)], ids=["one", "batch"])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("mistral", {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": None}),
        (
            "qwen2_moe",
            {
                "num_key_value_heads": 2,
                "num_experts": 4,
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 16,
                "use_sliding_window": False,
            },
        ),
    ],
)
def test_a_window_that_is_switched_off_is_served(model_type, settings, lengths):
    target = built(model_type, **settings)
    inputs = batch(*lengths)
    got = call(target, noisy_copy(target), inputs, judge_engine="ragged")
    for row, n in enumerate(lengths):
        alone = plain(target, {"input_ids": inputs["input_ids"][row : row + 1, -n:]})
        assert torch.equal(got[row, max(lengths) :][: alone.shape[1] - n], alone[0, n:])


VARIANTS = {
    "a window": (
        "mistral",
        {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 8},
        "sliding_window=8",
    ),
    "ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}, "alibi=True"),
    "longrope": (
        "phi3",
        {
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0, 2.0, 3.0, 4.0],
            },
        },
        "rope_type='longrope'",
    ),
    "dynamic rope": (
        "llama",
        {
            "intermediate_size": 48,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
        "rope_type='dynamic'",
    ),
    "an architecture that was not checked": ("bloom", {"n_layer": 2, "n_head": 4}, "takes no position_ids"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_attention_goes_to_upstreams_caches(variant):
    model_type, settings, reason = VARIANTS[variant]
    target = built(model_type, **settings)
    draft = noisy_copy(target)
    # a copy: models with dynamic angles keep those of the longest sequence that they have seen
    assert torch.equal(call(copy.deepcopy(target), draft, batch(20)), plain(copy.deepcopy(target), batch(20)))
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        call(target, draft, batch(20, 9))


@pytest.mark.parametrize("n", [10, 14, 16, 17, 24], ids=lambda n: f"prompt of {n}")
@pytest.mark.parametrize("variant", ["longrope", "dynamic rope"])
def test_drafts_do_not_cross_the_length_at_which_angles_change(variant, n):
    """The length is 16: answers that grow past it, and prompts that are longer."""
    model_type, settings, _ = VARIANTS[variant]
    target = built(model_type, **settings)
    got = call(copy.deepcopy(target), noisy_copy(target), batch(n))
    assert torch.equal(got, plain(copy.deepcopy(target), batch(n)))


def test_keys_of_highest_score_alone_are_refused_beyond_their_window():
    target = built("doge", intermediate_size=48, num_key_value_heads=2, keep_window_size=12)
    draft = noisy_copy(target)
    with pytest.raises(ValueError, match="attends to the 12 best keys alone"):
        call(target, draft, batch(9))


def test_an_unknown_architecture_goes_to_upstreams_caches(pair, monkeypatch):
    monkeypatch.setattr(eligibility, "ARCHITECTURES", eligibility.ARCHITECTURES - {"llama"})
    assert torch.equal(call(*pair, batch(9)), plain(pair[0], batch(9)))
    with pytest.raises(ValueError, match="architecture 'llama', on which the ragged engine was not checked"):
        call(*pair, batch(9, 5))


def test_a_forward_of_the_callers_own_goes_to_upstreams_caches(pair):
    class Other(type(pair[0])):
        @functools.wraps(type(pair[0]).forward)
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    target = copy.deepcopy(pair[0])
    target.__class__ = Other
    assert torch.equal(call(target, pair[1], batch(9)), plain(pair[0], batch(9)))
    with pytest.raises(ValueError, match="whose forward is not one of transformers'"):
        call(target, pair[1], batch(9, 5))


def test_a_hook_of_the_callers_own_goes_to_upstreams_caches(pair):
    target = copy.deepcopy(pair[0])
    handle = target.model.layers[0].register_forward_hook(lambda module, args, output: None)
    assert torch.equal(call(target, pair[1], batch(9)), plain(pair[0], batch(9)))
    with pytest.raises(ValueError, match=r"has a hook \(model\.layers\.0\)"):
        call(target, pair[1], batch(9, 5))
    handle.remove()
    assert torch.equal(call(target, pair[1], batch(9, 5)), plain(pair[0], batch(9, 5)))


def test_an_encoder_is_refused():
    bert = built("bert", intermediate_size=48)
    with pytest.raises(ValueError, match=r"attends to what comes after a token \(is_decoder=False\)"):
        judged(bert)
    assert judged(built("bert", intermediate_size=48, is_decoder=True)) is not None


def test_a_checkpoint_without_a_cache_is_judged_with_one():
    target = built("llama", intermediate_size=48)
    target.generation_config.use_cache = False
    assert torch.equal(call(target, noisy_copy(target), batch(9)), plain(target, batch(9)))
    lookup = {"prompt_lookup_num_tokens": 3, "judge": StrictVerifier(), "max_new_tokens": 3}
    assert judged(target).generate(prompt(0), **lookup).shape[1] > prompt(0).shape[1]
    with pytest.raises(ValueError, match="pass use_cache=True"):
        judged(target).generate(prompt(0), use_cache=False, **lookup)


@pytest.mark.parametrize("lengths", [(12,), (12, 6, 9)], ids=["one", "batch"])
@pytest.mark.parametrize("draft_positions", [40, 20, 8])
def test_answers_up_to_the_last_position(lengths, draft_positions):
    """Learned positions: none behind the last is asked for, and a draft with fewer stops drafting."""
    common = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    target = built("gpt2", n_positions=40, **common)
    draft = built("gpt2", n_positions=draft_positions, **common)
    inputs = batch(*lengths)
    options = {"max_new_tokens": 28, "suppress_tokens": [2]}
    assert torch.equal(call(target, draft, inputs, **options), plain(target, inputs, **options))


@pytest.mark.parametrize("rows", [(70, 64), (64, 70)], ids=["target is wider", "draft is wider"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_matrices_padded_to_different_sizes(rows, do_sample):
    """Rows behind the tokenizer's last token stand for nothing: one vocabulary."""
    tokenizer = object()
    models = [tiny_model(vocab_size=n, seed=0) for n in rows]
    target, draft = models

    class SameWords:
        def get_vocab(self):
            return {"a": 1}

    tokenizer = SameWords()
    inputs = batch(9, 5)
    options = {"tokenizer": tokenizer, "assistant_tokenizer": tokenizer, "judge_engine": "ragged"}
    if do_sample:
        out = call(target, draft, inputs, do_sample=True, **options)
        assert out.max() < rows[0]
    else:
        assert torch.equal(call(target, draft, inputs, **options), plain(target, inputs))


if __name__ == "__main__":
    (DOCS / "engines.md").write_text(page(), encoding="utf-8")
