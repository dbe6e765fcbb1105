"""Holds and checks the settings of the whole way from a pair to a judge."""

from __future__ import annotations

from dataclasses import dataclass

from hf_judge.training.calibration import TASK_THRESHOLDS, check_confidence, check_margin, check_thresholds


@dataclass(frozen=True)
class MakeSettings:
    """Says how a judge is made.

    Args:
        num_assistant_tokens: drafted tokens per round of all measured answers; None: what the first look finds best.
        max_new_tokens: longest answer, in tokens.
        batch_size: answers at once, in all steps but the last measurement, which takes one at a time as a user would.
        risk: share of mistakes that the judge may accept, for a certificate from the labels.
        margin: loss of accuracy that is allowed where the mistakes are too few for that certificate.
        confidence: confidence of both statements.
        certify: whether the bound on lost answers must be within the margin, not only the loss that was measured.
        preflight_prompts: prompts of the first look, at least.
        max_prompts: bound on the prompts that are labelled.
        max_held_out: bound on the held-out problems that are answered.
        held_out_fraction: share of the prompts that is kept for the figures.
        calibration_fraction, validation_fraction: shares of the other prompts, see [`JudgeTrainingArguments`].
        thresholds: candidates of the calibration by task.
        seed: seed of the division.
        force: whether to go on where a check says that it is of no use.

    Raises:
        ValueError: a value is out of range.
    """

    num_assistant_tokens: int | None = None
    max_new_tokens: int = 512
    batch_size: int = 16
    risk: float = 0.05
    margin: float = 0.01
    confidence: float = 0.95
    certify: bool = False
    preflight_prompts: int = 20
    max_prompts: int = 2000
    max_held_out: int = 200
    held_out_fraction: float = 0.2
    calibration_fraction: float = 0.25
    validation_fraction: float = 0.15
    thresholds: tuple[float, ...] = TASK_THRESHOLDS
    seed: int = 0
    force: bool = False

    def __post_init__(self):
        counts = ["max_new_tokens", "batch_size", "preflight_prompts", "max_prompts", "max_held_out"]
        counts += [] if self.num_assistant_tokens is None else ["num_assistant_tokens"]
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("risk", "held_out_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        check_margin(self.margin)
        check_confidence(self.confidence)
        check_thresholds(self.thresholds)
