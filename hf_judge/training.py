"""Features -> a judge head: a class-weighted logistic fit on standardised features, L2 chosen on held-out prompts.

The scaler is folded into the saved weights, so a head reads raw hidden states. Knows nothing about models or text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers.utils.logging import tqdm

from hf_judge.config import JudgeConfig, check_threshold
from hf_judge.features import FeatureStore
from hf_judge.head import JudgeHead
from hf_judge.metrics import judge_metrics, plot_curves, roc_auc

logger = logging.getLogger(__name__)

METRICS_NAME = "judge_metrics.json"
PROMPTS_NAME = "fit_prompts.json"  # prompts that the fit saw: calibration must not use them
PLOT_NAME = "judge_curves.png"
OPTIMIZERS = ("auto", "lbfgs", "adamw")


@dataclass
class JudgeTrainingArguments:
    """How to fit a head.

    Args:
        output_dir (`str`): where the head, its metrics and its plot go.
        l2_grid (`tuple[float]`): penalties l2 / 2 * |w|^2 on standardised features; the best validation AUC wins.
        validation_fraction (`float`): share of the prompts that choose the penalty.
        calibration_fraction (`float`): share of the prompts that is left alone, for `calibrate`; 0 when that has data
            of its own.
        mistake_weight (`float`, *optional*): weight of a mistaken token relative to an acceptable one; None: what makes
            both classes weigh the same.
        optimizer (`str`): "lbfgs" (exact), "adamw" (minibatches, all penalties in one go) or "auto": lbfgs as long as
            the features fit in `max_memory_gb`.
        max_iter (`int`): L-BFGS iterations per penalty.
        num_train_epochs, learning_rate, train_batch_size: of adamw; the batch is in tokens.
        max_memory_gb (`float`): larger features are streamed from disk.
        use_draft_features (`bool`): let the head read the draft's state too.
        threshold (`float`): of the saved head, until it is calibrated.
        seed (`int`): of the split and of the minibatches.
        device (`str`, *optional*): default: a GPU if there is one.
        plot (`bool`): draw the curves (needs matplotlib).

    Raises:
        ValueError: a value is out of range.
    """

    output_dir: str
    l2_grid: tuple[float, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
    validation_fraction: float = 0.15
    calibration_fraction: float = 0.25
    mistake_weight: float | None = None
    optimizer: str = "auto"
    max_iter: int = 50
    num_train_epochs: int = 5
    learning_rate: float = 3e-3
    train_batch_size: int = 1024
    max_memory_gb: float = 2.0
    use_draft_features: bool = False
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
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}")
        check_threshold(self.threshold)
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")


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
        ValueError: fit or validation part lacks one of the classes; draft features were asked for and are not there.
    """
    if args.use_draft_features and not store.index["draft_hidden_size"]:
        raise ValueError("use_draft_features needs features made with a draft model: `hf-judge features --draft`")
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
    fit = _Design(store, labels, parts["fit"], args)
    validation = _Design(store, labels, parts["validation"], args, scaler=fit.scaler)
    weights, biases = _solve(fit, args, validation)
    aucs = [roc_auc(validation.logits(w, b), validation.labels) for w, b in zip(weights, biases, strict=True)]
    best = max(range(len(aucs)), key=aucs.__getitem__)

    head = JudgeHead(_config(store, args, parts, labels, l2=args.l2_grid[best], auc=aucs[best]))
    weight, bias = fold_scaler(weights[best], biases[best], *fit.scaler)
    with torch.no_grad():
        head.weight.copy_(weight.view(1, -1))
        head.bias.copy_(bias.view(1))
    sources = [store.rows[i]["source"] for i in rows[parts["validation"]].tolist()]
    scores = validation.logits(weights[best], biases[best]).sigmoid()
    metrics = judge_metrics(scores, validation.labels, sources)
    metrics |= {"l2": args.l2_grid[best], "auc_by_l2": dict(zip(map(str, args.l2_grid), aucs, strict=True))}
    metrics["n_fit"] = {"acceptable": int((fit.labels == 1).sum()), "mistaken": int((fit.labels == 0).sum())}
    trained = TrainedJudge(head, metrics, sorted(p for p, part in part_of_prompt.items() if part != "calibration"))
    _save(trained, args)
    return trained


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


class _Design:
    """The standardised features and labels of some tokens: in memory where they fit, streamed where they do not."""

    def __init__(self, store, labels, chosen, args, scaler=None):
        self._store, self._chosen, self._args = store, chosen, args
        self._all_labels = labels
        self.labels = labels[chosen].float()
        self.width = store.hidden_size if args.use_draft_features else store.index["hidden_size"]
        self._chunk = max(256, (1 << 26) // (4 * self.width))  # tokens of 64 MB
        self.in_memory = len(self.labels) * self.width * 4 <= args.max_memory_gb * 2**30
        self.scaler = scaler or self._moments()
        self._features = None
        if self.in_memory:
            self._features = torch.empty(len(self.labels), self.width, device=args.device)
            start = 0
            for features, _ in self._stream(None):
                self._features[start : start + len(features)] = features
                start += len(features)

    def chunks(self, generator: torch.Generator | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Standardised features (n, D) and labels (n,) float, on the device; shuffled by a generator."""
        if self._features is None:
            yield from self._stream(generator)
        elif generator is None:
            yield self._features, self.labels.to(self._args.device)
        else:
            order = torch.randperm(len(self.labels), generator=generator)
            for part in order.split(self._chunk):
                yield self._features[part.to(self._args.device)], self.labels[part].to(self._args.device)

    def logits(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(n,) float32 on the CPU, in the order of `labels`."""
        return torch.cat([(features @ weight + bias).cpu() for features, _ in self.chunks()])

    def _stream(self, generator):
        mean, scale = (t.to(self._args.device) for t in self.scaler)
        for numbers, features in self._raw(generator):
            if generator is not None:
                order = torch.randperm(len(numbers), generator=generator)
                numbers, features = numbers[order], features[order]
            features = features.to(self._args.device).sub_(mean).div_(scale)
            yield features, self._all_labels[numbers].to(self._args.device, torch.float32)

    def _raw(self, generator=None):
        for numbers, features in self._store.chunks(
            chunk_tokens=self._chunk, draft=self._args.use_draft_features, generator=generator
        ):
            kept = self._chosen[numbers]
            if kept.any():
                yield numbers[kept], features[kept]

    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (D,) float32; deviations from the first chunk's mean are summed, so that large
        means lose no digits."""
        shift = total = squares = None
        for numbers, features in self._raw():
            if not features.isfinite().all():
                bad = numbers[~features.isfinite().all(dim=1)][0].item()
                raise ValueError(f"token {bad} of the features is not finite: extract them in float32 or bfloat16")
            if shift is None:
                shift = features.mean(dim=0)
                total, squares = torch.zeros_like(shift, dtype=torch.float64), 0.0
            features = features - shift
            total += features.sum(dim=0)
            squares += features.square().sum(dim=0).double()
        mean = total / len(self.labels)
        scale = (squares / len(self.labels) - mean.square()).clamp(min=0).sqrt()
        # a feature that never changes carries nothing: leave it as it is instead of dividing by nothing
        scale[scale < 1e-6] = 1.0
        return (mean + shift).float(), scale.float()


def _solve(fit: _Design, args: JudgeTrainingArguments, validation: _Design) -> tuple[list, list]:
    """Weights (D,) and biases () for every penalty of the grid."""
    n_mistaken = (fit.labels == 0).sum().item()
    n_acceptable = len(fit.labels) - n_mistaken
    ratio = n_acceptable / n_mistaken if args.mistake_weight is None else args.mistake_weight
    total = n_acceptable + ratio * n_mistaken

    def token_weights(labels: torch.Tensor) -> torch.Tensor:
        return torch.where(labels > 0, 1.0, ratio) / total

    lbfgs = args.optimizer == "lbfgs" or (args.optimizer == "auto" and fit.in_memory)
    return (_lbfgs if lbfgs else _adamw)(fit, args, token_weights, validation)


def _lbfgs(fit: _Design, args, token_weights: Callable, validation: _Design) -> tuple[list, list]:
    """Full gradients, from the strongest penalty to the weakest, each starting from the one before.

    Loss: sum_i c_i log(1 + exp(-s_i z_i)) + l2 / 2 |w|^2 with z = X w + b, s = +-1, class weights c that sum to 1.
    """
    point = torch.zeros(fit.width + 1, device=args.device, requires_grad=True)  # weight and bias
    weights, biases = [], []
    with tqdm(total=len(args.l2_grid), desc="Fit", unit="penalty") as bar:
        for l2 in args.l2_grid:
            optimizer = torch.optim.LBFGS(
                [point],
                max_iter=args.max_iter,
                history_size=20,
                tolerance_grad=1e-6,
                tolerance_change=1e-7,
                line_search_fn="strong_wolfe",
            )
            optimizer.step(lambda l2=l2: _full_gradient(point, fit, token_weights, l2))
            weights.append(point[:-1].detach().clone())
            biases.append(point[-1].detach().clone())
            bar.update()
            bar.set_postfix(l2=l2, auc=f"{roc_auc(validation.logits(weights[-1], biases[-1]), validation.labels):.4f}")
    return weights, biases


@torch.no_grad()
def _full_gradient(point: torch.Tensor, fit: _Design, token_weights: Callable, l2: float) -> torch.Tensor:
    weight, bias = point[:-1], point[-1]
    loss, gradient = l2 / 2 * weight.square().sum(), torch.zeros_like(point)
    gradient[:-1] = l2 * weight
    for features, labels in fit.chunks():
        logits = torch.mv(features, weight) + bias
        scale = token_weights(labels)
        loss = loss + binary_cross_entropy_with_logits(logits, labels, weight=scale, reduction="sum")
        residual = (logits.sigmoid() - labels) * scale
        gradient[:-1] += torch.mv(features.t(), residual)
        gradient[-1] += residual.sum()
    point.grad = gradient
    return loss


def _adamw(fit: _Design, args, token_weights: Callable, validation: _Design) -> tuple[list, list]:
    """Minibatches; every penalty is a column of one matrix, so that one pass over the features serves all."""
    torch.manual_seed(args.seed)
    l2 = torch.tensor(args.l2_grid, device=args.device)
    weight = torch.zeros(fit.width, len(l2), device=args.device, requires_grad=True)
    bias = torch.zeros(len(l2), device=args.device, requires_grad=True)
    # the penalty is part of the loss, as in the full fit, so there is no decay on top
    optimizer = torch.optim.AdamW([weight, bias], lr=args.learning_rate, weight_decay=0.0)
    n_steps = math.ceil(len(fit.labels) / args.train_batch_size) * args.num_train_epochs
    generator = torch.Generator().manual_seed(args.seed)
    n_seen, n_total = 0, len(fit.labels) * args.num_train_epochs
    with tqdm(total=n_total, desc="Fit", unit="token", unit_scale=True) as bar:
        for _ in range(args.num_train_epochs):
            for features, labels in fit.chunks(generator):
                for x, y in zip(
                    features.split(args.train_batch_size), labels.split(args.train_batch_size), strict=True
                ):
                    optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - n_seen / n_total)
                    scale = token_weights(y) * len(fit.labels) / len(y)  # the batch stands for all tokens
                    loss = binary_cross_entropy_with_logits(
                        x @ weight + bias, y[:, None].expand(-1, len(l2)), weight=scale[:, None], reduction="sum"
                    )
                    loss = loss + (l2 / 2 * weight.square().sum(dim=0)).sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    n_seen += len(y)
                    bar.update(len(y))
    logger.info("%d tokens in about %d steps", n_total, n_steps)
    return list(weight.detach().unbind(1)), list(bias.detach())


def _config(store: FeatureStore, args: JudgeTrainingArguments, parts, labels, *, l2: float, auc: float) -> JudgeConfig:
    index = store.index
    return JudgeConfig(
        hidden_size=store.hidden_size if args.use_draft_features else index["hidden_size"],
        draft_hidden_size=index["draft_hidden_size"] if args.use_draft_features else None,
        hidden_state=index["hidden_state"],
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
    (directory / METRICS_NAME).write_text(json.dumps(trained.metrics, indent=2) + "\n")
    (directory / PROMPTS_NAME).write_text(json.dumps(trained.fit_prompts) + "\n")
    if args.plot:
        plot_curves(trained.metrics, directory / PLOT_NAME)
