"""Cards: valid for the Hub's client, with every figure, and no way to break out of them."""

from __future__ import annotations

import ast
import re

import hub_fixtures as fx
import pytest
from huggingface_hub import ModelCard

from hf_judge import JudgeConfig
from hf_judge.head.repository.card import head_card
from hf_judge.head.repository.publish import refuse_private

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROVENANCE = {
    "data": "someone/judge-labels",
    "training": {"responses": 3000, "class weights": "balanced"},
    "metrics": {"auc": 0.97312, "by source": {"target": 0.98, "draft": 0.95}, "note": "held out"},
    "validation": {"tokens": 500, "auc": 0.96},
    "calibration": {"risk": 0.05, "confidence": 0.95, "threshold": 0.62},
    "draft": "someone/small",
    "domain": "worked arithmetic word problems",
    "license": "apache-2.0",
    "versions": {"transformers": "5.23.0"},
}


def config(**changes) -> JudgeConfig:
    fields = {"base_model_name_or_path": "someone/large", "revision": COMMIT, "threshold": 0.62}
    return JudgeConfig(hidden_size=fx.WIDTH, **fields | {"provenance": PROVENANCE} | changes)


def blocks(card) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


def test_the_card_of_a_head():
    card = ModelCard(str(head_card(config(), "someone/large-judge")))  # as the Hub reads it back
    data = card.data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model"] == "someone/large"
    assert data["base_model_relation"] == "adapter"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["someone/judge-labels"]
    assert {"judge", "speculative-decoding", "custom_generate", "base_model:adapter:someone/large"} <= set(data["tags"])
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {
        "auc": 0.97312,
        "by source / target": 0.98,
        "by source / draft": 0.95,
        "validation / auc": 0.96,
    }
    assert data["model-index"][0]["name"] == "large-judge"
    for said in (
        f"`someone/large` at commit `{COMMIT}`",
        "| threshold | 0.62:",
        "| auc | 0.9731 |",
        "| note | held out |",
        "| validation / tokens | 500 |",
        "| training / responses | 3000 |",
        "| versions / transformers | 5.23.0 |",
        "| risk | 0.05 |",
        "worked arithmetic word problems",
        "**Lossy.**",
        'judge="someone/large-judge"',
    ):
        assert said in card.text, said
    assert "{{" not in card.text
    assert "{%" not in card.text


def test_the_card_of_a_head_that_says_little():
    card = head_card(config(provenance={}), "large-judge")
    assert card.data.eval_results is None
    for said in (
        "No figures were recorded",
        "None: the threshold was not chosen",
        "Not stated.",
        "prompt_lookup_num_tok",
    ):
        assert said in card.text
    with pytest.raises(ValueError, match="the card needs base_model_name_or_path"):
        head_card(config(base_model_name_or_path=None), "x/y")


def test_figures_of_any_form_make_a_card():
    free = {"calibration": [{"threshold": 0.5, "right": 0.9}, {"threshold": 0.7}], "metrics": "good", "validation": 0.9}
    text = head_card(config(provenance=free), "a/b").text
    assert "| 2 / threshold | 0.7 |" in text
    assert "| value | good |" in text


def measured_row(accuracy: float, **more) -> dict:
    return {
        "accuracy": accuracy,
        "accuracy_interval": [accuracy - 0.02, accuracy + 0.01],
        "gained": 1,
        "lost": 3,
        "mcnemar_p": 0.625,
        "speedup": 2.5,
        "speedup_interval": [2.25, 2.75],
        "tokens_per_second": 100.0,
        "accepted_per_forward": 12.5,
        "rescued_per_answer": 4.0,
    } | more


def test_a_card_shows_what_evaluate_and_bench_found_and_over_what():
    kinds = {"decided": ("0.8940", 120, 30), "all": ("0.9990", 9000, 30)}
    validation = {k: {"auc": float(a), "n_acceptable": n, "n_mistaken": m} for k, (a, n, m) in kinds.items()}
    rows = [measured_row(0.99, name="plain", speedup=1.0), measured_row(0.983, name="judge at 0.7")]
    setup = {"machine": "a CPU", "date": "2026-01-02"}
    speed = {"name": "judged", "tokens_per_second": 250.4, "ratio_to_plain": 2.0, "accepted_per_forward": 12.5}
    measured = {
        "evaluate": {"held_out.jsonl": {"n": 300, "num_assistant_tokens": 16, "methods": rows, "setup": setup}},
        "bench": {"world": {"n": 8, "methods": [speed], "recommendation": "Use 16.", "setup": setup}},
    }
    card = ModelCard(str(head_card(config(provenance={"validation": validation, "measured": measured}), "a/b")))
    for said in (
        "| AUC over the tokens on which the judge decides of held-out prompts (120 good, 30 mistaken) | 0.8940 |",
        "| AUC over all labelled tokens of held-out prompts (9000 good, 30 mistaken) | 0.9990 |",
        "### held_out.jsonl: 300 problems\n\n| ",
        "| judge at 0.7 | 98.3% (96.3% to 99.3%) | 1 / 3 (p = 0.62) | 2.50x (2.25 to 2.75) | 12.5 | 4.0 |",
        "Over whole answers; up to 16 drafted tokens per round. machine a CPU; date 2026-01-02",
        "### world: speed on 8 prompts",
        "| judged | 250 | 2.00x | 12.5 |",
    ):
        assert said in card.text, said
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["AUC over the tokens on which the judge decides"] == 0.894
    assert results["held_out.jsonl, judge at 0.7: right answers"] == 0.983
    assert "auc" not in results, "one name, one number"
    assert "No figures were recorded" not in card.text
    with pytest.raises(ValueError, match="was not written by `hf-judge evaluate`"):
        head_card(config(provenance={"measured": {"evaluate": {"x": 3}}}), "a/b")


def test_a_card_takes_the_draft_and_a_chat_prompt_from_the_head():
    messages = [{"role": "user", "content": "How many `pens`?\n\\"}, {"role": "assistant", "content": None}]
    card = head_card(config(draft_name_or_path="someone/small", provenance={"example_prompt": messages}), "a/b")
    for block in blocks(card):
        ast.parse(block)
        assert 'from_pretrained("someone/small"' in block
        assert "apply_chat_template(messages, add_generation_prompt=True" in block
    local = head_card(config(draft_name_or_path="/home/x/draft", provenance={}), "a/b")
    assert "assistant_model" not in blocks(local)[0]


@pytest.mark.parametrize("draft", [None, "someone/small"])
def test_usage_blocks_are_python_and_agree(draft):
    card = head_card(config(provenance={"draft": draft} if draft else {}), "someone/large-judge")
    assert len(blocks(card)) == 2
    for block in blocks(card):
        ast.parse(block)
        assert ("assistant_model=draft" in block) == (draft is not None)


HOSTILE = "a | b\n\n# Owned\n<script>x</script> {{ card_data }} {% raw %} ```\n---\nlicense: mit\n---\n'; import os #"


def test_values_cannot_break_out_of_a_card():
    groups = {name: {HOSTILE: HOSTILE} for name in ("training", "calibration")}
    texts = dict.fromkeys(("draft", "example_prompt", "domain"), HOSTILE)
    provenance = groups | texts | {"metrics": {HOSTILE: 1.0}}
    card = ModelCard(str(head_card(config(label=HOSTILE, provenance=provenance), "someone/large-judge")))
    assert card.data.license is None
    assert "\n# Owned" not in card.text
    assert "<script>" not in re.sub(r"```python\n.*?```\n", "", card.text, flags=re.DOTALL)
    assert card.data.base_model == "someone/large"
    for block in blocks(card):
        ast.parse(block)
        assert block.endswith("print(tokenizer.decode(output[0], skip_special_tokens=True))\n")


@pytest.mark.parametrize(
    "text",
    [
        "see https://huggingface.co/someone/x and [a](https://arxiv.org/abs/2501.19309)",
        "and/or, 1/2, tokens/s, custom_generate/, v5.23.0, hf_judge, hf_hub_download, skipped_tokens_per_round_total",
    ],
)
def test_ordinary_text_is_not_private(text):
    refuse_private(text, "README.md")
