"""Thresholds with a stated risk: the bound is exact, the statement holds, and nothing is chosen without evidence."""

import math

import pytest
import torch
from feature_stores import make_store, separable
from hypothesis import given
from hypothesis import strategies as st

from hf_judge import JudgeConfig, JudgeHead
from hf_judge.training.calibration import (
    apply_certificate,
    binomial_upper_bound,
    calibrate_by_accuracy,
    calibrate_by_risk,
    choose_by_risk,
    mistakes_needed,
)
from hf_judge.training.metrics import THRESHOLDS


def tail(k, n, p):
    """P(Binomial(n, p) <= k), by adding up."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@given(st.integers(1, 400), st.floats(0, 1), st.floats(1e-4, 0.5))
def test_the_bound_is_the_probability_at_which_so_few_events_are_just_too_unlikely(n, share, error):
    k = min(n - 1, int(share * n))
    bound = binomial_upper_bound(k, n, error)
    assert k / n < bound < 1
    assert tail(k, n, bound) == pytest.approx(error, rel=1e-6)


def test_known_bounds():
    """Clopper and Pearson's upper limits at 95%, one-sided; "rule of three" for no events."""
    assert binomial_upper_bound(0, 59, 0.05) == pytest.approx(0.0495, abs=1e-4)
    assert binomial_upper_bound(0, 1000, 0.05) == pytest.approx(3 / 1000, rel=0.01)
    assert binomial_upper_bound(10, 100, 0.05) == pytest.approx(0.1637, abs=1e-4)
    assert binomial_upper_bound(7, 7, 0.05) == 1.0


def test_mistakes_needed():
    assert mistakes_needed(0.0, 0.05, 0.05) == 59
    assert mistakes_needed(0.0, 0.05, 0.05 / 20) == 117
    n = mistakes_needed(0.03, 0.05, 0.05)
    assert binomial_upper_bound(math.ceil(0.03 * n), n, 0.05) <= 0.05
    assert mistakes_needed(0.05, 0.05, 0.05) is None


# --- the statement holds --------------------------------------------------------------------------------------------

RISK, CONFIDENCE, CALIBRATIONS = 0.1, 0.9, 200
# Each calibration may fail with probability at most 0.1. P(Binomial(200, 0.1) >= 36) < 4e-4: the false-alarm
# probability of each test below, were its seed not fixed.
MOST_FAILURES = 35


def true_risk(threshold):
    """Mistakes score u^3 for uniform u, so a share 1 - t^(1/3) is accepted."""
    return 1 - threshold ** (1 / 3)


def draw_mistakes(n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


def failures(choose):
    chosen = [choose(seed) for seed in range(CALIBRATIONS)]
    return sum(threshold is not None and true_risk(threshold) > RISK for threshold in chosen), chosen


def test_the_false_alarm_probability_stated_above():
    assert 1 - tail(MOST_FAILURES, CALIBRATIONS, 1 - CONFIDENCE) < 4e-4


def test_200_calibrations_exceed_the_risk_no_more_often_than_stated():
    n_failed, chosen = failures(
        lambda seed: choose_by_risk(draw_mistakes(400, seed), risk=RISK, confidence=CONFIDENCE)[0]
    )
    assert n_failed <= MOST_FAILURES
    # and it is not by refusing to choose, nor by choosing the strictest
    assert sum(threshold is not None for threshold in chosen) > 150
    assert sum(threshold is not None and threshold < 0.97 for threshold in chosen) > 50


def test_the_simulation_can_fail():
    """The most lenient threshold whose observed share is under the risk, without a bound, exceeds it far too often."""

    def naive(seed):
        scores = draw_mistakes(400, seed)
        grid = [t / 1000 for t in range(1, 1000)]
        return next((t for t in grid if (scores > t).double().mean() <= RISK), None)

    assert failures(naive)[0] > MOST_FAILURES


def clustered_store(directory, seed, n_prompts=100, per_prompt=12):
    """Prompts whose mistakes all score alike: many tokens, little evidence."""
    scores = draw_mistakes(n_prompts, seed).repeat_interleave(per_prompt).clamp(1e-6, 1 - 1e-6)
    row = torch.arange(n_prompts).repeat_interleave(per_prompt)
    prompts = [f"{i:016x}" for i in range(n_prompts)]
    features = torch.stack([scores.logit(), torch.zeros_like(scores)], dim=1).float()
    return make_store(directory, features, torch.zeros(len(row)).long(), row, prompts, n_shards=1)


def identity_head(width=2):
    head = JudgeHead(JudgeConfig(hidden_size=width))
    with torch.no_grad():
        head.weight[0, 0] = 1.0
    return head


def test_tokens_of_one_prompt_are_no_independent_evidence(tmp_path):
    """One mistake per prompt keeps the statement; counting all tokens as independent breaks it (which is why it is not
    the default)."""
    stores = [clustered_store(tmp_path / str(seed), seed) for seed in range(CALIBRATIONS)]

    options = {"risk": RISK, "confidence": CONFIDENCE, "thresholds": (0.72,)}  # whose true risk is 0.104

    def by(unit):
        return failures(lambda seed: calibrate_by_risk(identity_head(), stores[seed], unit=unit, **options).threshold)[
            0
        ]

    assert by("prompt") <= MOST_FAILURES
    assert by("token") > MOST_FAILURES


# --- the choice -----------------------------------------------------------------------------------------------------


def test_the_most_lenient_certified_threshold_is_chosen():
    scores = torch.cat([torch.full((20,), 0.97), torch.full((980,), 0.3)])
    threshold, bound, _ = choose_by_risk(scores, risk=0.05, confidence=0.95)
    assert threshold == 0.3  # 20 of 1000 are above it; at 0.2 all are
    assert bound == pytest.approx(binomial_upper_bound(20, 1000, 0.05 / len(THRESHOLDS)))
    # a score exactly at the threshold is not accepted, as in generation
    assert choose_by_risk(torch.full((200,), 0.5), risk=0.05, confidence=0.95)[0] == 0.5


def test_too_few_mistakes_choose_nothing_and_say_how_many_it_takes(tmp_path):
    features, labels, row, prompts = separable(n_rows=30)
    store = make_store(tmp_path / "f", features, labels, row, prompts)
    head = JudgeHead(JudgeConfig(hidden_size=12))
    with torch.no_grad():
        head.bias.fill_(-20.0)  # refuses everything: no mistake is accepted, yet 30 are too few
    certificate = calibrate_by_risk(head, store, risk=0.05, confidence=0.95)
    assert certificate.threshold is None
    assert certificate.n_needed == mistakes_needed(0.0, 0.05, 0.05 / len(THRESHOLDS)) == 117
    assert "needs 117 mistakes to calibrate on, there are" in certificate.message()
    with pytest.raises(ValueError, match="nothing was chosen"):
        apply_certificate(head, certificate)
    assert head.config.threshold == 0.5
    assert "calibration" not in head.config.provenance


def test_a_head_that_accepts_mistakes_is_not_helped_by_more_of_them(tmp_path):
    features, labels, row, prompts = separable(n_rows=30)
    store = make_store(tmp_path / "f", features, labels, row, prompts)
    head = JudgeHead(JudgeConfig(hidden_size=12))
    with torch.no_grad():
        head.bias.fill_(20.0)
    certificate = calibrate_by_risk(head, store)
    assert certificate.threshold is None
    assert certificate.n_needed is None
    assert "cannot be reached with this head" in certificate.message()


def test_the_certificate_is_saved_with_the_head(tmp_path):
    store = clustered_store(tmp_path / "f", seed=0, n_prompts=800, per_prompt=1)
    head = identity_head()
    certificate = calibrate_by_risk(head, store, risk=0.2, confidence=0.95)
    apply_certificate(head, certificate)
    head.save_pretrained(tmp_path / "head")
    config = JudgeHead.from_pretrained(tmp_path / "head").config
    assert config.threshold == certificate.threshold
    saved = config.provenance["calibration"]["by_risk"]
    assert saved["risk"] == 0.2
    assert saved["confidence"] == 0.95
    assert saved["n_mistakes"] == 800
    assert saved["n_thresholds"] == len(THRESHOLDS)
    assert saved["data_hash"] == "0" * 64
    assert saved["bound"] <= 0.2
    assert f"threshold {certificate.threshold:g}: at most" in certificate.message()


def test_prompts_of_the_fit_are_left_out(tmp_path):
    store = clustered_store(tmp_path / "f", seed=0, n_prompts=200, per_prompt=3)
    seen = [row["prompt"] for row in store.rows[:150]]
    assert calibrate_by_risk(identity_head(), store, fit_prompts=seen).n_mistakes == 50
    assert calibrate_by_risk(identity_head(), store, fit_prompts=seen, unit="token").n_mistakes == 150
    with pytest.raises(ValueError, match="every prompt of these features was used to fit"):
        calibrate_by_risk(identity_head(), store, fit_prompts=[row["prompt"] for row in store.rows])
    with pytest.raises(ValueError, match="extract features for this head"):
        calibrate_by_risk(identity_head(3), store)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"risk": 0.0}, "risk must be"), ({"confidence": 1.0}, "confidence must be"), ({"unit": "row"}, "unit must be")],
)
def test_options_are_checked(tmp_path, options, message):
    store = clustered_store(tmp_path / "f", seed=0)
    with pytest.raises(ValueError, match=message):
        calibrate_by_risk(identity_head(), store, **options)


# --- by task --------------------------------------------------------------------------------------------------------


def test_by_accuracy_takes_the_most_lenient_within_the_margin():
    asked = []

    def judged_right(threshold):
        asked.append(threshold)
        n_right = {0.2: 80, 0.5: 97, 0.9: 98, 0.99: 99}[threshold]
        return [True] * n_right + [False] * (100 - n_right)

    target = [True] * 99 + [False]
    grid = (0.99, 0.2, 0.9, 0.5)
    certificate = calibrate_by_accuracy(target, judged_right, margin=0.01, thresholds=grid)
    assert certificate.threshold == 0.9
    assert asked == [0.2, 0.5, 0.9]  # stricter ones are not run
    assert certificate.judged_accuracy == {"0.2": 0.80, "0.5": 0.97, "0.9": 0.98}
    assert "accuracy 98.0% on 100 answers, the target's is 99.0%" in certificate.message()
    head = identity_head()
    apply_certificate(head, certificate)
    assert head.config.threshold == 0.9
    assert head.config.provenance["calibration"]["by_accuracy"]["n_answers"] == 100
    none = calibrate_by_accuracy(target, judged_right, margin=0.0, thresholds=(0.2,))
    assert none.threshold is None
    assert "no threshold keeps accuracy within 0.0%" in none.message()


def test_by_accuracy_refuses_answers_that_do_not_pair():
    with pytest.raises(ValueError, match="there are none"):
        calibrate_by_accuracy([], lambda t: [])
    with pytest.raises(ValueError, match="must pair with the target's 2, got 1"):
        calibrate_by_accuracy([True, True], lambda t: [True])


def test_a_head_that_scores_all_tokens_alike_is_not_certified(tmp_path):
    features, labels, row, prompts = separable(n_rows=400)
    head = JudgeHead(JudgeConfig(hidden_size=12))
    with torch.no_grad():
        head.bias.fill_(-20.0)  # refuses everything: no mistake is accepted, and nothing else either
    with pytest.raises(ValueError, match="gives every token the same score"):
        calibrate_by_risk(head, make_store(tmp_path / "f", features, labels, row, prompts), risk=0.05, confidence=0.95)


@pytest.mark.parametrize("margin", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_margin_that_cannot_be_is_refused(margin):
    with pytest.raises(ValueError, match="margin must be between 0 and 1"):
        calibrate_by_accuracy([True], lambda threshold: [True], margin=margin)


def test_a_target_that_is_never_right_is_refused():
    with pytest.raises(ValueError, match="the target answers none of the 3 prompts right"):
        calibrate_by_accuracy([False] * 3, lambda threshold: [False] * 3)
