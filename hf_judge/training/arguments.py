"""Hold and check the settings of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_judge.head.config import check_extra_features, check_number, check_threshold

OPTIMIZERS = ("auto", "lbfgs", "adamw")
# docs/thresholds.md has the figures that chose it
RESCUE_WINDOW = 16


@dataclass
class JudgeTrainingArguments:
    """Says how to fit a head.

    Args:
        output_dir (`str`): folder of the head, its metrics and its plot.
        l2_grid (`tuple[float]`): penalties l2 / 2 * |w|^2 on standardised features. The strongest one wins whose
            validation AUC is not clearly below the best (within 1.96 standard errors of it).
        validation_fraction (`float`): share of the prompts that choose the penalty.
        calibration_fraction (`float`): share of the prompts that is left for `calibrate`; 0 where other data calibrate.
        mistake_weight (`float`, *optional*): weight of a mistaken token relative to an acceptable one; None: the
            weight at which both classes weigh the same.
        matched_weight (`float`): weight of an acceptable token that strict verification accepts anyway, relative to
            another acceptable one: the judge decides nothing there, and there are many of them.
        optimizer (`str`): "lbfgs" (exact), "adamw" (minibatches, all penalties in one go) or "auto": lbfgs as long as
            the features fit in `max_memory_gb`.
        max_iter (`int`): L-BFGS iterations per penalty.
        num_train_epochs, learning_rate, train_batch_size: settings of adamw; the batch is counted in tokens.
        max_memory_gb (`float`): limit above which the features are streamed from disk.
        extra_features (`tuple[str]`): numbers of the verification that the head reads too, see [`JudgeConfig`].
        threshold (`float`): threshold of the saved head, until it is calibrated.
        rescue_window (`int`): window of the saved head, see [`JudgeConfig`].
        seed (`int`): seed of the split and of the minibatches.
        device (`str`, *optional*): device of the fit; default: a GPU if there is one.
        plot (`bool`): whether to draw the curves.

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
    rescue_window: int = RESCUE_WINDOW
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
        check_number("rescue_window", self.rescue_window, 0, kind=int)
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device must be one of torch's, as 'cpu' or 'cuda:0', got {self.device!r}") from None
