"""Cards: valid for the Hub's client, with every figure, and no way to break out of them."""

from __future__ import annotations

import ast
import re

import hub_fixtures as fx
import pytest
from huggingface_hub import ModelCard

from hf_judge import JudgeConfig
from hf_judge.head.card import head_card
from hf_judge.head.publish import refuse_private

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
