"""Trains a judge for the embedded pair from target, draft and prompts: labels, features, fit, threshold, figures.

    python examples/train_judge/train_demo.py --output-dir out

The labels are made in two ways: by the world's own checker, which points at the first mistake of an answer, and without
it, by swapping the draft's tokens into the target's answers and comparing final answers. Every step can be killed and
run again. For models of your own, the same steps are (docs/train-a-judge.md says more):

    hf-judge mine --target meta-llama/Llama-3.1-70B-Instruct --draft meta-llama/Llama-3.1-8B-Instruct \\
        --task gsm8k.jsonl --checker numeric --output labels.jsonl
    hf-judge features --target meta-llama/Llama-3.1-70B-Instruct --data labels.jsonl --output-dir features
    hf-judge train --features features --output-dir judge --plot
    hf-judge calibrate --judge judge --features features --risk 0.05
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from hf_judge import JudgeHead
from hf_judge.checking.checkers import NumericChecker
from hf_judge.evaluation.evaluate import Decoding, Method, Pair, right_answers
from hf_judge.labelling.drafts import label_drafts
from hf_judge.labelling.responses import hash_prompt, load_rows
from hf_judge.labelling.swaps import mine_swaps
from hf_judge.rules.by_name import Setting
from hf_judge.tasks.problems import Example, Task
from hf_judge.tiny import load_pair
from hf_judge.tiny.world import Problem, check_answer, first_mistake, problems
from hf_judge.training.calibration import apply_certificate, calibrate_by_accuracy, calibrate_by_risk, head_scores
from hf_judge.training.extraction import FeatureStore, extract_features
from hf_judge.training.fit import JudgeTrainingArguments, train_judge
from hf_judge.training.metrics import roc_auc

TRAINED_LAYERS = 4
MAX_NEW_TOKENS = 256
DECODING = Decoding(num_assistant_tokens=32, max_new_tokens=MAX_NEW_TOKENS)
N_STRICT = 100  # strict verification only gives the scale of accepted tokens
RISK, CONFIDENCE, MARGIN = 0.05, 0.95, 0.0
CALIBRATION_FRACTION = 0.25  # of the prompts: too few mistakes for a certificate of 5%, but enough to choose by task
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def tasks_of(part: str, n: int) -> list[dict]:
    """Return prompts; `task_id` names the problem, for the checker and for measuring."""
    return [
        {"prompt": [{"role": "user", "content": problem.question}], "task_id": f"{part}/{i}"}
        for i, problem in enumerate(problems(n, seed=1, part=part))
    ]


_PROBLEMS: dict[str, list[Problem]] = {}


def problem_of(task: dict) -> Problem:
    """Return the problem of a task."""
    part, _, number = task["task_id"].partition("/")
    if len(_PROBLEMS.get(part, ())) <= int(number):
        _PROBLEMS[part] = problems(max(1000, int(number) + 1), seed=1, part=part)
    return _PROBLEMS[part][int(number)]


def locate(response: str, task: dict) -> tuple[int, int] | None:
    """Find the first mistake, by the world's own checker."""
    return first_mistake(problem_of(task), response)


def examples_of(tasks: list[dict]) -> Task:
    """Return the tasks with the world's other checker: whether the final answer is right."""
    return Task("world", [Example(t["task_id"], t["prompt"], partial(check_answer, problem_of(t))) for t in tasks])


def load(pair_directory: str | None):
    """Load the pair at its trained depth, in a process of one thread."""
    torch.set_num_threads(1)
    return load_pair(TRAINED_LAYERS, **({} if pair_directory is None else {"directory": pair_directory}))


def make_judge(way: str, directory: Path, pair_directory: str | None, n_prompts: int) -> dict:
    """Label, extract, fit and calibrate; return the messages of the steps."""
    pair, tasks, labels = load(pair_directory), tasks_of("label", n_prompts), directory / way / "labels.jsonl"
    directory = directory / way
    directory.mkdir(parents=True, exist_ok=True)
    if way == "checker":
        report = label_drafts(
            pair.draft,
            pair.tokenizer,
            tasks,
            locate,
            labels,
            target=pair.target,
            num_repairs=8,
            num_samples=4,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=64,
        )
    else:
        checker = NumericChecker(r"has (\d+) \w+ left")
        report = mine_swaps(
            pair.target,
            pair.draft,
            pair.tokenizer,
            tasks,
            checker,
            labels,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=64,
        )
    store, labelled = extract_features(
        pair.target, pair.tokenizer, load_rows(labels), directory / "features", batch_size=32
    )
    arguments = JudgeTrainingArguments(str(directory / "judge"), calibration_fraction=CALIBRATION_FRACTION)
    trained = train_judge(store, arguments)
    # by risk where the mistakes suffice for it, else by task, on prompts that the fit did not see
    certificate = calibrate_by_risk(
        trained.head, store, risk=RISK, confidence=CONFIDENCE, thresholds=THRESHOLDS, fit_prompts=trained.fit_prompts
    )
    said = {"mining": str(report), "labels": str(labelled), "by_risk": certificate.message()}
    if certificate.threshold is None:
        seen = set(trained.fit_prompts)
        certificate = by_task(pair, trained.head, [task for task in tasks if hash_prompt(task["prompt"]) not in seen])
        said["by_task"] = certificate.message()
    apply_certificate(trained.head, certificate)
    trained.head.save_pretrained(directory / "judge")
    return said | {"threshold": certificate.threshold, "validation": trained.metrics["decided"]["auc"]}


def by_task(pair, head: JudgeHead, tasks: list[dict]):
    """Calibrate on answers: as many must be right as with the target alone."""
    judged_pair, task = Pair(pair.target, pair.draft, pair.tokenizer, {"judge": head}), examples_of(tasks)

    def judged_right(threshold: float) -> list[bool]:
        return right_answers(judged_pair, task, Setting("judge", threshold), DECODING, desc=f"Judged at {threshold}")

    return calibrate_by_accuracy(plain_right(pair, task), judged_right, margin=MARGIN, thresholds=THRESHOLDS)


def plain_right(pair, task: Task) -> list[bool]:
    """Return which of the target's own answers are right."""
    batched = replace(DECODING, batch_size=64)
    return right_answers(
        Pair(pair.target, pair.draft, pair.tokenizer), task, Setting("plain"), batched, desc="Target's answers"
    )


def measure_target(directory: Path, pair_directory: str | None, n_problems: int) -> dict:
    """Answer held-out problems with the target, and extract held-out tokens: the draft's answers, labelled."""
    pair, tasks = load(pair_directory), tasks_of("test", n_problems)
    options = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 64}
    held_out = directory / "held_out"
    held_out.mkdir(parents=True, exist_ok=True)
    label_drafts(pair.draft, pair.tokenizer, tasks, locate, held_out / "labels.jsonl", **options)
    rows = load_rows(held_out / "labels.jsonl")
    extract_features(pair.target, pair.tokenizer, rows, held_out / "features", batch_size=32)
    return {
        "right": plain_right(pair, examples_of(tasks)),
        "draft_accuracy": sum(not row.mistakes for row in rows) / len(rows),
    }


def measure_rule(way: str, directory: Path, pair_directory: str | None, span: range) -> dict:
    """Answer some held-out problems under a head, or under strict verification."""
    pair, tasks = load(pair_directory), tasks_of("test", span.stop)[span.start :]
    heads = {} if way == "strict" else {"judge": JudgeHead.from_pretrained(directory / way / "judge")}
    pair = Pair(pair.target, pair.draft, pair.tokenizer, heads)
    method = Method(pair, Setting("judge" if heads else "strict"), DECODING)
    answers = [method.answer([example])[0] for example in examples_of(tasks).examples]
    return {"right": [answer.right for answer in answers], "stats": method.verifier.stats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=300, help="to label and calibrate on (default: 300)")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems to measure on (default: 500)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--pair", help="directory of another pair than the embedded one")
    args = parser.parse_args()
    started, ways, place = time.monotonic(), ("checker", "mined"), (args.output_dir, args.pair)
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        made = {way: pool.submit(make_judge, way, *place, args.prompts) for way in reversed(ways)}
        target = pool.submit(measure_target, *place, args.problems)
        strict = [
            pool.submit(measure_rule, "strict", *place, range(i, min(i + 50, N_STRICT))) for i in range(0, N_STRICT, 50)
        ]
        details = {way: made[way].result() for way in ways}
        spans = [range(i, min(i + 50, args.problems)) for i in range(0, args.problems, 50)]
        measured = {way: [pool.submit(measure_rule, way, *place, span) for span in spans] for way in ways}
        target, strict = target.result(), sum(part.result()["stats"] for part in strict)
        measured = {way: [part.result() for part in parts] for way, parts in measured.items()}
    held_out = FeatureStore(args.output_dir / "held_out" / "features")
    figures = {}
    for way in ways:
        rights = [value for part in measured[way] for value in part["right"]]
        stats = sum(part["stats"] for part in measured[way])
        head = JudgeHead.from_pretrained(args.output_dir / way / "judge")
        figures[way] = {
            "auc": roc_auc(head_scores(head, held_out), held_out.column("labels")),
            "accuracy_drop": (sum(target["right"]) - sum(rights)) / len(rights),
            "accepted_ratio": stats.accepted_per_forward / strict.accepted_per_forward,
        }
        details[way] |= {
            "accuracy": sum(rights) / len(rights),
            "only_target_right": sum(t and not j for t, j in zip(target["right"], rights, strict=True)),
            "only_judged_right": sum(j and not t for t, j in zip(target["right"], rights, strict=True)),
            "accepted_per_forward": stats.accepted_per_forward,
        }
    details["target_accuracy"] = sum(target["right"]) / len(target["right"])
    details["draft_accuracy"] = target["draft_accuracy"]
    details["strict_accepted_per_forward"] = strict.accepted_per_forward
    details["seconds"] = round(time.monotonic() - started)
    for name, values in (("figures", figures), ("details", details)):
        (args.output_dir / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
        print(json.dumps(values, indent=2))


if __name__ == "__main__":
    main()
