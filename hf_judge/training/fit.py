"""Features -> a judge head: a class-weighted logistic fit on standardised features, L2 chosen on held-out prompts.

The scaler is folded into the saved weights, so a head reads raw hidden states. Knows nothing about models or text.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_judge.files.durable import write_together
from hf_judge.head.config import JudgeConfig, check_extra_features, check_threshold
from hf_judge.head.judge_head import JudgeHead
from hf_judge.training.metrics import auc_standard_error, judge_metrics, plot_curves, roc_auc
from hf_judge.training.solvers import Design, solve
from hf_judge.training.store import FeatureStore

METRICS_NAME = "judge_metrics.json"
PROMPTS_NAME = "fit_prompts.json"  # prompts that the fit saw: calibration must not use them
PLOT_NAME = "judge_curves.png"
OPTIMIZERS = ("auto", "lbfgs", "adamw")


@dataclass
class JudgeTrainingArguments:
    """How to fit a head.

    Args:
        output_dir (`str`): where the head, its metrics and its plot go.
        l2_grid (`tuple[float]`): penalties l2 / 2 * |w|^2 on standardised features. The strongest one wins whose
            validation AUC is not clearly below the best (within 1.96 standard errors of it).
        validation_fraction (`float`): share of the prompts that choose the penalty.
        calibration_fraction (`float`): share of the prompts that is left alone, for `calibrate`; 0 when that has data
            of its own.
        mistake_weight (`float`, *optional*): weight of a mistaken token relative to an acceptable one; None: what makes
            both classes weigh the same.
        matched_weight (`float`): weight of an acceptable token that strict verification accepts anyway, relative to
            another acceptable one: the judge decides nothing there, and there are many of them.
        optimizer (`str`): "lbfgs" (exact), "adamw" (minibatches, all penalties in one go) or "auto": lbfgs as long as
            the features fit in `max_memory_gb`.
        max_iter (`int`): L-BFGS iterations per penalty.
        num_train_epochs, learning_rate, train_batch_size: of adamw; the batch is in tokens.
        max_memory_gb (`float`): larger features are streamed from disk.
        extra_features (`tuple[str]`): let the head read these numbers of the verification too, see [`JudgeConfig`].
        threshold (`float`): of the saved head, until it is calibrated.
        seed (`int`): of the split and of the minibatches.
        device (`str`, *optional*): default: a GPU if there is one.
        plot (`bool`): draw the curves.

    Raises:
        ValueError: a value is out of range.
    """

    output_dir: str
    l2_grid: tuple[float, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
    validation_fraction: float = 0.15
    calibration_fraction: float = 0.25
    mistake_weight: float | None = None
    matched_weight: float = 0.01
    optimizer: str = "auto"
    max_iter: int = 50
    num_train_epochs: int = 5
    learning_rate: float = 3e-3
    train_batch_size: int = 1024
    max_memory_gb: float = 2.0
    extra_features: tuple[str, ...] = ()
    threshold: float = 0.5
    seed: int = 0
    device: str | None = None
    plot: bool = False

    def __post_init__(self):
        self.l2_grid = tuple(sorted((float(l2) for l2 in self.l2_grid), reverse=True))
        if not self.l2_grid or not all(math.isfinite(l2) and l2 >= 0 for l2 in self.l2_grid):
            raise ValueError(f"l2_grid must hold numbers from 0 on, got {self.l2_grid}")
        if not 0 < self.validation_fraction < 1 or not 0 <= self.calibration_fraction < 1 - self.validation_fraction:
            raise ValueError(
                "validation_fraction (above 0) and calibration_fraction must leave prompts to fit on, got "
                f"{self.validation_fraction} and {self.calibration_fraction}"
            )
        self.extra_features = tuple(check_extra_features(self.extra_features))
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}")
        if not 0 <= self.matched_weight < math.inf:
            raise ValueError(f"matched_weight must be a number from 0 on, got {self.matched_weight}")
        if self.mistake_weight is not None and not 0 < self.mistake_weight < math.inf:
            raise ValueError(f"mistake_weight must be a number above 0, or None, got {self.mistake_weight}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}")
        if not 0 <= self.max_memory_gb < math.inf:
            raise ValueError(f"max_memory_gb must be a number from 0 on, got {self.max_memory_gb}")
        for name in ("max_iter", "num_train_epochs", "train_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_threshold(self.threshold)
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device must be one of torch's, as 'cpu' or 'cuda:0', got {self.device!r}") from None


@dataclass(frozen=True)
class TrainedJudge:
    """A fitted head and what is known about it."""

    head: JudgeHead
    metrics: dict  # of the validation tokens: see `judge_metrics`; and "l2", "auc_by_l2", "n_fit"
    fit_prompts: list[str]  # hashes of the prompts that the fit or the choice of the penalty saw


def train_judge(store: FeatureStore, args: JudgeTrainingArguments) -> TrainedJudge:
    """Fit a head, save it with its metrics, and return it.

    Args:
        store: features of labelled tokens.
        args: see there.

    Raises:
        ValueError: fit or validation part lacks one of the classes; extra features were asked for and are not there.
    """
    missing = [name for name in args.extra_features if name not in store.extra_features]
    if missing:
        raise ValueError(
            f"extra_features: {', '.join(missing)} not among the stored features (there are: "
            f"{', '.join(store.extra_features) or 'none'}): make them with `hf-judge features --extra-features ...`"
        )
    labels, rows = store.column("labels"), store.column("row")
    part_of_prompt = {
        row["prompt"]: part_of(row["prompt"], args.seed, args.validation_fraction, args.calibration_fraction)
        for row in store.rows
    }
    part_of_row = [part_of_prompt[row["prompt"]] for row in store.rows]
    parts = {name: torch.tensor([part == name for part in part_of_row])[rows] for name in ("fit", "validation")}
    for name, part in parts.items():
        n_mistaken = int((labels[part] == 0).sum())
        if n_mistaken == 0 or n_mistaken == int(part.sum()):
            raise ValueError(
                f"the {name} part has {int(part.sum())} tokens of which {n_mistaken} are mistaken: both classes are "
                "needed in it; label more responses or change the fractions"
            )
    decided = _decided(labels, store.column("matched").bool())
    token_weights = torch.where(decided, 1.0, args.matched_weight)
    fit = Design(store, labels, parts["fit"], args, weights=token_weights)
    validation = Design(store, labels, parts["validation"], args, weights=token_weights, scaler=fit.scaler)
    weights, biases = solve(fit, args, validation)
    chosen_by = decided[parts["validation"]]
    if not bool((validation.labels[chosen_by] > 0).any()):
        chosen_by = torch.ones_like(chosen_by)
    aucs = [
        roc_auc(validation.logits(w, b)[chosen_by], validation.labels[chosen_by])
        for w, b in zip(weights, biases, strict=True)
    ]
    best = _strongest_of_the_best(aucs, validation.labels[chosen_by])

    head = JudgeHead(_config(store, args, parts, labels, l2=args.l2_grid[best], auc=aucs[best]))
    weight, bias = fold_scaler(weights[best], biases[best], *fit.scaler)
    with torch.no_grad():
        head.weight.copy_(weight.view(1, -1))
        head.bias.copy_(bias.view(1))
    sources = [store.rows[i]["source"] for i in rows[parts["validation"]].tolist()]
    scores = validation.logits(weights[best], biases[best]).sigmoid()
    metrics = judge_metrics(scores, validation.labels, sources)
    metrics["decided"] = {"auc": aucs[best], "tokens": int(chosen_by.sum())}
    metrics |= {"l2": args.l2_grid[best], "auc_by_l2": dict(zip(map(str, args.l2_grid), aucs, strict=True))}
    metrics["n_fit"] = {"acceptable": int((fit.labels == 1).sum()), "mistaken": int((fit.labels == 0).sum())}
    trained = TrainedJudge(head, metrics, sorted(p for p, part in part_of_prompt.items() if part != "calibration"))
    _save(trained, args)
    return trained


def _decided(labels: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """The tokens on which a judge decides: mistakes, and acceptable tokens that strict verification rejects."""
    decided = (labels == 0) | ~matched
    # text of the target's own: its tokens are all that there is to learn from
    return decided if bool((decided & (labels > 0)).any()) else torch.ones_like(decided)


def _strongest_of_the_best(aucs: list[float], labels: torch.Tensor) -> int:
    """The first (strongest) penalty whose AUC chance may have put below the best one's, at 95%."""
    n_mistaken = int((labels == 0).sum())
    good_enough = max(aucs) - 1.96 * auc_standard_error(max(aucs), len(labels) - n_mistaken, n_mistaken)
    return next(i for i, auc in enumerate(aucs) if auc >= good_enough)


def part_of(prompt_hash: str, seed: int, validation_fraction: float, calibration_fraction: float) -> str:
    """The part of the data that a prompt belongs to: "fit", "validation" or "calibration"; the same on every run."""
    digest = hashlib.sha256(f"{seed}/{prompt_hash}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < validation_fraction:
        return "validation"
    return "calibration" if share < validation_fraction + calibration_fraction else "fit"


def fold_scaler(
    weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights for raw features from weights for standardised ones: w' = w / s, b' = b - w' . m."""
    weight = weight.double().cpu() / scale.double().cpu()
    return weight.float(), (bias.double().cpu() - (weight * mean.double().cpu()).sum()).float()


def _config(store: FeatureStore, args: JudgeTrainingArguments, parts, labels, *, l2: float, auc: float) -> JudgeConfig:
    index = store.index
    return JudgeConfig(
        hidden_size=index["hidden_size"],
        extra_features=list(args.extra_features),
        hidden_state=index["hidden_state"],
        quantization=index.get("quantization"),
        threshold=args.threshold,
        base_model_name_or_path=index["model"],
        provenance={
            "data_hash": index["data_hash"],
            "labels": index["options"],
            "fit": {
                "tokens": int(parts["fit"].sum()),
                "mistaken": int((labels[parts["fit"]] == 0).sum()),
                "l2": l2,
                "seed": args.seed,
            },
            "validation": {"tokens": int(parts["validation"].sum()), "auc": auc},
        },
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
