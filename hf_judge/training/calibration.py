"""Choose the threshold of a judge head with a stated risk, on data that the fit did not see.

By risk: the most lenient threshold at which the exact upper confidence bound on the share of accepted mistakes stays
under what the user allows. By task: the most lenient at which answers stay as right as the target's, up to a margin;
with an exact bound on the share of answers that are lost.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from hf_judge.checking.statistics import binomial_upper_bound, changes, mcnemar_p, mistakes_needed, wilson_interval
from hf_judge.head.config import check_threshold
from hf_judge.head.judge_head import JudgeHead
from hf_judge.training.metrics import THRESHOLDS
from hf_judge.training.store import FeatureStore

UNITS = ("prompt", "token")
FINEST_MARGIN = 0.01  # finer ones need no more answers than this
CHUNK_TOKENS = 4096
# candidates of calibration by task, each of which is decoded
TASK_THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class RiskCertificate:
    """Holds the result of calibration by risk; `threshold` is None where nothing could be certified."""

    threshold: float | None  # the most lenient one that is certified
    risk: float  # at most this share of mistakes is accepted ...
    confidence: float  # ... with this confidence
    bound: float | None  # the upper bound at the threshold
    n_mistakes: int  # independent mistakes that were counted
    n_accepted: int | None  # of them accepted at the threshold
    n_thresholds: int  # tried; the confidence is corrected for all of them
    unit: str  # "prompt": one mistaken token of every prompt; "token": all of them, taken as independent
    n_needed: int | None  # where nothing was certified: mistakes that it would take, None where more would not help
    good_accepted: float | None  # share of acceptable tokens that are accepted at the threshold
    data_hash: str  # of the labelled responses

    def message(self) -> str:
        """Say the result in one sentence."""
        if self.threshold is not None:
            good = "" if self.good_accepted is None else f", and {self.good_accepted:.1%} of good tokens"
            return (
                f"threshold {self.threshold:g}: at most {self.bound:.2%} of mistakes are accepted (confidence "
                f"{self.confidence:.0%}, {self.n_accepted} of {self.n_mistakes} mistakes accepted, one of "
                f"{self.n_thresholds} thresholds tried){good}"
            )
        wanted = f"at most {self.risk:.1%} accepted mistakes at confidence {self.confidence:.0%}"
        if self.n_needed is None:
            return (
                f"no threshold is certified: {wanted} cannot be reached with this head, which accepts too many of the "
                f"{self.n_mistakes} mistakes even at the strictest threshold; label more responses and train again, or "
                "allow more risk"
            )
        return (
            f"no threshold is certified: {wanted} needs {self.n_needed} mistakes to calibrate on, there are "
            f"{self.n_mistakes}; nothing was chosen. Label more responses, or allow more risk"
        )


def choose_by_risk(
    mistake_scores: torch.Tensor,
    *,
    risk: float,
    confidence: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[float | None, float | None, int | None]:
    """Return the most lenient certified threshold, its bound, and the mistakes needed where there is none.

    The thresholds are fixed beforehand and the error 1 - confidence is shared among them (Bonferroni), so the statement
    holds for the chosen one whichever it is.

    Args:
        mistake_scores: (n,) probabilities that the head gives to independent mistakes.
        risk: allowed share of accepted mistakes.
        confidence: confidence of the statement.
        thresholds: candidate thresholds.
    """
    if not 0 < risk < 1:
        raise ValueError(f"risk must be between 0 and 1, got {risk}")
    check_confidence(confidence)
    check_thresholds(thresholds)
    if not mistake_scores.isfinite().all():
        raise ValueError("the head's scores of these mistakes are not all finite: a threshold says nothing about NaN")
    n, error = len(mistake_scores), (1 - confidence) / len(thresholds)
    for threshold in sorted(thresholds):
        n_accepted = int((mistake_scores > threshold).sum())
        bound = binomial_upper_bound(n_accepted, n, error) if n else 1.0
        if bound <= risk:
            return threshold, bound, None
    rate = (mistake_scores > max(thresholds)).double().mean().item() if n else 0.0
    return None, None, mistakes_needed(rate, risk, error)


def calibrate_by_risk(
    head: JudgeHead,
    store: FeatureStore,
    *,
    risk: float = 0.05,
    confidence: float = 0.95,
    thresholds: Sequence[float] = THRESHOLDS,
    fit_prompts: Iterable[str] = (),
    unit: str = "prompt",
    seed: int = 0,
) -> RiskCertificate:
    """Certify a threshold for "at most `risk` of mistakes accepted, with this confidence".

    The bound is exact for independent mistakes, and mistaken tokens of one prompt are not independent: by default, one
    mistaken token of every prompt is drawn.

    Args:
        head: the fitted head.
        store: labelled features; prompts that the fit saw are left out.
        risk, confidence, thresholds: arguments of [`choose_by_risk`].
        fit_prompts: hashes of the prompts that the fit saw.
        unit: "prompt" or "token".
        seed: seed of the draw in each prompt.

    Raises:
        ValueError: the features do not fit the head; all prompts were used by the fit; an option is out of range; the
            head scores every token alike, or one not as a number.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {UNITS}, got {unit!r}")
    prompts = [row["prompt"] for row in store.rows]
    labels, rows, unseen = store.column("labels"), store.column("row"), _unseen(store, fit_prompts)
    scores = head_scores(head, store)
    mistaken = (unseen & (labels == 0)).nonzero()[:, 0].tolist()
    if unit == "prompt":
        mistaken = _one_of_each([(prompts[rows[token]], token) for token in mistaken], seed)
    mistake_scores = scores[torch.tensor(mistaken, dtype=torch.long)]
    threshold, bound, n_needed = choose_by_risk(mistake_scores, risk=risk, confidence=confidence, thresholds=thresholds)
    n_accepted = good_accepted = None
    if threshold is not None:
        _check_scores_differ(scores[unseen])
        n_accepted = int((mistake_scores > threshold).sum())
        good = scores[unseen & (labels == 1)]
        good_accepted = (good > threshold).double().mean().item() if len(good) else None
    return RiskCertificate(
        threshold=threshold,
        risk=risk,
        confidence=confidence,
        bound=bound,
        n_mistakes=len(mistaken),
        n_accepted=n_accepted,
        n_thresholds=len(thresholds),
        unit=unit,
        n_needed=n_needed,
        good_accepted=good_accepted,
        data_hash=store.index["data_hash"],
    )


def _unseen(store: FeatureStore, fit_prompts: Iterable[str]) -> torch.Tensor:
    """Return which tokens belong to prompts that the fit did not see, (n_tokens,) bool.

    Raises:
        ValueError: there are none.
    """
    seen = set(fit_prompts)
    unseen = torch.tensor([row["prompt"] not in seen for row in store.rows])[store.column("row")]
    if not unseen.any():
        raise ValueError(
            "every prompt of these features was used to fit the head: calibrate on others, or train with a "
            "calibration_fraction above 0"
        )
    return unseen


def _one_of_each(tokens: list[tuple[str, int]], seed: int) -> list[int]:
    """Draw one token of every prompt from (prompt, token) pairs."""
    by_prompt = {}
    for prompt, token in tokens:
        by_prompt.setdefault(prompt, []).append(token)
    return [random.Random(f"{seed}/{prompt}").choice(own) for prompt, own in by_prompt.items()]


def _check_scores_differ(scores: torch.Tensor) -> None:
    """Refuse scores that are all equal.

    Raises:
        ValueError: all scores are equal.
    """
    if (scores == scores[0]).all():
        raise ValueError(
            f"the head gives all {len(scores)} tokens the score {scores[0]:g}: a threshold cannot tell good ones from "
            "mistakes; nothing was chosen. Train the head again"
        )


@dataclass(frozen=True)
class AccuracyCertificate:
    """Holds the result of calibration by task; `threshold` is None where every one tried loses too much.

    Dicts go from a threshold, as text, to its figure.
    """

    threshold: float | None
    margin: float  # allowed loss of accuracy, as a share of the answers
    n_answers: int  # prompts
    target_accuracy: float  # share of right answers
    judged_accuracy: dict  # share of right answers
    lost: dict  # answers that the target alone gets right and the judge wrong
    gained: dict  # answers that the target alone gets wrong and the judge right
    confidence: float  # confidence of the bounds, for all thresholds together
    lost_bound: dict  # exact upper bound on the share of answers lost
    n_needed: int  # answers without a loss that would bound it by the margin
    falls: list  # (lenient, stricter) thresholds between which accuracy falls by more than chance
    accepted_per_forward: dict = field(default_factory=dict)  # drafted tokens; empty: not counted

    def message(self) -> str:
        """Say the result in a few sentences."""
        tried = f"{len(self.judged_accuracy)} threshold{'s' * (len(self.judged_accuracy) > 1)} tried"
        if self.threshold is None:
            best = min(self.lost_bound.values())
            text = (
                f"no threshold keeps accuracy within {self.margin:.1%} of the target's {self.target_accuracy:.1%} "
                f"({tried} on {self.n_answers} answers; the smallest bound on lost answers is {best:.1%})"
            )
        else:
            key = _key(self.threshold)
            text = (
                f"threshold {key}: accuracy {self.judged_accuracy[key]:.1%} on {self.n_answers} answers, the target's "
                f"is {self.target_accuracy:.1%}; {self.lost[key]} lost, {self.gained[key]} gained; at most "
                f"{self.lost_bound[key]:.1%} of answers are lost (confidence {self.confidence:.0%}, {tried})"
            )
        for lenient, stricter in self.falls:
            text += (
                f". Stricter is not safer here: at {stricter:g} fewer answers are right than at {lenient:g}, by more "
                "than chance"
            )
        return text

    def table(self) -> list[str]:
        """Return the whole curve as lines of text: right, lost and gained answers at each threshold."""
        counted = "  accepted per forward" if self.accepted_per_forward else ""
        lines = [f"threshold  right answers   lost  gained  lost at most{counted}"]
        for key, accuracy in self.judged_accuracy.items():
            low, high = wilson_interval(round(accuracy * self.n_answers), self.n_answers)
            accepted = f"  {self.accepted_per_forward[key]:>20.1f}" if counted else ""
            lines.append(
                f"{key:>9}  {accuracy:6.1%} ({low:.0%}-{high:.0%})  {self.lost[key]:>4}  {self.gained[key]:>6}  "
                f"{self.lost_bound[key]:>12.1%}{accepted}"
            )
        return lines


def _key(threshold: float) -> str:
    """Return a threshold as text: short where that is exact, so that no two thresholds share a text."""
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(float(threshold))


def answers_needed(margin: float, confidence: float, n_thresholds: int = 1) -> int:
    """Return how many answers without a loss bound the share of lost answers by `margin`.

    With one threshold, a margin of 0.01 at confidence 0.95 takes 299: 0.99^299 < 0.05.

    Args:
        margin: the bound, above 0.
        confidence: confidence of the bounds, for all thresholds together.
        n_thresholds: thresholds tried.
    """
    return 1 if margin >= 1 else math.ceil(math.log((1 - confidence) / n_thresholds) / math.log1p(-margin) - 1e-9)


def calibrate_by_accuracy(
    target_right: Sequence[bool],
    judged_right: Callable[[float], Sequence[bool]],
    *,
    margin: float = 0.01,
    thresholds: Sequence[float] = TASK_THRESHOLDS,
    confidence: float = 0.95,
    certify: bool = False,
    accepted_per_forward: Callable[[float], float | None] | None = None,
) -> AccuracyCertificate:
    """Measure accuracy at every threshold, and choose the most lenient that stays within `margin` of the target's.

    All thresholds are tried, since accuracy may fall as the threshold rises. For each the certificate holds an exact
    (Clopper-Pearson) upper bound on the share of answers that the judge loses; the error 1 - confidence is shared among
    the thresholds (Bonferroni), so the bounds hold for the chosen one whichever it is.

    Args:
        target_right: whether the target's own answers are right.
        judged_right: returns the same for the judged answers at a threshold, to the same prompts in the same order.
        margin: allowed loss, as a share of the answers.
        thresholds: candidate thresholds.
        confidence: confidence of the bounds.
        certify: whether the bound on lost answers must be within the margin, not only the loss that was measured.
        accepted_per_forward: returns the accepted drafted tokens per forward at a threshold, for the table.

    Raises:
        ValueError: no answers, or another number of judged ones; the target's are too few or too seldom right for the
            margin, so that any judge would do; an option is out of range.
    """
    _check_answers(target_right, margin)
    check_thresholds(thresholds)
    check_confidence(confidence)
    n = len(target_right)
    right = {threshold: list(judged_right(threshold)) for threshold in sorted(set(thresholds))}
    for answers in right.values():
        if len(answers) != n:
            raise ValueError(f"judged answers must pair with the target's {n}, got {len(answers)}")
    changed = {threshold: changes(target_right, answers) for threshold, answers in right.items()}
    gained, lost = ({threshold: pair[i] for threshold, pair in changed.items()} for i in (0, 1))
    error = (1 - confidence) / len(right)
    bounds = {threshold: binomial_upper_bound(lost[threshold], n, error) for threshold in right}
    # shares of whole answers: rounding must not turn an allowed loss into a refused one
    within = [t for t in right if (bounds[t] <= margin if certify else lost[t] - gained[t] <= margin * n + 1e-9)]
    if within:
        check_margin(margin, n)
    return AccuracyCertificate(
        threshold=min(within, default=None),
        margin=margin,
        n_answers=n,
        target_accuracy=sum(target_right) / n,
        judged_accuracy={_key(t): sum(answers) / n for t, answers in right.items()},
        lost={_key(t): count for t, count in lost.items()},
        gained={_key(t): count for t, count in gained.items()},
        confidence=confidence,
        lost_bound={_key(t): bound for t, bound in bounds.items()},
        n_needed=answers_needed(margin, confidence, len(right)) if margin else 0,
        falls=_falls(right),
        accepted_per_forward={} if accepted_per_forward is None else {_key(t): accepted_per_forward(t) for t in right},
    )


def _falls(right: dict[float, list[bool]]) -> list[tuple[float, float]]:
    """Return the largest fall of accuracy as the threshold rises, if chance does not explain it.

    Chance: an exact McNemar test on the same answers, at 5% shared among all pairs of thresholds (Bonferroni).

    Args:
        right: threshold, ascending -> whether each answer is right.
    """
    pairs = [(a, b) for a in right for b in right if a < b and sum(right[a]) > sum(right[b])]
    if not pairs:
        return []
    lenient, stricter = max(pairs, key=lambda pair: sum(right[pair[0]]) - sum(right[pair[1]]))
    p = mcnemar_p(*changes(right[lenient], right[stricter]))
    return [(lenient, stricter)] if p <= 0.05 / math.comb(len(right), 2) else []


def _check_answers(target_right: Sequence[bool], margin: float) -> None:
    """Refuse answers of a target that any judge would be as good as.

    Raises:
        ValueError: there are none, or too few are right for the margin; or the margin is refused.
    """
    n, n_right = len(target_right), sum(target_right)
    if not n:
        raise ValueError("calibration by task needs answers: there are none")
    check_margin(margin)
    if n_right == 0 or (margin < 1 and n_right <= margin * n + 1e-9):
        raise ValueError(
            f"the target itself is right in {n_right} of {n} answers and may lose {margin * n:g}: a "
            "judge that is never right would do; nothing was chosen. Are the answers, the checker and "
            "--max-new-tokens those of these prompts?"
        )


def check_margin(margin: float, n_answers: int | None = None) -> None:
    """Refuse a margin that is no share, or too fine for a number of answers: one of n answers weighs 1 / n.

    A margin of 0 goes with any number of answers: it says that none of them may be lost.

    Raises:
        ValueError: the margin is refused.
    """
    if not 0 <= margin <= 1:
        raise ValueError(f"margin must be between 0 and 1, got {margin}")
    n_needed = 1 if margin == 0 else math.ceil(1 / max(margin, FINEST_MARGIN) - 1e-9)
    if n_answers is not None and n_answers < n_needed:
        raise ValueError(
            f"a margin of {margin:.1%} needs at least {n_needed} prompts, there are {n_answers}: one of {n_answers} "
            f"answers weighs {1 / n_answers:.1%}; nothing was chosen. Pass more prompts, or allow a greater margin"
        )


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is no probability between 0 and 1.

    Raises:
        ValueError: the confidence is refused.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse thresholds that cannot be a head's.

    Raises:
        ValueError: there are none, or one is not between 0 and 1.
    """
    if not thresholds:
        raise ValueError("calibration needs thresholds to try: there are none")
    for threshold in thresholds:
        check_threshold(threshold)


def check_tells_apart(head: JudgeHead) -> None:
    """Refuse a head that scores every token alike.

    Raises:
        ValueError: all its weights are 0, or one is not finite.
    """
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise ValueError("this judge head holds NaN or infinite values: train it again")
    if not head.weight.any():
        raise ValueError(
            "all weights of this judge head are 0: it gives every token the same score, and a threshold cannot tell "
            "good ones from mistakes; nothing was chosen. Train it first"
        )


def head_scores(head: JudgeHead, store: FeatureStore) -> torch.Tensor:
    """Return the head's probability of "acceptable" for every token of the store, (n_tokens,).

    Raises:
        ValueError: the features are of another kind than the head reads, or a score is not finite.
    """
    index, config = store.index, head.config
    same_state = (config.hidden_size, config.hidden_state) == (index["hidden_size"], index["hidden_state"])
    if not same_state or not set(config.extra_features) <= set(store.extra_features):
        raise ValueError(
            f"head reads '{config.hidden_state}' states of size {config.hidden_size} (extra: "
            f"{', '.join(config.extra_features) or None}), the features are '{index['hidden_state']}' states of size "
            f"{index['hidden_size']} (extra: {', '.join(store.extra_features) or None}): extract features for this head"
        )
    with torch.no_grad():
        chunks = store.chunks(chunk_tokens=CHUNK_TOKENS, extra=config.extra_features)
        logits = torch.cat([head(features).cpu() for _, features in chunks])
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).nonzero()[0])
        raise ValueError(
            f"{int((~logits.isfinite()).sum())} of {len(logits)} scores are not finite (the first is of token {bad}): "
            "nothing can be calibrated on them. Extract the features in float32 or bfloat16"
        )
    return logits.sigmoid()


def apply_certificate(head: JudgeHead, certificate: RiskCertificate | AccuracyCertificate) -> None:
    """Put the threshold and its certificate into the head's config.

    Raises:
        ValueError: nothing was certified.
    """
    if certificate.threshold is None:
        raise ValueError(certificate.message())
    head.config.threshold = float(certificate.threshold)
    kind = "by_risk" if isinstance(certificate, RiskCertificate) else "by_accuracy"
    certified = {"statement": certificate.message()} | asdict(certificate)
    head.config.provenance = head.config.provenance | {"calibration": {kind: certified}}
