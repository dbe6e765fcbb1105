"""Fits a head to the labels: features, fit, and the figures of held-out tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_judge.evaluation.evaluate import Pair
from hf_judge.labelling.responses import load_rows
from hf_judge.making.settings import MakeSettings
from hf_judge.training.arguments import JudgeTrainingArguments
from hf_judge.training.extraction import extract_features
from hf_judge.training.fit import train_judge
from hf_judge.training.metrics import described, plot_curves


@dataclass(frozen=True)
class Fitted:
    """A fitted head, and how well it tells tokens apart that the fit did not see."""

    auc: float | None
    """AUC over the tokens on which the judge decides."""
    auc_all: float | None
    """AUC over all labelled tokens."""
    n_mistaken: int
    """Mistaken tokens among them."""
    said: str


def fit(pair: Pair, labels: Path, settings: MakeSettings, journal: Path, figures: Path) -> Fitted:
    """Extract the features of all labels and fit a head, which is written to `journal/head`.

    Args:
        pair: the models.
        labels: JSONL file of the labels.
        settings: batch size, division and seed.
        journal: folder of the features and of the head.
        figures: folder of the plot.

    Raises:
        ValueError: a part of the labels lacks one of the classes.
    """
    store, report = extract_features(
        pair.target, pair.tokenizer, load_rows(labels), journal / "features", batch_size=settings.batch_size
    )
    arguments = JudgeTrainingArguments(
        str(journal / "head"),
        validation_fraction=settings.validation_fraction,
        calibration_fraction=settings.calibration_fraction,
        seed=settings.seed,
    )
    metrics = train_judge(store, arguments).metrics
    figures.mkdir(parents=True, exist_ok=True)
    plot_curves(metrics, figures / "judge_curves.png")
    decided = metrics["decided"]
    return Fitted(decided["auc"], metrics["all"]["auc"], decided["n_mistaken"], f"{described(metrics)}; {report}")
