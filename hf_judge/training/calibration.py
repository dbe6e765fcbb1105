"""Choose the threshold of a judge head with a stated risk, on data that the fit did not see.

By risk: the most lenient threshold at which the exact upper confidence bound on the share of accepted mistakes stays
under what the user allows. By task: the most lenient at which answers stay as right as the target's, up to a margin.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch

from hf_judge.head.config import check_threshold
from hf_judge.head.judge_head import JudgeHead
from hf_judge.training.metrics import THRESHOLDS
from hf_judge.training.store import FeatureStore

UNITS = ("prompt", "token")
FINEST_MARGIN = 0.01  # finer ones need no more answers than this
CHUNK_TOKENS = 4096


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


def binomial_upper_bound(n_events: int, n: int, error: float) -> float:
    """Return the exact (Clopper-Pearson) upper bound on a probability.

    The p at which P(Binomial(n, p) <= k) = error: had the probability been higher, so few events would have had a
    chance below `error`.

    Args:
        n_events: k, the events that were seen.
        n: independent trials.
        error: chance of a bound that is too low, between 0 and 1.
    """
    if n_events >= n:
        return 1.0
    if n_events == 0:
        return -math.expm1(math.log(error) / n)  # (1 - p)^n = error
    k = torch.arange(n_events + 1, dtype=torch.float64)
    trials = torch.tensor(float(n), dtype=torch.float64)
    ways = torch.lgamma(trials + 1) - torch.lgamma(k + 1) - torch.lgamma(trials - k + 1)
    low, high = n_events / n, 1.0
    # bisection: the tail falls with p; 60 halvings are below the spacing of doubles
    for _ in range(60):
        p = (low + high) / 2
        tail = torch.logsumexp(ways + k * math.log(p) + (trials - k) * math.log1p(-p), dim=0).item() if p < 1 else -1e9
        low, high = (p, high) if tail > math.log(error) else (low, p)
    return high


def mistakes_needed(rate: float, risk: float, error: float, limit: int = 1_000_000) -> int | None:
    """Return the number of mistakes at which a share `rate` of accepted ones is certified to be under `risk`.

    Returns:
        The smallest such number, up to rounding of the events; None above `limit`.
    """
    if rate >= risk:
        return None
    n = math.ceil(math.log(error) / math.log1p(-risk))
    while n <= limit:
        if binomial_upper_bound(math.ceil(rate * n), n, error) <= risk:
            return n
        n = math.ceil(n * 1.05)
    return None


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
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
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
    """Holds the result of calibration by task; `threshold` is None where every one tried loses too much."""

    threshold: float | None
    margin: float  # allowed loss of accuracy, as a share of the answers
    n_answers: int  # prompts
    target_accuracy: float  # share of right answers
    judged_accuracy: dict  # threshold (as text) -> accuracy, of those tried

    def message(self) -> str:
        """Say the result in one sentence."""
        if self.threshold is None:
            return f"no threshold keeps accuracy within {self.margin:.1%} of the target's {self.target_accuracy:.1%}"
        return (
            f"threshold {self.threshold:g}: accuracy {self.judged_accuracy[f'{self.threshold:g}']:.1%} on "
            f"{self.n_answers} answers, the target's is {self.target_accuracy:.1%}"
        )


def calibrate_by_accuracy(
    target_right: Sequence[bool],
    judged_right: Callable[[float], Sequence[bool]],
    *,
    margin: float = 0.01,
    thresholds: Sequence[float] = THRESHOLDS,
) -> AccuracyCertificate:
    """Find the most lenient threshold whose accuracy stays within `margin` of the target's.

    Args:
        target_right: whether the target's own answers are right.
        judged_right: returns the same for the judged answers at a threshold, to the same prompts in the same order;
            called from the most lenient threshold on until one is found.
        margin: allowed loss, as a share of the answers.
        thresholds: candidate thresholds.

    Raises:
        ValueError: no answers, or another number of judged ones; the target's are too few or too seldom right for the
            margin, so that any judge would do; an option is out of range.
    """
    if not target_right:
        raise ValueError("calibration by task needs answers: there are none")
    check_margin(margin)
    check_thresholds(thresholds)
    n_right, n_allowed = sum(target_right), margin * len(target_right)
    if n_right == 0 or (margin < 1 and n_right <= n_allowed + 1e-9):
        raise ValueError(
            f"the target itself is right in {n_right} of {len(target_right)} answers and may lose {n_allowed:g}: a "
            "judge that is never right would do; nothing was chosen. Are the answers, the checker and "
            "--max-new-tokens those of these prompts?"
        )
    accuracy, judged = sum(target_right) / len(target_right), {}
    chosen = None
    for threshold in sorted(thresholds):
        right = judged_right(threshold)
        if len(right) != len(target_right):
            raise ValueError(f"judged answers must pair with the target's {len(target_right)}, got {len(right)}")
        judged[f"{threshold:g}"] = sum(right) / len(right)
        # shares of whole answers: rounding must not turn an allowed loss into a refused one
        if sum(target_right) - sum(right) <= margin * len(right) + 1e-9:
            chosen = threshold
            break
    if chosen is not None:
        check_margin(margin, len(target_right))
    return AccuracyCertificate(chosen, margin, len(target_right), accuracy, judged)


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
    head.config.provenance = head.config.provenance | {"calibration": {kind: asdict(certificate)}}
