"""The fit, its metrics, and the importer of AutoJudge's pickles."""

import importlib.util
import json
import pickle
import sys
import types

import numpy
import pytest
import torch
from feature_stores import make_store, separable
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_judge import JudgeHead
from hf_judge.integrations.autojudge import import_autojudge_head
from hf_judge.training.calibration import head_scores
from hf_judge.training.fit import METRICS_NAME, PROMPTS_NAME, JudgeTrainingArguments, part_of, train_judge
from hf_judge.training.metrics import auc_standard_error, average_precision, described, judge_metrics, roc_auc


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "features", *separable())


def arguments(tmp_path, name="head", **fields):
    return JudgeTrainingArguments(str(tmp_path / name), **fields)


# --- fit ------------------------------------------------------------------------------------------------------------


def test_the_saved_head_scores_raw_features(store, tmp_path):
    trained = train_judge(store, arguments(tmp_path))
    assert trained.metrics["all"]["auc"] > 0.95
    head = JudgeHead.from_pretrained(tmp_path / "head")
    assert torch.equal(head.weight, trained.head.weight)
    scores, labels = head_scores(head, store), store.column("labels")
    assert roc_auc(scores, labels) > 0.95
    # the validation figures are those of the saved head on its own, so the scaler was folded in rightly
    part = [part_of(row["prompt"], 0, 0.15, 0.25) for row in store.rows]
    held_out = torch.tensor([part[i] == "validation" for i in store.column("row").tolist()])
    assert roc_auc(scores[held_out], labels[held_out]) == pytest.approx(trained.metrics["all"]["auc"], abs=1e-6)
    assert json.loads((tmp_path / "head" / METRICS_NAME).read_text()) == trained.metrics
    assert head.config.base_model_name_or_path == "a/target"
    assert head.config.provenance["fit"]["l2"] == trained.metrics["l2"]
    assert head.config.provenance["data_hash"] == "0" * 64


def test_lbfgs_ends_where_the_gradient_of_the_stated_loss_vanishes(store, tmp_path):
    """The loss written out again, from its definition, on the tokens of the fit part."""
    l2 = 0.01
    trained = train_judge(store, arguments(tmp_path, l2_grid=(l2,), max_iter=300))
    part = [part_of(row["prompt"], 0, 0.15, 0.25) for row in store.rows]
    fit = torch.tensor([part[i] == "fit" for i in store.column("row").tolist()])
    features = torch.cat([f for _, f in store.chunks(chunk_tokens=100)])[fit].double()
    labels = store.column("labels")[fit].double()
    mean, scale = features.mean(0), features.std(0, correction=0)
    weight = (trained.head.weight[0].double() * scale).detach().requires_grad_()
    bias = (trained.head.bias[0].double() + (trained.head.weight[0].double() * mean).sum()).detach().requires_grad_()
    logits = (features - mean) / scale @ weight + bias
    losses = torch.nn.functional.softplus(-(2 * labels - 1) * logits)
    loss = losses[labels == 1].mean() / 2 + losses[labels == 0].mean() / 2 + l2 / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 2e-4
    assert bias.grad.abs() < 2e-4


def test_streamed_features_give_the_same_head(store, tmp_path):
    whole = train_judge(store, arguments(tmp_path, "whole", optimizer="lbfgs"))
    streamed = train_judge(store, arguments(tmp_path, "streamed", optimizer="lbfgs", max_memory_gb=0.0))
    assert streamed.metrics["all"]["auc"] == pytest.approx(whole.metrics["all"]["auc"], abs=2e-3)
    a, b = (head_scores(t.head, store) for t in (whole, streamed))
    assert (a - b).abs().max() < 0.02


def test_adamw_comes_close_to_the_exact_fit_and_is_reproducible(store, tmp_path):
    exact = train_judge(store, arguments(tmp_path, "exact"))
    fields = {"optimizer": "adamw", "num_train_epochs": 40, "train_batch_size": 64, "max_memory_gb": 0.0}
    once, again = (train_judge(store, arguments(tmp_path, name, **fields)) for name in ("once", "again"))
    assert once.metrics["all"]["auc"] > exact.metrics["all"]["auc"] - 0.01
    assert torch.equal(once.head.weight, again.head.weight)
    other = train_judge(store, arguments(tmp_path, "other", **fields, seed=1))
    assert not torch.equal(once.head.weight, other.head.weight)


def test_large_features_are_streamed_and_fitted_with_minibatches(store, tmp_path):
    fields = {"num_train_epochs": 1, "max_memory_gb": 0.0, "l2_grid": (0.1,)}
    automatic = train_judge(store, arguments(tmp_path, "automatic", **fields))
    adamw = train_judge(store, arguments(tmp_path, "adamw", optimizer="adamw", **fields))
    assert torch.equal(automatic.head.weight, adamw.head.weight)


def test_prompts_are_never_split(tmp_path):
    """Rows of one prompt go to one side, and prompts that the fit saw are listed for calibration."""
    features, labels, row, _ = separable(n_rows=80)
    prompts = [f"{i // 4:016x}" for i in range(80)]
    store = make_store(tmp_path / "features", features, labels, row, prompts)
    trained = train_judge(store, arguments(tmp_path))
    listed = json.loads((tmp_path / "head" / PROMPTS_NAME).read_text())
    parts = {prompt: part_of(prompt, 0, 0.15, 0.25) for prompt in prompts}
    assert set(parts.values()) == {"fit", "validation", "calibration"}
    assert listed == sorted(prompt for prompt, part in parts.items() if part != "calibration")
    tokens_of = {name: sum(20 for prompt in prompts if parts[prompt] == name) for name in ("fit", "validation")}
    assert sum(trained.metrics["n_fit"].values()) == tokens_of["fit"]
    assert sum(trained.metrics["all"][name] for name in ("n_acceptable", "n_mistaken")) == tokens_of["validation"]


def test_shares_of_the_parts():
    """10,000 prompts; each share is off by 0.02 with probability below 1e-4 (Hoeffding: 2 exp(-8) = 7e-4 bounds it)."""
    parts = [part_of(f"{i:016x}", 3, 0.2, 0.3) for i in range(10_000)]
    assert parts.count("validation") / 10_000 == pytest.approx(0.2, abs=0.02)
    assert parts.count("calibration") / 10_000 == pytest.approx(0.3, abs=0.02)
    assert parts != [part_of(f"{i:016x}", 4, 0.2, 0.3) for i in range(10_000)]


def test_the_penalty_is_chosen_by_validation_auc(tmp_path):
    """Few tokens and many useless features: no penalty overfits, and must not be chosen."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(480, generator=generator) < 0.5).long()
    features = torch.randn(480, 200, generator=generator)
    features[:, 0] += labels
    row = torch.arange(120).repeat_interleave(4)
    store = make_store(tmp_path / "f", features, labels, row, [f"{i:016x}" for i in range(120)])
    metrics = train_judge(store, arguments(tmp_path)).metrics
    aucs = {float(l2): auc for l2, auc in metrics["decided_auc_by_l2"].items()}
    error = auc_standard_error(
        max(aucs.values()), *(metrics["decided"][name] for name in ("n_acceptable", "n_mistaken"))
    )
    assert metrics["l2"] == max(l2 for l2, auc in aucs.items() if auc >= max(aucs.values()) - 1.96 * error)
    assert metrics["l2"] > 1e-5


def test_standard_error_of_an_auc_against_resampling():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([1] * 60 + [0] * 20)
    found = [roc_auc(torch.randn(80, generator=generator) + labels, labels) for _ in range(400)]
    mean, spread = torch.tensor(found).mean().item(), torch.tensor(found).std().item()
    assert auc_standard_error(mean, 60, 20) == pytest.approx(spread, rel=0.15)


def test_the_judge_is_fitted_to_what_it_decides(tmp_path):
    """Matched tokens differ from the others along one axis, mistakes along another: the weight says which counts."""
    generator = torch.Generator().manual_seed(0)
    n = 4000
    labels = (torch.rand(n, generator=generator) >= 0.1).long()
    matched = (torch.rand(n, generator=generator) < 0.8) & (labels == 1)
    features = torch.randn(n, 4, generator=generator)
    features[:, 0] += 1.5 * (labels == 1)
    features[:, 1] += 4.0 * matched
    row = torch.arange(200).repeat_interleave(20)
    store = make_store(tmp_path / "f", features, labels, row, [f"{i:016x}" for i in range(200)], matched=matched)
    weights = {
        own: train_judge(store, arguments(tmp_path, f"{own}", matched_weight=own)).head.weight[0].tolist()
        for own in (0.0, 0.01, 1.0)
    }
    leaning = [weights[own][1] / weights[own][0] for own in (0.0, 0.01, 1.0)]
    assert leaning[0] < leaning[1] < leaning[2]
    assert abs(leaning[0]) < 0.2
    with pytest.raises(ValueError, match="matched_weight"):
        arguments(tmp_path, matched_weight=-1.0)


def test_a_head_reads_the_features_of_its_own_kind_alone(tmp_path):
    features, labels, row, prompts = separable(noise=1.0)
    store = make_store(tmp_path / "f", features, labels, row, prompts)
    head = train_judge(store, arguments(tmp_path)).head
    assert roc_auc(head_scores(head, store), labels) > 0.95
    narrow = make_store(tmp_path / "g", features[:, :5], labels, row, prompts)
    with pytest.raises(ValueError, match="extract features for this head"):
        head_scores(head, narrow)


def test_features_that_are_not_finite_are_named(tmp_path):
    features, labels, row, prompts = separable()
    features[700, 3] = float("nan")
    store = make_store(tmp_path / "f", features, labels, row, prompts)
    # prompt 35 holds token 700: put it into the fit part
    seed = next(s for s in range(50) if part_of(prompts[35], s, 0.15, 0.25) == "fit")
    with pytest.raises(ValueError, match="token 700 of the features is not finite"):
        train_judge(store, arguments(tmp_path, seed=seed))


def test_a_part_with_one_class_is_refused(tmp_path):
    features, _, row, prompts = separable()
    store = make_store(tmp_path / "f", features, torch.ones(len(row)).long(), row, prompts)
    with pytest.raises(ValueError, match=r"the fit part has \d+ tokens of which 0 are mistaken"):
        train_judge(store, arguments(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l2_grid": ()}, "l2_grid"),
        ({"l2_grid": (-1.0,)}, "l2_grid"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"validation_fraction": 0.5, "calibration_fraction": 0.5}, "must leave prompts to fit on"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"threshold": 1.5}, "threshold must be between 0 and 1"),
    ],
)
def test_arguments_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        JudgeTrainingArguments("out", **fields)


# --- metrics --------------------------------------------------------------------------------------------------------

SCORED = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=2, max_size=30)


@given(SCORED)
@settings(deadline=None)
def test_auc_and_average_precision_by_counting(pairs):
    scores = torch.tensor([score for score, _ in pairs])
    labels = torch.tensor([int(label) for _, label in pairs])
    good, bad = scores[labels == 1].tolist(), scores[labels == 0].tolist()
    if not good or not bad:
        with pytest.raises(ValueError, match="both classes"):
            roc_auc(scores, labels)
        return
    wins = sum((g > b) + (g == b) / 2 for g in good for b in bad)
    assert roc_auc(scores, labels) == pytest.approx(wins / (len(good) * len(bad)))
    expected, caught = 0.0, 0
    for threshold in sorted(set(scores.tolist())):
        now = sum(b <= threshold for b in bad)
        flagged = now + sum(g <= threshold for g in good)
        expected += (now - caught) / len(bad) * now / flagged
        caught = now
    assert average_precision(scores, labels) == pytest.approx(expected)


def test_metrics_by_source_and_threshold():
    scores = torch.tensor([0.95, 0.6, 0.4, 0.05])
    decided = torch.tensor([False, True, True, True])
    metrics = judge_metrics(scores, torch.tensor([1, 1, 0, 0]), decided, ["a", "b", "b", "b"])
    assert metrics["all"]["auc"] == metrics["decided"]["auc"] == 1.0
    assert (metrics["all"]["n_acceptable"], metrics["decided"]["n_acceptable"]) == (2, 1)
    curve = metrics["all"]["curve"]
    at_half = next(point for point in curve if point["threshold"] == 0.5)
    assert at_half == {"threshold": 0.5, "mistakes_caught": 1.0, "good_accepted": 1.0}
    at_most = next(point for point in curve if point["threshold"] == 0.9)
    assert at_most["good_accepted"] == 0.5
    assert metrics["by_source"]["a"]["all"] == {
        "n_acceptable": 1,
        "n_mistaken": 0,
        "auc": None,
        "average_precision": None,
    }
    assert metrics["by_source"]["a"]["decided"]["n_acceptable"] == 0
    assert metrics["by_source"]["b"]["decided"]["n_mistaken"] == 2


def test_one_name_stands_for_one_number(store, tmp_path):
    trained = train_judge(store, arguments(tmp_path))
    said, in_config = trained.metrics, trained.head.config.provenance["validation"]
    for kind in ("decided", "all"):
        assert in_config[kind] == {name: said[kind][name] for name in ("auc", "n_acceptable", "n_mistaken")}
        assert f"AUC {said[kind]['auc']:.4f} over " in described(said)
        assert f"({said[kind]['n_acceptable']} good, {said[kind]['n_mistaken']} mistaken)" in described(said)
    assert "auc" not in said


def test_plot_is_a_png(store, tmp_path):
    train_judge(store, arguments(tmp_path, plot=True))
    assert (tmp_path / "head" / "judge_curves.png").read_bytes().startswith(b"\x89PNG")


# --- AutoJudge ------------------------------------------------------------------------------------------------------

VALUES = {
    "weights": numpy.array([[0.5, -2.0, 0.1]]),
    "bias": numpy.array([0.3]),
    "mean": numpy.array([1.0, 2.0, -3.0]),
    "scale": numpy.array([2.0, 0.5, 10.0]),
}


def p_important(x):
    """AutoJudge's own prediction: sigmoid(v . (x - m) / s + c)."""
    z = (x.double() - torch.tensor(VALUES["mean"])) / torch.tensor(VALUES["scale"])
    return (z @ torch.tensor(VALUES["weights"][0]) + VALUES["bias"][0]).sigmoid()


def write_pickle(path, values, protocol):
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_autojudge_polarity_is_flipped(tmp_path, protocol):
    path = write_pickle(tmp_path / "head.pkl", VALUES, protocol)
    head = import_autojudge_head(path, allow_pickle=True, threshold=0.12, base_model_name_or_path="x/y")
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5
    assert torch.allclose(head(x).sigmoid().double(), 1 - p_important(x), atol=1e-6)
    # the same decision: theirs accepts p_important < 0.12, ours accepts above 0.88
    assert ((head(x).sigmoid() > head.config.threshold) == (p_important(x) < 0.12)).all()
    head.save_pretrained(tmp_path / "head")
    assert torch.equal(JudgeHead.from_pretrained(tmp_path / "head").weight, head.weight)


def test_autojudge_estimators_are_read_without_scikit_learn(tmp_path, monkeypatch):
    """The estimators' classes stand in while the pickle is written; reading it imports neither."""
    made = {}
    for module, name in (
        ("sklearn.linear_model._logistic", "LogisticRegression"),
        ("sklearn.preprocessing._data", "StandardScaler"),
    ):
        for parent in ("sklearn", module.rpartition(".")[0]):  # without scikit-learn, importing the module needs them
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        fake = types.ModuleType(module)
        made[name] = type(name, (), {"__module__": module})
        setattr(fake, name, made[name])
        monkeypatch.setitem(sys.modules, module, fake)
    model, scaler = made["LogisticRegression"](), made["StandardScaler"]()
    model.__dict__ |= {"coef_": VALUES["weights"], "intercept_": VALUES["bias"], "classes_": numpy.array([False, True])}
    scaler.__dict__ |= {"mean_": VALUES["mean"], "scale_": VALUES["scale"]}
    path = write_pickle(tmp_path / "h.pkl", {"model": model, "scaler": scaler, "thresholds": numpy.ones(3)}, 4)
    monkeypatch.undo()
    if importlib.util.find_spec("sklearn") is None:
        assert "sklearn" not in sys.modules
    head = import_autojudge_head(path, allow_pickle=True)
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(head(x).sigmoid().double(), 1 - p_important(x), atol=1e-6)
    assert head.config.hidden_size == 3


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran code')",)


def test_autojudge_pickles_are_read_on_request_only_and_run_nothing(tmp_path):
    path = write_pickle(tmp_path / "head.pkl", VALUES, 4)
    with pytest.raises(ValueError, match="allow_pickle=True"):
        import_autojudge_head(path)
    with pytest.raises(ValueError, match=r"names builtins\.exec"):
        import_autojudge_head(write_pickle(tmp_path / "b.pkl", {**VALUES, "bias": Bomb()}, 4), allow_pickle=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": numpy.array([1.0, 0.0, 1.0])}, "one positive scale"),
        ({"mean": numpy.zeros(2)}, "one positive scale per feature"),
        ({"bias": numpy.array([numpy.nan])}, "NaN"),
        ({"mean": "abc"}, "not an array of numbers"),
    ],
)
def test_damaged_autojudge_heads_are_refused(tmp_path, change, message):
    path = write_pickle(tmp_path / "head.pkl", VALUES | change, 4)
    with pytest.raises(ValueError, match=message):
        import_autojudge_head(path, allow_pickle=True)


def test_other_files_are_no_autojudge_heads(tmp_path):
    for content in (b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"weights": 1})):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="is not an AutoJudge head"):
            import_autojudge_head(tmp_path / "x.pkl", allow_pickle=True)
