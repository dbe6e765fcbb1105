"""Thresholds with a stated risk: the bound is exact, the statement holds, and nothing is chosen without evidence."""

import json
import math

import pytest
import torch
from feature_stores import make_store, separable
from hypothesis import given
from hypothesis import strategies as st

from hf_judge import JudgeConfig, JudgeHead
from hf_judge.checking.statistics import binomial_upper_bound, mistakes_needed
from hf_judge.cli import main
from hf_judge.tiny import HOME
from hf_judge.tiny.world import problems
from hf_judge.training.calibration import (
    answers_needed,
    apply_certificate,
    calibrate_by_accuracy,
    calibrate_by_risk,
    choose_by_risk,
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
    assert asked == [0.2, 0.5, 0.9, 0.99]  # the whole curve: accuracy may fall as the threshold rises
    assert list(certificate.judged_accuracy) == ["0.2", "0.5", "0.9", "0.99"]
    assert certificate.judged_accuracy["0.9"] == 0.98
    assert (certificate.lost["0.9"], certificate.gained["0.9"]) == (1, 0)
    assert certificate.lost_bound["0.9"] == binomial_upper_bound(1, 100, 0.05 / 4)
    assert len(certificate.table()) == 5
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


def losing(*n_lost):
    """Judged answers to 600 prompts that the target gets right: how many each threshold loses, other ones each time."""
    thresholds = [0.1 * (i + 1) for i in range(len(n_lost))]
    lost = dict(zip(thresholds, n_lost, strict=True))
    return thresholds, lambda t: [i >= lost[t] for i in range(600)]


def test_a_loss_within_the_margin_is_no_certificate():
    thresholds, judged_right = losing(6, 0)
    measured = calibrate_by_accuracy([True] * 600, judged_right, margin=0.01, thresholds=thresholds)
    certified = calibrate_by_accuracy([True] * 600, judged_right, margin=0.01, thresholds=thresholds, certify=True)
    assert measured.threshold == thresholds[0]
    assert measured.lost_bound["0.1"] > 0.01
    assert certified.threshold == thresholds[1]
    assert "0 lost, 0 gained; at most 0.6% of answers are lost (confidence 95%, 2 thresholds tried)" in (
        certified.message()
    )


def test_thresholds_that_look_alike_keep_their_own_figures():
    close = (0.9999997, 0.9999999)
    certificate = calibrate_by_accuracy(
        [True] * 100, lambda t: [t > 0.99999985 or i > 4 for i in range(100)], margin=0.05, thresholds=close
    )
    assert certificate.threshold == close[0]
    assert certificate.lost == {"0.9999997": 5, "0.9999999": 0}
    assert "threshold 0.9999997: accuracy 95.0%" in certificate.message()


def test_answers_needed():
    assert answers_needed(0.01, 0.95) == 299
    assert binomial_upper_bound(0, 299, 0.05) <= 0.01 < binomial_upper_bound(0, 298, 0.05)
    assert answers_needed(0.01, 0.95, 10) == 528
    assert binomial_upper_bound(0, 528, 0.005) <= 0.01 < binomial_upper_bound(0, 527, 0.005)
    assert answers_needed(1.0, 0.95) == 1


def test_a_curve_that_falls_is_told():
    thresholds, judged_right = losing(3, 3, 60)
    certificate = calibrate_by_accuracy([True] * 600, judged_right, thresholds=thresholds)
    assert certificate.falls == [(thresholds[0], thresholds[2])]
    assert "Stricter is not safer here: at 0.3 fewer answers are right than at 0.1" in certificate.message()
    by_chance = calibrate_by_accuracy([True] * 600, losing(3, 3, 9)[1], thresholds=thresholds)
    assert by_chance.falls == []
    assert "safer" not in by_chance.message()


def test_the_bound_is_exceeded_no_more_often_than_stated():
    """200 calibrations, true losses known; 5% may exceed a bound, and P(Binomial(200, 0.05) > 22) is below 1e-4."""
    generator = torch.Generator().manual_seed(0)
    thresholds, rates = (0.1, 0.5, 0.9), torch.tensor([0.03, 0.01, 0.02])
    exceeded = 0
    for _ in range(200):
        # losses at all thresholds in one draw: answers that are hard are lost at several
        lost = torch.rand(300, generator=generator)[:, None] < rates
        judged = dict(zip(thresholds, (~lost).T.tolist(), strict=True))
        certificate = calibrate_by_accuracy([True] * 300, judged.get, margin=0.05, thresholds=thresholds)
        bounds = torch.tensor(list(certificate.lost_bound.values()))
        exceeded += bool((bounds < rates).any())
    assert 1 <= exceeded <= 22  # not so loose either that it is never exceeded


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_a_confidence_that_is_none(confidence):
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        calibrate_by_accuracy([True], lambda t: [True], margin=1.0, confidence=confidence)


# --- nothing to stand on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_right", "n", "margin", "message"),
    [
        (0, 200, 0.01, "right in 0 of 200 answers and may lose 2"),
        (0, 200, 1.0, "right in 0 of 200 answers"),
        (2, 200, 0.01, "right in 2 of 200 answers and may lose 2"),
        (3, 3, 0.01, "a margin of 1.0% needs at least 100 prompts, there are 3"),
        (19, 19, 0.05, "needs at least 20 prompts, there are 19"),
        (9, 9, float("nan"), "margin must be between 0 and 1, got nan"),
        (9, 9, -0.1, "margin must be between 0 and 1"),
        (9, 9, 1.5, "margin must be between 0 and 1"),
    ],
)
def test_by_accuracy_refuses_what_says_nothing(n_right, n, margin, message):
    target = [True] * n_right + [False] * (n - n_right)
    with pytest.raises(ValueError, match=message):
        calibrate_by_accuracy(target, lambda threshold: target, margin=margin)


def test_by_accuracy_goes_on_with_just_enough():
    for n, margin in ((20, 0.05), (100, 0.01), (1, 1.0), (3, 0.0)):
        assert calibrate_by_accuracy([True] * n, lambda t, n=n: [True] * n, margin=margin).threshold == min(THRESHOLDS)


@pytest.mark.parametrize("thresholds", [(), (float("nan"),), (0.5, 1.5), (-0.1,)])
def test_thresholds_that_no_head_can_have_are_refused(tmp_path, thresholds):
    with pytest.raises(ValueError, match="threshold"):
        calibrate_by_accuracy([True], lambda t: [True], margin=1.0, thresholds=thresholds)
    with pytest.raises(ValueError, match="threshold"):
        calibrate_by_risk(identity_head(), clustered_store(tmp_path / "f", seed=0), thresholds=thresholds)


def store_of(directory, scores, labels):
    features = torch.stack([torch.tensor(scores), torch.zeros(len(scores))], dim=1).float()
    prompts = [f"{i:016x}" for i in range(len(scores))]
    return make_store(directory, features, torch.tensor(labels), torch.arange(len(scores)), prompts, n_shards=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_by_risk_refuses_scores_that_are_no_numbers(tmp_path, bad):
    """A NaN is never above a threshold, so it used to count as a mistake that was caught."""
    store = store_of(tmp_path / "f", [-5.0] * 300 + [5.0, bad], [0] * 300 + [1, 0])
    with pytest.raises(ValueError, match=r"1 of 302 scores are not finite \(the first is of token 301\)"):
        calibrate_by_risk(identity_head(), store)
    with pytest.raises(ValueError, match="not all finite"):
        choose_by_risk(torch.tensor([0.1] * 300 + [bad]), risk=0.05, confidence=0.95)


def test_by_risk_refuses_equal_scores(tmp_path):
    store = store_of(tmp_path / "f", [-5.0] * 400, [0] * 300 + [1] * 100)
    with pytest.raises(ValueError, match="gives all 400 tokens the score .*: a threshold cannot tell"):
        calibrate_by_risk(identity_head(), store)


def test_by_risk_certifies_nothing_without_mistakes(tmp_path):
    certificate = calibrate_by_risk(identity_head(), store_of(tmp_path / "f", [1.0, 2.0], [1, 1]))
    assert certificate.threshold is None
    assert "needs 117 mistakes to calibrate on, there are 0; nothing was chosen" in certificate.message()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("zero", ["--margin", "1"], "all weights of this judge head are 0"),
        (None, ["--margin", "0.01"], "needs at least 100 prompts, there are 2"),
        (None, ["--margin", "1", "--confidence", "1"], "confidence must be between 0 and 1"),
        (None, ["--margin", "0.5", "--certify"], "over 10 thresholds takes 8 answers without a loss, there are 2"),
        (None, ["--margin", "0", "--certify"], "takes infinitely many answers"),
        (None, ["--margin", "1", "--thresholds", "nan"], "threshold"),
        (None, ["--margin", "1", "--max-new-tokens", "2"], "right in 0 of 2 answers"),
        (None, ["--features", "{store}"], "gives all 302 tokens the score"),
        ("nan store", ["--features", "{store}"], "scores are not finite"),
    ],
)
def test_a_refused_calibration_leaves_the_files_of_the_head(tmp_path, capsys, change, arguments, message):
    head = JudgeHead.from_pretrained(HOME / "judge")
    if change == "zero":
        head.weight.zero_()
    head.save_pretrained(tmp_path / "judge")
    before = {path.name: path.read_bytes() for path in (tmp_path / "judge").iterdir()}
    tasks = [
        {"prompt": [{"role": "user", "content": p.question}], "answer": str(p.answer)} for p in problems(2, seed=5)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    if "--features" in arguments:
        width = head.config.n_features
        features = torch.ones(302, width) * (float("nan") if change == "nan store" else 0.0)
        labels, prompts = torch.tensor([0] * 301 + [1]), [f"{i:016x}" for i in range(302)]
        make_store(tmp_path / "store", features, labels, torch.arange(302), prompts, n_shards=1)
        with torch.no_grad():
            head.bias.fill_(-9.0)
        head.save_pretrained(tmp_path / "judge")
        before = {path.name: path.read_bytes() for path in (tmp_path / "judge").iterdir()}
        arguments = [argument.format(store=tmp_path / "store") for argument in arguments]
    else:
        pair = ["--target", str(HOME / "target"), "--draft", str(HOME / "draft")]
        arguments = [*pair, "--prompts", str(tmp_path / "tasks.jsonl"), *arguments]
    assert main(["calibrate", "--head", str(tmp_path / "judge"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "judge").iterdir()} == before
