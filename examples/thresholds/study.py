"""Measures what a judge does at every threshold, on a target that was not trained to go on from mixtures of wordings.

    python examples/thresholds/study.py --output-dir out/thresholds            # about an hour on 2 CPU cores
    python examples/thresholds/study.py --output-dir out/thresholds --smoke    # minutes: proves the path alone

Every head is fitted to labels of 300 prompts: `located` (a checker marks the first wrong word of the draft's answers)
or `mined` (swaps: a token is good if the target then still reaches its answer). Every curve is on the same problems.
A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from pair import make_pair

from hf_judge import JudgeHead, VerdictCode
from hf_judge.checking.checkers import NumericChecker
from hf_judge.evaluation.evaluate import Answer, Decoding, JudgedAnswers, Method, Pair
from hf_judge.labelling.drafts import label_drafts
from hf_judge.labelling.greedy import greedy
from hf_judge.labelling.responses import load_rows
from hf_judge.labelling.swaps import mine_swaps
from hf_judge.rules.by_name import Setting
from hf_judge.tasks.problems import Example, Task
from hf_judge.tiny.world import check_answer, first_mistake, problems
from hf_judge.training.calibration import calibrate_by_accuracy
from hf_judge.training.extraction import extract_features
from hf_judge.training.fit import JudgeTrainingArguments, train_judge

MAX_NEW_TOKENS = 256
THRESHOLDS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.996, 0.999)
WINDOWS = (0, 8, 16)
RULES = {"typical": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7), "kl": (8.0, 4.0, 2.0, 1.0, 0.5), "top-k": (8, 4, 3, 2)}
DECODING = Decoding(num_assistant_tokens=16, max_new_tokens=MAX_NEW_TOKENS, batch_size=50)
NEAR = 16  # tokens between a rescue and a correction that belong together


def test_task(n: int) -> Task:
    """Return held-out problems; the checker reads name, number and item of the final answer."""
    chat = ([{"role": "user", "content": problem.question}] for problem in problems(n, seed=7, part="test"))
    examples = zip(chat, problems(n, seed=7, part="test"), strict=True)
    return Task("stories", [Example(f"test/{i}", c, partial(check_answer, p)) for i, (c, p) in enumerate(examples)])


def make_head(pair: Pair, way: str, seed: int, n_prompts: int, folder: Path) -> JudgeHead:
    """Label prompts in one way, and fit a head."""
    if (folder / "head" / "adapter_config.json").exists():
        return JudgeHead.from_pretrained(folder / "head")
    asked = problems(n_prompts, seed=seed, part="label")
    tasks = [
        {"prompt": [{"role": "user", "content": p.question}], "answer": str(p.answer), "task_id": str(i)}
        for i, p in enumerate(asked)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    options = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 64}
    if way == "located":

        def locate(response: str, task: dict) -> tuple[int, int] | None:
            return first_mistake(asked[int(task["task_id"])], response)

        options |= {"target": pair.target, "num_repairs": 8, "num_samples": 2}
        label_drafts(pair.draft, pair.tokenizer, tasks, locate, folder / "labels.jsonl", **options)
    else:
        models = (pair.target, pair.draft, pair.tokenizer)
        mine_swaps(*models, tasks, NumericChecker(r"has (\d+) \w+ left"), folder / "labels.jsonl", **options)
    rows = load_rows(folder / "labels.jsonl")
    store, _ = extract_features(pair.target, pair.tokenizer, rows, folder / "features", batch_size=32)
    arguments = JudgeTrainingArguments(str(folder / "head"), calibration_fraction=0.0)
    head = train_judge(store, arguments).head
    head.save_pretrained(folder / "head")
    return head


def with_window(head: JudgeHead, window: int) -> JudgeHead:
    """Return the head with another rescue window."""
    other = JudgeHead(replace(head.config, rescue_window=window))
    other.load_state_dict(head.state_dict())
    return other.requires_grad_(False)


def curve(pair: Pair, head: JudgeHead, task: Task, plain: list[Answer]) -> dict:
    """Answer the problems at every threshold; the values are those of [`AccuracyCertificate`]."""
    judged = JudgedAnswers(replace(pair, heads={"judge": head}), task, DECODING)
    found = calibrate_by_accuracy(
        [answer.right for answer in plain], judged, margin=1.0, thresholds=THRESHOLDS,
        accepted_per_forward=judged.accepted_per_forward,
    )  # fmt: skip
    return asdict(found)


def rule_curve(pair: Pair, rule: str, task: Task, plain: list[Answer]) -> list[dict]:
    """Answer the problems under a rule without a head, from its most lenient value to its strictest."""
    found = []
    for value in RULES[rule]:
        answers = answered(pair, Setting(rule, value), task)
        found.append({"value": value} | counts(answers, plain))
    return found


def answered(pair: Pair, setting: Setting, task: Task) -> list[Answer]:
    """Answer all problems under one setting."""
    method, size = Method(pair, setting, DECODING), DECODING.batch_size
    batches = [task.examples[i : i + size] for i in range(0, len(task.examples), size)]
    return [answer for batch in batches for answer in method.answer(batch)]


def counts(answers: list[Answer], plain: list[Answer]) -> dict:
    """Count right, lost and gained answers, and accepted tokens per forward."""
    pairs = list(zip(answers, plain, strict=True))
    lengths = [length for answer in answers for length in answer.accepted_lengths]
    return {
        "right": sum(answer.right for answer in answers),
        "lost": sum(p.right and not a.right for a, p in pairs),
        "gained": sum(a.right and not p.right for a, p in pairs),
        "accepted_per_forward": sum(lengths) / max(len(lengths), 1),
    }


def after_rescues(pair: Pair, answers: list[Answer], plain: list[Answer], task: Task) -> dict:
    """Say what follows rescues, and where lost answers go wrong.

    Returns:
        Counts of rescues by the distance to the next correction; lost and kept answers, and those of them with a
        correction within `NEAR` tokens of a rescue; and how often the target alone still ends right when it goes on
        from just before the first such rescue, and from just after the correction.
    """
    follow = {"1": 0, "2 to 4": 0, "5 to 16": 0, "later": 0, "never": 0}
    places = []
    for answer in answers:
        rescued = [i for i, code in enumerate(answer.codes) if code == VerdictCode.RESCUED]
        corrected = [i for i, code in enumerate(answer.codes) if code == VerdictCode.CORRECTED]
        near = []
        for i in rescued:
            distance = next((j - i for j in corrected if j > i), None)
            follow[_name(distance)] += 1
            if distance is not None and distance <= NEAR:
                near.append((i, i + distance))
        places.append(near[0] if near else None)
    lost = [i for i, (a, p) in enumerate(zip(answers, plain, strict=True)) if p.right and not a.right]
    kept = [i for i, (a, p) in enumerate(zip(answers, plain, strict=True)) if p.right and a.right]
    found = {"rescues": follow}
    for name, group in (("lost", lost), ("kept", kept)):
        mixed = [i for i in group if places[i] is not None]
        found[name] = {"answers": len(group), "with_a_correction_soon_after_a_rescue": len(mixed)}
        for moment, at in (("before_the_rescue", 0), ("after_the_correction", 1)):
            cut = {i: places[i][at] + at for i in mixed}
            found[name][f"target_alone_right_{moment}"] = _right_from(pair, answers, cut, task)
    return found


def _name(distance: int | None) -> str:
    if distance is None:
        return "never"
    limits = ((1, "1"), (4, "2 to 4"), (NEAR, "5 to 16"))
    return next((name for limit, name in limits if distance <= limit), "later")


def _right_from(pair: Pair, answers: list[Answer], cut: dict[int, int], task: Task) -> int:
    """Count the answers that the target alone ends right after the first tokens of the judged ones."""
    n_right, places = 0, list(cut)
    for start in range(0, len(places), DECODING.batch_size):
        batch = places[start : start + DECODING.batch_size]
        begun = [answers[i].tokens[: cut[i]] for i in batch]
        prompts = [pair.encode(task.examples[i].prompt)[0].tolist() for i in batch]
        prefixes = [prompt + tokens for prompt, tokens in zip(prompts, begun, strict=True)]
        ends = greedy(pair.target, pair.tokenizer, prefixes, [MAX_NEW_TOKENS - len(tokens) for tokens in begun])
        for i, tokens, (end, _) in zip(batch, begun, ends, strict=True):
            n_right += bool(task.examples[i].is_right(pair.text(tokens + end)))
    return n_right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="heads of each kind, from other prompts (default: 3)")
    parser.add_argument("--prompts", type=int, default=300, help="prompts that are labelled for a head (default: 300)")
    parser.add_argument("--problems", type=int, default=200, help="held-out problems (default: 200)")
    parser.add_argument("--smoke", action="store_true", help="everything shrunken, with the embedded target")
    args = parser.parse_args()
    if args.smoke:
        args.seeds, args.prompts, args.problems = 1, 24, 4
    out = args.output_dir
    models = make_pair(None if args.smoke else out / "target")
    torch.set_num_threads(1)
    pair, task = Pair(*models), test_task(args.problems)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {}

    def keep(name: str, make) -> dict:
        if name not in figures:
            figures[name] = make()
            path.write_text(json.dumps(figures, indent=1) + "\n")
            print(name, "done", flush=True)
        return figures[name]

    def measure_after(head: JudgeHead, threshold: float) -> dict:
        judged = replace(pair, heads={"judge": with_window(head, 0)})
        return after_rescues(judged, answered(judged, Setting("judge", threshold), task), plain, task)

    found = keep("plain", lambda: [asdict(answer) for answer in answered(pair, Setting("plain"), task)])
    plain = [Answer(**values) for values in found]
    keep("strict", lambda: counts(answered(pair, Setting("strict"), task), plain))
    for seed in range(args.seeds):
        for way in ("located", "mined"):
            head = make_head(pair, way, seed, args.prompts, out / f"{way}-{seed}")
            for window in WINDOWS if seed == 0 else (0, WINDOWS[-1]):
                keep(f"{way}/{seed}/{window}", partial(curve, pair, with_window(head, window), task, plain))
            if seed == 0:
                for threshold in THRESHOLDS:
                    keep(f"{way}/after/{threshold}", partial(measure_after, head, threshold))
    for rule in RULES:
        keep(f"rule/{rule}", partial(rule_curve, pair, rule, task, plain))


if __name__ == "__main__":
    main()
