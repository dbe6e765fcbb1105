"""What `hf-judge evaluate` and `bench` measure goes into the config of the head that they measured."""

from __future__ import annotations

import json
import shutil

import hub_fixtures as fx
import pytest

from hf_judge import JudgeHead
from hf_judge.cli.commands import main
from hf_judge.head.repository.card import head_card
from hf_judge.publishing.record import evaluated, record
from hf_judge.tiny.pair import HOME


@pytest.fixture
def folder(tmp_path):
    fx.random_head(threshold=0.7).save_pretrained(tmp_path / "head")
    return tmp_path / "head"


def provenance(folder) -> dict:
    return JudgeHead.from_pretrained(folder).config.provenance


def test_a_smaller_run_never_replaces_a_larger_one(folder):
    for n, written in ((20, True), (5, False), (20, True), (30, True)):
        assert record(folder, "evaluate", "/data/held_out.jsonl (numeric)", {"n": n}) is written
    assert record(folder, "bench", "world", {"n": 2})
    assert record(folder, "bench", "gsm8k:test of openai/gsm8k (main) at 0123", {"n": 3})
    found = provenance(folder)["measured"]
    assert found == {
        "evaluate": {"held_out.jsonl (numeric)": {"n": 30}},
        "bench": {"world": {"n": 2}, "gsm8k:test of openai/gsm8k (main) at 0123": {"n": 3}},
    }


def test_draft_and_prompt_are_kept_where_they_are_public(folder):
    prompts = ["see /home/me/notes.txt", "x" * 3000, [{"role": "user", "content": "1 + 1?"}], "2 + 2?"]
    record(folder, "bench", "t", {"n": 1}, draft=str(folder), prompts=prompts)
    assert provenance(folder)["example_prompt"] == prompts[2]
    assert "draft" not in provenance(folder)
    record(folder, "bench", "t", {"n": 1}, draft="user/small", prompts=["3 + 3?"])
    assert provenance(folder)["draft"] == "user/small"
    assert provenance(folder)["example_prompt"] == prompts[2], "the first one stays"


def test_heads_of_this_package_are_left_alone():
    before = (HOME / "judge" / "adapter_config.json").read_bytes()
    assert not record(HOME / "judge", "bench", "world", {"n": 1})
    assert (HOME / "judge" / "adapter_config.json").read_bytes() == before


def test_a_config_with_something_else_there_is_refused(folder):
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"provenance": {"measured": "much"}}))
    with pytest.raises(ValueError, match="must be an object, got text: rename"):
        record(folder, "bench", "t", {"n": 1})


def test_the_best_rule_without_training_has_no_head():
    def row(rule: str, threshold: float | None, speedup: float) -> dict:
        names = ("accuracy_interval", "gained", "lost", "mcnemar_p", "speedup_interval", "tokens_per_second")
        rest = dict.fromkeys((*names, "accepted_per_forward", "rescued_per_answer"))
        return {"rule": rule, "threshold": threshold, "accuracy": 0.5, "speedup": speedup} | rest

    rows = [row("plain", None, 1), row("strict", None, 1), row("judge", None, 5), row("judge=0.5&fly", 3, 9)]
    rows += [row("judge:other", 0.7, 8), row("random", 0.5, 7), row("fly", 0.1, 2), row("autojudge", 0.5, 6)]
    found = evaluated({"rules": rows, "setup": {"n": 3, "num_assistant_tokens": 4}}, "judge", 0.7)
    names = [method["name"] for method in found["methods"]]
    assert names == ["plain", "strict", "judge at 0.7", "fly 0.1 (best rule without training)"]


def test_evaluate_fills_the_card(tmp_path, capsys):
    shutil.copytree(HOME / "judge", tmp_path / "judge")
    task = tmp_path / "held_out.jsonl"
    question = "Ana has 3 pens. Ana gets 4 more. How many pens are left?"
    task.write_text(json.dumps({"prompt": [{"role": "user", "content": question}], "answer": "7"}) + "\n")
    models = ("--target", str(HOME / "target"), "--draft", str(HOME / "draft"), "--judge", str(tmp_path / "judge"))
    rules = ("plain", "strict", "judge=0.7", "top-k=2")
    command = ("evaluate", *models, "--task", str(task), "--checker", "numeric", "--rules", *rules)
    assert main([*command, "--max-new-tokens", "60", "--json", str(tmp_path / "found.json")]) == 0
    assert "Noted for the card" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    config = JudgeHead.from_pretrained(tmp_path / "judge").config
    (run,) = config.provenance["measured"]["evaluate"].values()
    methods = {row["name"]: row for row in run["methods"]}
    assert list(methods) == ["plain", "strict", "judge at 0.7", "top-k 2 (best rule without training)"]
    judged = next(row for row in found["rules"] if row["rule"] == "judge")
    assert methods["judge at 0.7"]["accuracy"] == judged["accuracy"]
    text = str(head_card(config, "user/judge"))
    assert question in text
    assert "| judge at 0.7 | 100.0%" in text
    assert str(tmp_path) not in text
