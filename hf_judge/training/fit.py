"""Fit a judge head to features: logistic, class-weighted, standardised, with the L2 penalty chosen on held-out prompts.

The scaler is folded into the saved weights, so a head reads raw hidden states.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_judge.files.durable import write_together
from hf_judge.head.config import JudgeConfig
from hf_judge.head.judge_head import JudgeHead
from hf_judge.training.arguments import JudgeTrainingArguments
from hf_judge.training.metrics import auc_standard_error, judge_metrics, plot_curves, roc_auc
from hf_judge.training.solvers import Design, solve
from hf_judge.training.store import FeatureStore

METRICS_NAME = "judge_metrics.json"
PROMPTS_NAME = "fit_prompts.json"  # prompts that the fit saw: calibration must not use them
PLOT_NAME = "judge_curves.png"


@dataclass(frozen=True)
class TrainedJudge:
    """Holds a fitted head and what is known about it."""

    head: JudgeHead
    metrics: dict  # of the validation tokens: see `judge_metrics`; and "l2", "decided_auc_by_l2", "n_fit"
    fit_prompts: list[str]  # hashes of the prompts that the fit or the choice of the penalty saw


def train_judge(store: FeatureStore, args: JudgeTrainingArguments) -> TrainedJudge:
    """Fit a head, save it with its metrics, and return it.

    Args:
        store: features of labelled tokens.
        args: settings of the fit.

    Raises:
        ValueError: fit or validation part lacks one of the classes; extra features are not in the store.
    """
    missing = [name for name in args.extra_features if name not in store.extra_features]
    if missing:
        raise ValueError(
            f"extra_features: {', '.join(missing)} not among the stored features (there are: "
            f"{', '.join(store.extra_features) or 'none'}): make them with `hf-judge features --extra-features ...`"
        )
    labels, part_by_prompt = store.column("labels"), _parts(store, args)
    is_fit, is_validation = (_tokens_of(store, part_by_prompt, name, labels) for name in ("fit", "validation"))
    decided = _decided(labels, store.column("matched").bool())
    token_weights = torch.where(decided, 1.0, args.matched_weight)
    fit = Design(store, labels, is_fit, args, weights=token_weights)
    validation = Design(store, labels, is_validation, args, weights=token_weights, scaler=fit.scaler)
    weights, biases = solve(fit, args, validation)
    on_validation = _with_both_classes(decided[is_validation], validation.labels)
    aucs = _aucs(validation, weights, biases, on_validation)
    best = _strongest_of_the_best(aucs, validation.labels[on_validation])

    metrics = _metrics(store, validation, is_validation, on_validation, weights[best], biases[best])
    metrics |= {"l2": args.l2_grid[best], "decided_auc_by_l2": dict(zip(map(str, args.l2_grid), aucs, strict=True))}
    metrics["n_fit"] = {"acceptable": int((fit.labels == 1).sum()), "mistaken": int((fit.labels == 0).sum())}
    head = JudgeHead(_config(store, args, metrics))
    head.set_weights(*fold_scaler(weights[best], biases[best], *fit.scaler))
    seen = sorted(prompt for prompt, part in part_by_prompt.items() if part != "calibration")
    trained = TrainedJudge(head, metrics, seen)
    _save(trained, args)
    return trained


def _parts(store: FeatureStore, args: JudgeTrainingArguments) -> dict[str, str]:
    """Return the part of the data, see [`part_of`], by prompt."""
    fractions = args.validation_fraction, args.calibration_fraction
    return {row["prompt"]: part_of(row["prompt"], args.seed, *fractions) for row in store.rows}


def _tokens_of(store: FeatureStore, part_by_prompt: dict[str, str], name: str, labels: torch.Tensor) -> torch.Tensor:
    """Return which tokens belong to a part of the data, (n_tokens,) bool.

    Raises:
        ValueError: the part lacks one of the classes.
    """
    of_row = torch.tensor([part_by_prompt[row["prompt"]] == name for row in store.rows])
    chosen = of_row[store.column("row")]
    n, n_mistaken = int(chosen.sum()), int((labels[chosen] == 0).sum())
    if n_mistaken in (0, n):
        raise ValueError(
            f"the {name} part has {n} tokens of which {n_mistaken} are mistaken: both classes are needed in it; label "
            "more responses or change the fractions"
        )
    return chosen


def _decided(labels: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """Return the tokens on which a judge decides: mistakes, and acceptable ones that strict verification rejects."""
    # in text of the target's own no acceptable token is decided: all its tokens are to learn from
    return _with_both_classes((labels == 0) | ~matched, labels)


def _with_both_classes(decided: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the decided tokens; all of them where none of the decided ones is acceptable."""
    return decided if bool((labels[decided] > 0).any()) else torch.ones_like(decided)


def _aucs(validation: Design, weights: list[torch.Tensor], biases: list[torch.Tensor], decided: torch.Tensor) -> list:
    """Return the AUC of every penalty over the decided tokens."""
    labels = validation.labels[decided]
    return [roc_auc(validation.logits(w, b)[decided], labels) for w, b in zip(weights, biases, strict=True)]


def _strongest_of_the_best(aucs: list[float], labels: torch.Tensor) -> int:
    """Return the index of the strongest penalty whose AUC is at most 1.96 standard errors below the best AUC."""
    counts = int((labels > 0).sum()), int((labels == 0).sum())
    good_enough = max(aucs) - 1.96 * auc_standard_error(max(aucs), *counts)
    return next(i for i, auc in enumerate(aucs) if auc >= good_enough)


def _metrics(
    store: FeatureStore,
    validation: Design,
    chosen: torch.Tensor,
    decided: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> dict:
    """Return the figures of a fit on the validation tokens, overall and by source."""
    sources = [store.rows[i]["source"] for i in store.column("row")[chosen].tolist()]
    return judge_metrics(validation.logits(weight, bias).sigmoid(), validation.labels, decided, sources)


def part_of(prompt_hash: str, seed: int, validation_fraction: float, calibration_fraction: float) -> str:
    """Return the part that a prompt belongs to on every run: "fit", "validation" or "calibration"."""
    digest = hashlib.sha256(f"{seed}/{prompt_hash}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < validation_fraction:
        return "validation"
    return "calibration" if share < validation_fraction + calibration_fraction else "fit"


def fold_scaler(
    weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn weights for standardised features into weights for raw ones: w' = w / s, b' = b - w' . m."""
    weight = weight.double().cpu() / scale.double().cpu()
    return weight.float(), (bias.double().cpu() - (weight * mean.double().cpu()).sum()).float()


def _config(store: FeatureStore, args: JudgeTrainingArguments, metrics: dict) -> JudgeConfig:
    """Make the config of a head that has these metrics."""
    index, n_fit = store.index, metrics["n_fit"]
    draft = index.get("labelled_draft") or {}
    kept = ("auc", "n_acceptable", "n_mistaken")
    example = index.get("example_prompt")
    return JudgeConfig(
        hidden_size=index["hidden_size"],
        extra_features=list(args.extra_features),
        hidden_state=index["hidden_state"],
        quantization=index.get("quantization"),
        threshold=args.threshold,
        rescue_window=args.rescue_window,
        base_model_name_or_path=index["model"],
        fingerprint=index.get("fingerprint") or None,
        draft_name_or_path=draft.get("name"),
        draft_fingerprint=draft.get("fingerprint") or None,
        provenance={
            "data_hash": index["data_hash"],
            "labels": index["options"],
            "fit": {
                "tokens": sum(n_fit.values()),
                "mistaken": n_fit["mistaken"],
                "l2": metrics["l2"],
                "seed": args.seed,
            },
            "validation": {kind: {name: metrics[kind][name] for name in kept} for kind in ("decided", "all")},
        }
        | ({} if example is None else {"example_prompt": example}),
    )


def _save(trained: TrainedJudge, args: JudgeTrainingArguments) -> None:
    directory = Path(args.output_dir)
    trained.head.save_pretrained(directory)
    write_together(
        {
            directory / METRICS_NAME: json.dumps(trained.metrics, indent=2) + "\n",
            directory / PROMPTS_NAME: json.dumps(trained.fit_prompts) + "\n",
        }
    )
    if args.plot:
        plot_curves(trained.metrics, directory / PLOT_NAME)
