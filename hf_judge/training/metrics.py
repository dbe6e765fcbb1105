"""Measure how well scores tell mistakes from acceptable tokens: AUC, average precision, and curves over thresholds.

Polarity everywhere: label 1 is acceptable, a high score means acceptable.
"""

from __future__ import annotations

import os

import torch

from hf_judge.head.repository.tables import TOKENS

# dense where judges work: most tokens score near 1
THRESHOLDS = (
    0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998, 0.999,
)  # fmt: skip


def roc_auc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the probability that an acceptable token scores higher than a mistaken one, ties counting half.

    With R the sum of the acceptable tokens' ranks (mean ranks for ties): (R - n1 (n1 + 1) / 2) / (n1 n0), the
    Mann-Whitney statistic.

    Args:
        scores: (n,) float.
        labels: (n,) 1 acceptable, 0 mistaken.

    Raises:
        ValueError: one of the classes is empty.
    """
    n_acceptable, n_mistaken = _counts(labels)
    ordered, order = scores.double().sort()
    _, group, sizes = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    ranks = last - (sizes.double() - 1) / 2  # mean rank of each group of equal scores, from 1 on
    rank_sum = ranks[group][labels[order] == 1].sum().item()
    return (rank_sum - n_acceptable * (n_acceptable + 1) / 2) / (n_acceptable * n_mistaken)


def auc_standard_error(auc: float, n_acceptable: int, n_mistaken: int) -> float:
    """Return the standard error of an AUC (Hanley and McNeil, 1982, doi:10.1148/radiology.143.1.7063747).

    sqrt((A (1 - A) + (n1 - 1) (A / (2 - A) - A^2) + (n0 - 1) (2 A^2 / (1 + A) - A^2)) / (n1 n0)).
    """
    square = auc * auc
    both_acceptable, both_mistaken = auc / (2 - auc) - square, 2 * square / (1 + auc) - square
    variance = auc * (1 - auc) + (n_acceptable - 1) * both_acceptable + (n_mistaken - 1) * both_mistaken
    return (max(variance, 0.0) / (n_acceptable * n_mistaken)) ** 0.5


def average_precision(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the average precision of finding the mistakes: sum over thresholds of (R_i - R_{i-1}) P_i.

    The lowest scores come first. Mistakes are the rare class, so this figure moves when a head gets better at them.

    Raises:
        ValueError: one of the classes is empty.
    """
    _, n_mistaken = _counts(labels)
    ordered, order = scores.double().sort()
    found = (labels[order] == 0).double().cumsum(0)
    _, sizes = ordered.unique_consecutive(return_counts=True)
    at = sizes.cumsum(0) - 1  # equal scores come in together
    precision, recall = found[at] / (at + 1).double(), found[at] / n_mistaken
    before = torch.cat([recall.new_zeros(1), recall[:-1]])
    return ((recall - before) * precision).sum().item()


def threshold_curve(
    scores: torch.Tensor, labels: torch.Tensor, thresholds: tuple[float, ...] = THRESHOLDS
) -> list[dict[str, float]]:
    """Return the share of mistakes that are caught and of acceptable tokens that are accepted, at every threshold.

    Args:
        scores: (n,) probabilities; a token is accepted where its score is above the threshold.
        labels: (n,) 1 acceptable, 0 mistaken.
        thresholds: the thresholds of the curve.
    """
    mistaken, acceptable = scores[labels == 0], scores[labels == 1]
    return [
        {
            "threshold": threshold,
            "mistakes_caught": (mistaken <= threshold).double().mean().item(),
            "good_accepted": (acceptable > threshold).double().mean().item(),
        }
        for threshold in thresholds
    ]


def judge_metrics(scores: torch.Tensor, labels: torch.Tensor, decided: torch.Tensor, sources: list[str]) -> dict:
    """Return all figures of scored tokens, overall and by source, each over two sets of tokens.

    "decided" are the tokens on which a judge decides: mistakes, and acceptable tokens that strict verification rejects.
    "all" are all labelled tokens; most of those strict verification accepts anyway, and they are easy to score.

    Args:
        scores: (n,) probabilities of being acceptable.
        labels: (n,) 1 acceptable, 0 mistaken.
        decided: (n,) bool, the tokens on which a judge decides.
        sources: n names, the source of each token.

    Returns:
        JSON values: decided and all (auc, average_precision of mistakes, n_acceptable, n_mistaken, curve), by_source
        (decided and all of each, without curves).
    """
    every = torch.ones_like(decided)
    metrics = {
        name: _figures(scores[chosen], labels[chosen]) | {"curve": threshold_curve(scores[chosen], labels[chosen])}
        for name, chosen in (("decided", decided), ("all", every))
    }
    metrics["by_source"] = {}
    for name in sorted(set(sources)):
        own = torch.tensor([source == name for source in sources])
        metrics["by_source"][name or "(no source)"] = {
            kind: _figures(scores[chosen & own], labels[chosen & own])
            for kind, chosen in (("decided", decided), ("all", every))
        }
    return metrics


def described(metrics: dict) -> str:
    """Return both AUCs of `judge_metrics`, or of one of its sources, with what each is over."""
    return "; ".join(
        f"AUC {'-' if metrics[kind]['auc'] is None else format(metrics[kind]['auc'], '.4f')} over {tokens} "
        f"({metrics[kind]['n_acceptable']} good, {metrics[kind]['n_mistaken']} mistaken)"
        for kind, tokens in TOKENS.items()
    )


def plot_curves(metrics: dict, path: str | os.PathLike) -> None:
    """Draw both curves of `judge_metrics` as a PNG, over the tokens on which the judge decides."""
    from matplotlib.figure import Figure  # takes half a second, which no other command should wait for

    decided = metrics["decided"]
    curve = decided["curve"]
    x = range(len(curve))  # thresholds crowd near 1: equal steps keep them apart
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, [point["mistakes_caught"] for point in curve], marker="o", label="mistakes caught")
    axes.plot(x, [point["good_accepted"] for point in curve], marker="s", label="good tokens accepted")
    axes.set_xticks(list(x), [f"{point['threshold']:g}" for point in curve], rotation=60)
    axes.set(xlabel="threshold (lenient to strict)", ylabel="share of tokens", ylim=(-0.02, 1.02))
    axes.set_title(
        f"tokens on which the judge decides: {decided['n_acceptable']} good and {decided['n_mistaken']} mistaken, "
        f"AUC {decided['auc']:.3f}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def _figures(scores: torch.Tensor, labels: torch.Tensor) -> dict:
    figures = {"n_acceptable": int((labels == 1).sum()), "n_mistaken": int((labels == 0).sum())}
    both = figures["n_acceptable"] > 0 and figures["n_mistaken"] > 0
    figures["auc"] = roc_auc(scores, labels) if both else None
    figures["average_precision"] = average_precision(scores, labels) if both else None
    return figures


def _counts(labels: torch.Tensor) -> tuple[int, int]:
    n_acceptable, n_mistaken = int((labels == 1).sum()), int((labels == 0).sum())
    if not n_acceptable or not n_mistaken:
        raise ValueError(f"needs tokens of both classes, got {n_acceptable} acceptable and {n_mistaken} mistaken ones")
    return n_acceptable, n_mistaken
