"""Chooses the threshold of a fitted head: from the labels where they have mistakes enough, else by answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hf_judge.evaluation.evaluate import Decoding, JudgedAnswers, Pair, right_answers
from hf_judge.head.judge_head import JudgeHead
from hf_judge.making.mining import Plan
from hf_judge.making.settings import MakeSettings
from hf_judge.rules.by_name import Setting
from hf_judge.tasks.problems import Problems
from hf_judge.training.calibration import (
    FINEST_MARGIN,
    AccuracyCertificate,
    calibrate_by_accuracy,
    calibrate_by_risk,
    check_tells_apart,
)
from hf_judge.training.fit import PROMPTS_NAME
from hf_judge.training.store import FeatureStore


@dataclass(frozen=True)
class Calibrated:
    """The threshold, and why it was chosen."""

    threshold: float
    kind: str
    """Name of the way: by_risk, by_accuracy, or best (most right answers) where no threshold is within the margin."""
    said: str
    certificate: dict
    """Fields of the certificate, see `hf_judge.training.calibration`."""
    lines: list[str]
    """Accuracy and accepted tokens at every threshold, as lines of text; empty for a certificate from the labels."""


def calibrate(pair: Pair, head: JudgeHead, problems: Problems, plan: Plan, settings: MakeSettings, journal: Path):
    """Choose the threshold on prompts that the fit did not see.

    Args:
        pair: the models.
        head: the fitted head.
        problems: the calibration prompts.
        plan: whether a certificate from the labels is within reach.
        settings: risk, margin, confidence and thresholds.
        journal: folder with the features, the head's `fit_prompts.json`, and the answers of an interrupted run.

    Returns:
        A [`Calibrated`].

    Raises:
        ValueError: the head scores all tokens alike, or the target is never right on these problems.
    """
    check_tells_apart(head)
    said = ""
    if plan.by_risk:
        certificate = calibrate_by_risk(
            head,
            FeatureStore(journal / "features"),
            risk=settings.risk,
            confidence=settings.confidence,
            thresholds=settings.thresholds,
            fit_prompts=json.loads((journal / "head" / PROMPTS_NAME).read_bytes()),
        )
        if certificate.threshold is not None:
            return Calibrated(certificate.threshold, "by_risk", certificate.message(), asdict(certificate), [])
        said = certificate.message() + ". By answers: "
    certificate = _by_answers(pair, head, problems, settings, journal)
    kind, threshold = "by_accuracy", certificate.threshold
    if threshold is None:
        kind, threshold = "best", _best(certificate)
    said += certificate.message()
    if kind == "best":
        said += f"; {threshold:g} is taken, where most answers are right"
    return Calibrated(threshold, kind, said, asdict(certificate), certificate.table())


def _by_answers(
    pair: Pair, head: JudgeHead, problems: Problems, settings: MakeSettings, journal: Path
) -> AccuracyCertificate:
    judged_pair = Pair(pair.target, pair.draft, pair.tokenizer, {"judge": head}, pair.name, pair.draft_tokenizer)
    decoding = Decoding(settings.num_assistant_tokens, settings.max_new_tokens, batch_size=settings.batch_size)
    # the name holds the content: answers to other problems are other work
    task = replace(problems.task(), name=f"{problems.name} {problems.digest()}")
    answers = JudgedAnswers(judged_pair, task, decoding, journal_dir=journal / "calibration")
    plain = right_answers(
        pair, task, Setting("plain"), decoding, desc="Target's answers", journal_dir=journal / "calibration"
    )
    # one answer may weigh more than the margin: then none may be lost
    fine = len(problems) >= 1 / max(settings.margin, FINEST_MARGIN) - 1e-9
    return calibrate_by_accuracy(
        plain,
        answers,
        margin=settings.margin if fine else 0.0,
        thresholds=settings.thresholds,
        confidence=settings.confidence,
        certify=settings.certify,
        accepted_per_forward=answers.accepted_per_forward,
    )


def _best(certificate: AccuracyCertificate) -> float:
    """Return the threshold with most right answers; of several, the most lenient."""
    key = max(certificate.judged_accuracy, key=lambda key: (certificate.judged_accuracy[key], -float(key)))
    return float(key)


def finished_head(head: JudgeHead, calibrated: Calibrated) -> JudgeHead:
    """Put the threshold and what is known about it into the head's config."""
    head.config.threshold = calibrated.threshold
    found = {"statement": calibrated.said} | calibrated.certificate
    head.config.provenance = head.config.provenance | {"calibration": {calibrated.kind: found}}
    return head
