"""The model of lm-evaluation-harness, offline, against the harness's own hf model. Skipped without lm-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import measured_pair
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra 'lm-eval')")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from hf_judge import JudgeCandidateVerifier
from hf_judge.integrations.lm_eval import JudgeLM, right

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
metric_list: [{{metric: {metric}}}]
"""


@pytest.fixture
def tasks(tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"question": "a" * (3 + 2 * i) + " is", "answer": "b", "choices": ["b", "cd"]} for i in range(4)]
    data.write_text("\n".join(map(json.dumps, rows)))
    until = "generation_kwargs: {until: ['q'], max_gen_toks: 12, do_sample: false}"
    choice = 'doc_to_choice: "{{choices}}"'
    for name, kind, more, metric in (
        ("words", "generate_until", until, "exact_match"),
        ("choices", "multiple_choice", choice, "acc"),
    ):
        text = TASK.format(name=name, data=data, kind=kind, more=more, metric=metric)
        (tmp_path / f"{name}.yaml").write_text(text)
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def answers(model, tasks):
    found = simple_evaluate(
        model=model, tasks=["words", "choices"], task_manager=tasks, log_samples=True, bootstrap_iters=0
    )
    return {
        name: [s["resps"] for s in sorted(rows, key=lambda s: s["doc_id"])] for name, rows in found["samples"].items()
    }


@pytest.mark.parametrize("batch_size", [1, 3])
def test_strict_equals_the_plain_model(tasks, tmp_path, monkeypatch, batch_size):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tokenizer = measured_pair.tokenizer()
    tokenizer.pad_token = "<pad>" if "<pad>" in tokenizer.get_vocab() else tokenizer.eos_token
    target = measured_pair.model()
    options = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": 200}
    plain = answers(HFLM(pretrained=target, **options), tasks)
    draft = measured_pair.noisy(target)
    strict = JudgeLM(pretrained=target, assistant=draft, num_assistant_tokens=4, **options)
    found = answers(strict, tasks)
    assert found["words"] == plain["words"]
    for mine, theirs in zip(found["choices"], plain["choices"], strict=True):
        for (mine_one,), (theirs_one,) in zip(mine, theirs, strict=True):
            assert float(mine_one[0]) == pytest.approx(float(theirs_one[0]), abs=1e-4)
            assert mine_one[1] == theirs_one[1]
    assert strict.verifier.stats.target_forwards > 0
    lenient = JudgeLM(
        pretrained=target, assistant=draft, judge=measured_pair.head(5.0), judge_threshold="0.3", **options
    )
    assert isinstance(lenient.verifier, JudgeCandidateVerifier)
    assert lenient.verifier.threshold == 0.3
    assert answers(lenient, tasks)["choices"] == found["choices"]
    assert lenient.verifier.stats.rescued > 0


def test_the_command_line_is_that_of_lm_eval(tasks, tmp_path):
    """The documented command, in a process of its own: judged answers, counted by lm_eval's own metrics."""
    target = measured_pair.model()
    target.save_pretrained(tmp_path / "target")
    measured_pair.noisy(target).save_pretrained(tmp_path / "draft")
    measured_pair.head(5.0).save_pretrained(tmp_path / "judge")
    tokenizer = measured_pair.tokenizer()
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(tmp_path / "target")
    models = f"pretrained={tmp_path / 'target'},assistant={tmp_path / 'draft'},judge={tmp_path / 'judge'}"
    command = [sys.executable, "-m", "hf_judge.integrations.lm_eval", "--model", "hf-judge", "--model_args", models]
    command += ["--tasks", "words,choices", "--include_path", str(tmp_path), "--batch_size", "3", "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    assert results.keys() == {"words", "choices"}
    assert 0 <= results["choices"]["acc,none"] <= 1
    assert len(list((tmp_path / "out").rglob("samples_*.jsonl"))) == 2


def test_the_metric_reads_answers_as_every_command_does(tmp_path, monkeypatch):
    """The metric as a task names it, over answers that lm_eval's own exact_match gets wrong."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": "aaa is", "answer": answer} for answer in ("#### 1,200", r"\frac{1}{2}", "7")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = "generation_kwargs: {until: ['q'], max_gen_toks: 4, do_sample: false}"
    text = TASK.format(
        name="numbers", data=tmp_path / "data.jsonl", kind="generate_until", more=more,
        metric="hf_judge_right, checker: numeric, aggregation: mean, higher_is_better: true",
    )  # fmt: skip
    (tmp_path / "numbers.yaml").write_text(text)

    class Answers(HFLM):
        def generate_until(self, requests, disable_tqdm=False):
            return ["so $1 200.0$", "It is 0.5.", "8"]

    tokenizer = measured_pair.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = Answers(pretrained=measured_pair.model(), tokenizer=tokenizer, max_length=200)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model=model, tasks=["numbers"], task_manager=tasks, bootstrap_iters=0)
    assert found["results"]["numbers"]["hf_judge_right,none"] == pytest.approx(2 / 3)
    assert right(["B"], ["The answer is (B)."], checker="choice") == 1.0
