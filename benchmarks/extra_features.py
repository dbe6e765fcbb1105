"""Measures whether numbers of the verification help a head that reads the state (a benchmark, not a test).

    python benchmarks/extra_features.py --output-dir out/extra

Two heads on the same labelled tokens, one on the state alone, one on the state and all extra features, from few and
from many prompts; and training-free rules. Each answers the same held-out problems at several thresholds: accuracy, and
forwards of the target per answer, which do not depend on the machine. Answers are batched, at the pair's trained depth.
Every finished row is kept in the output directory, and a rerun goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from hf_judge import JudgeHead
from hf_judge.checking.statistics import mcnemar_p, wilson_interval
from hf_judge.head.distributions import EXTRA_FEATURES
from hf_judge.head.files import CONFIG_NAME
from hf_judge.labelling.drafts import label_drafts
from hf_judge.labelling.greedy import greedy
from hf_judge.labelling.responses import load_rows
from hf_judge.modeling.keywords import constant_drafts
from hf_judge.rules.by_name import make_verifier, parse_settings
from hf_judge.tiny import load_pair
from hf_judge.tiny.world import check_answer, first_mistake, problems
from hf_judge.training.calibration import head_scores
from hf_judge.training.extraction import FeatureStore, extract_features
from hf_judge.training.fit import JudgeTrainingArguments, train_judge
from hf_judge.training.metrics import roc_auc

TRAINED_LAYERS = 4
BATCH = 50
MAX_NEW_TOKENS = 256
THRESHOLDS = "0.5,0.95"
TRAINING_FREE = ("strict", "typical=0.001,0.002,0.005,0.01", "thresholds=0.0001,0.0003,0.001,0.003,0.01", "top-k=3,2")


class World:
    """A part of the world: problems, and their prompts as tasks."""

    def __init__(self, part: str, n: int):
        self.problems = problems(n, seed=2, part=part)
        self.tasks = [
            {"prompt": [{"role": "user", "content": p.question}], "task_id": str(i)}
            for i, p in enumerate(self.problems)
        ]

    def locate(self, response: str, task: dict) -> tuple[int, int] | None:
        """Find the first mistake of a response."""
        return first_mistake(self.problems[int(task["task_id"])], response)


def features(pair, part: str, n: int, directory: Path, **options) -> FeatureStore:
    """Extract labelled tokens of the draft's answers, with the state and all extra features."""
    world, labels = World(part, n), directory / "labels.jsonl"
    directory.mkdir(parents=True, exist_ok=True)
    options |= {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 64}
    label_drafts(pair.draft, pair.tokenizer, world.tasks, world.locate, labels, **options)
    return extract_features(
        pair.target,
        pair.tokenizer,
        load_rows(labels),
        directory / "features",
        batch_size=32,
        draft_model=pair.draft,
        extra=EXTRA_FEATURES,
    )[0]


def answer(pair, world: World, verifier) -> tuple[list[bool], float]:
    """Return which answers are right, and forwards of the target per answer; without a rule, of plain decoding."""
    tokenizer, right, forwards = pair.tokenizer, [], 0
    for start in range(0, len(world.tasks), BATCH):
        tasks = world.tasks[start : start + BATCH]
        prompts = [
            tokenizer.apply_chat_template(task["prompt"], add_generation_prompt=True)["input_ids"] for task in tasks
        ]
        if verifier is None:
            answers = [ids for ids, _ in greedy(pair.target, tokenizer, prompts, [MAX_NEW_TOKENS] * len(prompts))]
            forwards += sum(map(len, answers))
        else:
            inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
            output = pair.target.generate(
                **inputs,
                **constant_drafts(pair.draft, verifier, 16),
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
                return_dict_in_generate=True,
            )
            answers = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
            forwards += output.judge_stats.row_forwards
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        right += [check_answer(world.problems[int(t["task_id"])], text) for t, text in zip(tasks, texts, strict=True)]
    return right, forwards / len(world.tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--prompts", type=int, nargs="+", default=[60, 300], help="to label (default: 60 300)")
    parser.add_argument("--problems", type=int, default=400, help="held out, to answer (default: 400)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pair, out = load_pair(TRAINED_LAYERS), args.output_dir
    held_out = features(pair, "held out", args.problems, out / "held_out")
    labels, heads, aucs = held_out.column("labels"), {}, {}
    for n in args.prompts:
        store = features(pair, "label", n, out / str(n), target=pair.target, num_repairs=8, num_samples=2)
        for name, extra in (("state", ()), ("state + extra", EXTRA_FEATURES)):
            rule, directory = f"judge:{name}, {n} prompts", out / str(n) / name
            if not (directory / CONFIG_NAME).is_file():
                train_judge(
                    store, JudgeTrainingArguments(str(directory), extra_features=extra, calibration_fraction=0.0)
                )
            heads[rule] = JudgeHead.from_pretrained(directory)
            aucs[rule] = roc_auc(head_scores(heads[rule], held_out), labels)
    heads["judge"] = JudgeHead.from_pretrained(pair.judge)
    words = [*(f"{name}={THRESHOLDS}" for name in heads), *TRAINING_FREE]
    world, path = World("held out", args.problems), out / f"answers-{args.problems}.json"
    done = json.loads(path.read_text()) if path.is_file() else {}
    for setting in tqdm(parse_settings(words, heads), desc="Settings", unit="setting"):
        if setting.name not in done:
            right, forwards = answer(pair, world, make_verifier(setting, heads))
            done[setting.name] = {"right": right, "forwards": forwards}
            path.write_text(json.dumps(done))
    plain = done["plain"]["right"]
    for rule, auc in aucs.items():
        print(f"{rule}: AUC {auc:.4f} on {len(labels)} held-out tokens, {int((labels == 0).sum())} of them mistakes")
    for name, found in done.items():
        right = found["right"]
        low, high = wilson_interval(sum(right), len(right))
        gained = sum(a and not b for a, b in zip(right, plain, strict=True))
        lost = sum(b and not a for a, b in zip(right, plain, strict=True))
        accuracy = f"{sum(right) / len(right):.2%} ({low:.1%} to {high:.1%})"
        paired = f"{gained} gained, {lost} lost (p = {mcnemar_p(gained, lost):.2g})"
        print(f"{name:36s} accuracy {accuracy}, {paired}, {found['forwards']:.2f} forwards per answer")


if __name__ == "__main__":
    main()
