"""Fit logistic weights: standardised features in memory or streamed from disk, and two ways to minimise the loss.

Loss: sum_i c_i log(1 + exp(-s_i z_i)) + l2 / 2 |w|^2 with z = X w + b, and s = +1 for acceptable, -1 for mistaken
tokens. The weights c sum to 1; each is the weight of the class times that of the token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers.utils.logging import tqdm

from hf_judge.training.arguments import JudgeTrainingArguments
from hf_judge.training.metrics import roc_auc
from hf_judge.training.store import FeatureStore


class Design:
    """Holds standardised features and labels of some tokens: in memory where they fit, else streamed from disk.

    Args:
        store: features of all n_tokens tokens.
        labels: (n_tokens,) int8, labels of all tokens.
        chosen: (n_tokens,) bool, the tokens of this design.
        args: settings of the fit; device, memory and extra features count here.
        weights: (n_tokens,) float32, weights of all tokens.
        scaler: mean and scale (D,) to use; None: those of the chosen tokens.
    """

    def __init__(
        self,
        store: FeatureStore,
        labels: torch.Tensor,
        chosen: torch.Tensor,
        args: JudgeTrainingArguments,
        *,
        weights: torch.Tensor,
        scaler: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        self._store, self._chosen, self._args = store, chosen, args
        self._all_labels, self._all_weights = labels, weights
        self.labels, self.weights = labels[chosen].float(), weights[chosen]
        self.width = store.width(args.extra_features)
        self._chunk = max(256, (1 << 26) // (4 * self.width))  # tokens of 64 MB
        self.in_memory = len(self.labels) * self.width * 4 <= args.max_memory_gb * 2**30
        self.scaler = scaler or self._moments()
        self._features = None
        if self.in_memory:
            self._features = torch.empty(len(self.labels), self.width, device=args.device)
            start = 0
            for features, *_ in self._stream(None):
                self._features[start : start + len(features)] = features
                start += len(features)

    def chunks(self, generator: torch.Generator | None = None) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield standardised features (n, D), labels (n,) float and weights (n,), on the device.

        Args:
            generator: shuffles the tokens; None: in order.
        """
        if self._features is None:
            yield from self._stream(generator)
        elif generator is None:
            yield self._features, self.labels.to(self._args.device), self.weights.to(self._args.device)
        else:
            order = torch.randperm(len(self.labels), generator=generator)
            for part in order.split(self._chunk):
                columns = (self._features, self.labels, self.weights)
                yield tuple(column[part.to(column.device)].to(self._args.device) for column in columns)

    def logits(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the logits (n,) float32 of a weight (D,) and a bias (), on the CPU, in the order of `labels`."""
        return torch.cat([(features @ weight + bias).cpu() for features, *_ in self.chunks()])

    def _stream(self, generator):
        mean, scale = (t.to(self._args.device) for t in self.scaler)
        for numbers, features in self._raw(generator):
            if generator is not None:
                order = torch.randperm(len(numbers), generator=generator)
                numbers, features = numbers[order], features[order]
            features = features.to(self._args.device).sub_(mean).div_(scale)
            labels, weights = self._all_labels[numbers].float(), self._all_weights[numbers]
            yield features, labels.to(self._args.device), weights.to(self._args.device)

    def _raw(self, generator=None):
        for numbers, features in self._store.chunks(
            chunk_tokens=self._chunk, extra=self._args.extra_features, generator=generator
        ):
            kept = self._chosen[numbers]
            if kept.any():
                yield numbers[kept], features[kept]

    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation (D,) float32.

        Deviations from the first chunk's mean are summed, so that large means lose no digits.
        """
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
        # a feature that never changes carries nothing: keep it, do not divide by 0
        scale[scale < 1e-6] = 1.0
        return (mean + shift).float(), scale.float()


def solve(fit: Design, args: JudgeTrainingArguments, validation: Design) -> tuple[list, list]:
    """Return weights (D,) and biases () for every penalty of the grid."""
    mistaken = fit.labels == 0
    n_mistaken, n_acceptable = fit.weights[mistaken].sum().item(), fit.weights[~mistaken].sum().item()
    ratio = n_acceptable / n_mistaken if args.mistake_weight is None else args.mistake_weight
    total = n_acceptable + ratio * n_mistaken

    def token_weights(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights * torch.where(labels > 0, 1.0, ratio) / total

    lbfgs = args.optimizer == "lbfgs" or (args.optimizer == "auto" and fit.in_memory)
    return (_lbfgs if lbfgs else _adamw)(fit, args, token_weights, validation)


def _lbfgs(fit: Design, args: JudgeTrainingArguments, token_weights: Callable, validation: Design) -> tuple[list, list]:
    """Minimise with full gradients, from the strongest penalty to the weakest, each starting at the result before."""
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
def _full_gradient(point: torch.Tensor, fit: Design, token_weights: Callable, l2: float) -> torch.Tensor:
    weight, bias = point[:-1], point[-1]
    loss, gradient = l2 / 2 * weight.square().sum(), torch.zeros_like(point)
    gradient[:-1] = l2 * weight
    for features, labels, weights in fit.chunks():
        logits = torch.mv(features, weight) + bias
        scale = token_weights(labels, weights)
        loss = loss + binary_cross_entropy_with_logits(logits, labels, weight=scale, reduction="sum")
        residual = (logits.sigmoid() - labels) * scale
        gradient[:-1] += torch.mv(features.t(), residual)
        gradient[-1] += residual.sum()
    point.grad = gradient
    return loss


def _adamw(fit: Design, args: JudgeTrainingArguments, token_weights: Callable, validation: Design) -> tuple[list, list]:
    """Minimise over minibatches; every penalty is a column of one matrix, so one pass over the features serves all."""
    torch.manual_seed(args.seed)
    l2 = torch.tensor(args.l2_grid, device=args.device)
    weight = torch.zeros(fit.width, len(l2), device=args.device, requires_grad=True)
    bias = torch.zeros(len(l2), device=args.device, requires_grad=True)
    # the penalty is part of the loss, as in the full fit, so there is no decay on top
    optimizer = torch.optim.AdamW([weight, bias], lr=args.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(args.seed)
    n_seen, n_total = 0, len(fit.labels) * args.num_train_epochs
    with tqdm(total=n_total, desc="Fit", unit="token", unit_scale=True) as bar:
        for _ in range(args.num_train_epochs):
            for chunk in fit.chunks(generator):
                for x, y, own in zip(*(column.split(args.train_batch_size) for column in chunk), strict=True):
                    optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - n_seen / n_total)
                    scale = token_weights(y, own) * len(fit.labels) / len(y)  # the batch stands for all tokens
                    loss = binary_cross_entropy_with_logits(
                        x @ weight + bias, y[:, None].expand(-1, len(l2)), weight=scale[:, None], reduction="sum"
                    )
                    loss = loss + (l2 / 2 * weight.square().sum(dim=0)).sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    n_seen += len(y)
                    bar.update(len(y))
    return list(weight.detach().unbind(1)), list(bias.detach())
