"""Make the tiny pair from nothing: tokenizer, target, draft, judge head, figures. About an hour on two cores.

    python examples/tiny_pair/make.py --out pair            # what ships as hf_judge/tiny
    python examples/tiny_pair/make.py --out pair --smoke    # the same, shrunken to a minute: it proves the path only

Every random stream is named (`hf_judge.tiny.world.problems`): training, labels, calibration and test never share one.
"""

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from build_tokenizer import build_tokenizer
from evaluate import evaluate
from fit_judge import Labelled, fit, generated_answers, judged_states, read_states, written_answers
from train import draft_story, model_config, practice_story, target_story, train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_judge import JudgeConfig, JudgeHead
from hf_judge.head.fingerprint import fingerprint_of
from hf_judge.tiny import load_pair
from hf_judge.tiny.world import problems


@dataclass(frozen=True)
class Plan:
    """Sets the sizes of every stage."""

    target_size: int = 256
    target_steps: tuple[int, int] = (2300, 700)
    """Of reading, then of practice in the draft's wording."""
    draft_steps: int = 1390
    """With more it would make too few mistakes: 1,600 reach 96%, these 78%."""
    batch_size: int = 32
    label_problems: int = 1500
    judged_problems: int = 600
    calibration_problems: int = 300
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9, 0.95, 0.98)
    test_problems: int = 2000
    strict_problems: int = 200
    max_new_tokens: int = 256
    n_workers: int = 2


SMOKE = Plan(
    target_size=128, target_steps=(12, 6), draft_steps=12, batch_size=8, label_problems=10,
    judged_problems=2, calibration_problems=2, thresholds=(0.5,), test_problems=2, strict_problems=1, n_workers=1,
    max_new_tokens=20,
)  # fmt: skip


def make_models(out: Path, plan: Plan) -> None:
    """Train tokenizer, target and draft; weights are stored in half precision."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    target = LlamaForCausalLM(model_config(tokenizer, n_layers=4, hidden_size=plan.target_size, n_heads=4))
    for story, part, n_steps, rate in (
        (target_story, "train/target", plan.target_steps[0], 1.5e-3),
        (practice_story, "train/practice", plan.target_steps[1], 8e-4),
    ):
        sizes = {"n_steps": n_steps, "batch_size": plan.batch_size}
        train(target, tokenizer, story, part=part, learning_rate=rate, **sizes)
    save(target, tokenizer, out / "target")
    torch.manual_seed(0)
    draft = LlamaForCausalLM(model_config(tokenizer, n_layers=2, hidden_size=64, n_heads=2))
    sizes = {"n_steps": plan.draft_steps, "batch_size": plan.batch_size}
    train(draft, tokenizer, draft_story, part="train/draft", learning_rate=3e-3, **sizes)
    save(draft, tokenizer, out / "draft")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a model in half precision, with its tokenizer."""
    model.set_attn_implementation("sdpa")
    model.half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_judge(out: Path, plan: Plan) -> None:
    """Fit the head on written and generated answers, then again with tokens from judged decoding; calibrate it."""
    pair = load_pair(4, directory=out)
    asked = problems(plan.label_problems, seed=0, part="label")
    rows = written_answers(pair, asked, "label/written") + generated_answers(
        pair.draft, pair.tokenizer, asked, max_new_tokens=plan.max_new_tokens
    )
    data = read_states(pair, rows)
    first = head_of(pair, *fit(data), {})
    met = problems(plan.judged_problems, seed=1, part="label")
    data = Labelled.join([data, judged_states(pair, first, met, threshold=0.9, max_new_tokens=plan.max_new_tokens)])
    weight, bias = fit(data)
    provenance = {
        "made_by": "examples/tiny_pair/make.py",
        "labelled_tokens": len(data.labels),
        "mistakes": int((1 - data.labels).sum()),
        "acceptable_but_not_matched": int((data.labels * ~data.matched).sum()),
    }
    head_of(pair, weight, bias, provenance).save_pretrained(out / "judge")
    threshold, table = calibrate(out, plan)
    provenance |= {"calibration_problems": plan.calibration_problems, "calibration": table}
    head_of(pair, weight, bias, provenance, threshold).save_pretrained(out / "judge")


def head_of(pair, weight: torch.Tensor, bias: torch.Tensor, provenance: dict, threshold: float = 0.9) -> JudgeHead:
    """Make a head for the pair's target with the given parameters, (1, D) and (1,)."""
    head = JudgeHead(
        JudgeConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path="hf_judge/tiny/target",
            fingerprint=fingerprint_of(pair.target),
            draft_name_or_path="hf_judge/tiny/draft",
            draft_fingerprint=fingerprint_of(pair.draft),
            hidden_size=pair.target.config.hidden_size,
            threshold=threshold,
            provenance=provenance,
        )
    )
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.requires_grad_(False)


def calibrate(out: Path, plan: Plan) -> tuple[float, list[dict]]:
    """Choose the most lenient threshold that costs at most 0.3 points of accuracy on further problems.

    Returns:
        The threshold (the strictest one if none is good enough) and the figures of all.
    """
    table = []
    for threshold in plan.thresholds:
        figures = evaluate(
            plan.calibration_problems, directory=str(out), part="calibrate", threshold=threshold,
            n_strict=min(20, plan.calibration_problems), n_workers=plan.n_workers, max_new_tokens=plan.max_new_tokens,
        )  # fmt: skip
        keep = ("threshold", "judged_minus_plain", "only_plain_right", "only_judged_right", "rescued_fraction")
        row = {name: figures[name] for name in keep}
        table.append(row | {"accepted_per_forward": figures["accepted_per_forward"]["judged"]})
        print(json.dumps(table[-1]))
    good = [row["threshold"] for row in table if row["judged_minus_plain"] >= -0.003]
    return min(good, default=max(plan.thresholds)), table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="everything shrunken: about a minute")
    parser.add_argument("--only-judge", action="store_true", help="keep the models that are in --out")
    parser.add_argument("--workers", type=int, default=2, help="processes that measure")
    args = parser.parse_args()
    plan = SMOKE if args.smoke else replace(Plan(), n_workers=args.workers)
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    if not args.only_judge:
        make_models(args.out, plan)
    make_judge(args.out, plan)
    figures = evaluate(
        plan.test_problems, directory=str(args.out), n_strict=plan.strict_problems, n_workers=plan.n_workers,
        max_new_tokens=plan.max_new_tokens,
    )  # fmt: skip
    (args.out / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
