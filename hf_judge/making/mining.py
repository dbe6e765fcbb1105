"""Labels prompts until there are enough mistakes for what is asked, and not a fixed number of prompts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from hf_judge.checking.statistics import mistakes_needed
from hf_judge.evaluation.evaluate import Pair
from hf_judge.labelling.responses import LabelledResponse, load_rows
from hf_judge.labelling.swaps import mine_swaps
from hf_judge.making.problems import Parts
from hf_judge.making.settings import MakeSettings
from hf_judge.tasks.problems import Problems

FIT_MISTAKES = 200  # mistaken tokens after which the fit of the embedded pair no longer gains
ACCEPTED_RATE = 0.01  # share of mistakes that a good head accepts, for the number that a certificate needs


@dataclass(frozen=True)
class Plan:
    """How many mistakes are looked for, and on which prompts."""

    by_risk: bool
    """Whether a certificate from the labels is within reach; else answers alone choose the threshold."""
    n_needed: int
    """Mistakes: calibration prompts that have one, or, without the certificate, mistaken tokens to fit to."""
    n_prompts: int
    """Prompts that this will take, about."""
    bound: int
    """Prompts that are labelled at most."""
    reason: str
    """One sentence."""


@dataclass(frozen=True)
class Mined:
    """What the labelling found."""

    n_prompts: int
    n_rows: int
    n_mistakes: int
    """Mistaken tokens, of all prompts."""
    n_calibration_prompts: int
    """Calibration prompts with a mistake."""
    enough: bool
    said: str
    refused: list = field(default_factory=list)


def planned(parts: Parts, settings: MakeSettings, share_with_mistake: float, mistakes_per_prompt: float) -> Plan:
    """Plan the labelling from what the first prompts showed.

    Args:
        parts: all problems.
        settings: the risk, and the bound on prompts.
        share_with_mistake: share of prompts in which a swap changed the answer.
        mistakes_per_prompt: mistaken tokens per prompt.
    """
    error = (1 - settings.confidence) / len(settings.thresholds)
    n_needed = mistakes_needed(min(ACCEPTED_RATE, settings.risk / 2), settings.risk, error)
    n_labelled = len(parts.fit) + len(parts.calibrate)
    bound = min(n_labelled, settings.max_prompts)
    in_calibration = len(parts.calibrate) / n_labelled
    n_prompts = math.inf if n_needed is None else n_needed / max(share_with_mistake * in_calibration, 1e-9)
    if n_prompts <= bound:
        reason = (
            f"a certificate of {settings.risk:.0%} risk takes {n_needed} calibration prompts with a mistake: about "
            f"{n_prompts:.0f} prompts"
        )
        return Plan(True, n_needed, math.ceil(n_prompts), bound, reason)
    wanted = "more prompts than can be made" if math.isinf(n_prompts) else f"about {n_prompts:.0f} prompts"
    n_fit = min(math.ceil(FIT_MISTAKES / max(mistakes_per_prompt, 1e-9)), len(parts.fit), settings.max_prompts)
    reason = (
        f"a certificate of {settings.risk:.0%} risk would take {wanted}, there are {bound} to label: the threshold "
        "will be chosen by the answers to the calibration prompts"
    )
    return Plan(False, FIT_MISTAKES, n_fit, min(len(parts.fit), settings.max_prompts), reason)


def mine(
    pair: Pair,
    parts: Parts,
    plan: Plan,
    settings: MakeSettings,
    labels: str | os.PathLike,
    *,
    first: int,
) -> Mined:
    """Label until the plan's number of mistakes is reached, or its bound on prompts.

    Args:
        pair: the models.
        parts: all problems.
        plan: see [`planned`].
        settings: answer length and batch size.
        labels: JSONL file of the labels, with a journal beside it.
        first: number of problems of the fit part that the preflight has labelled.
    """
    problems = order(parts, plan, first)
    step = max(4 * settings.batch_size, 64)
    n = min(plan.bound, max(plan.n_prompts, first))
    while True:
        report, rows = label(pair, problems.first(n), settings, labels)
        n_mistakes, n_calibration = count_mistakes(rows, parts)
        enough = (n_calibration if plan.by_risk else n_mistakes) >= plan.n_needed
        if enough or n >= plan.bound or n >= len(problems):
            return Mined(
                n, len(rows), n_mistakes, n_calibration, enough, str(report), [list(one) for one in report.refused]
            )
        n = min(plan.bound, n + step)


def label(pair: Pair, problems: Problems, settings: MakeSettings, labels: str | os.PathLike):
    """Label problems by swaps; those that the file's journal holds are not labelled again.

    Returns:
        The report, and all examples.
    """
    report = mine_swaps(
        pair.target,
        pair.draft,
        pair.tokenizer,
        problems.rows,
        problems.checker,
        labels,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        draft_tokenizer=pair.draft_tokenizer,
        names=problems.names,
    )
    return report, load_rows(labels)


def order(parts: Parts, plan: Plan, first: int) -> Problems:
    """Return the problems in the order in which they are labelled, those of the preflight first."""
    head = list(range(min(first, len(parts.fit))))
    rest = list(range(len(head), len(parts.fit)))
    fit = parts.fit.chosen(head)
    others = Parts(parts.fit.chosen(rest), parts.calibrate, parts.held_out).labelled if plan.by_risk else None
    others = parts.fit.chosen(rest) if others is None else others
    return Problems(fit.name, fit.rows + others.rows, fit.checker, fit.names + others.names)


def count_mistakes(rows: list[LabelledResponse], parts: Parts) -> tuple[int, int]:
    """Return the number of mistaken tokens, and of calibration prompts that have one."""
    calibration = set(parts.calibrate.hashes())
    mistaken = [row.prompt_hash for row in rows if row.mistakes]
    return len(mistaken), len(calibration & set(mistaken))
