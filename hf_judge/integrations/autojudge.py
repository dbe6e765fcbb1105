"""Import heads of the AutoJudge repository (arXiv 2504.20039) as judge heads.

"AutoJudge" names three things here: this paper with its repository, the rule `autojudge` that the commands compare with
ours (the paper's, see `hf_judge.rules.by_name`), and `AutoJudgeModelForCausalLM`, which has nothing to do with either:
it is transformers' "Auto" before our "Judge".

The repository's files are pickles whose positive class is "important", a mistake to reject; ours is "acceptable".
Pickles can run code when they are read. These are read only on explicit request, by an unpickler that accepts numbers
and the two estimators alone, and makes inert records of the estimators.
"""

from __future__ import annotations

import importlib
import os
import pickle

import numpy
import torch

from hf_judge.head.config import JudgeConfig
from hf_judge.head.judge_head import JudgeHead

_ESTIMATORS = {
    ("sklearn.linear_model._logistic", "LogisticRegression"),
    ("sklearn.preprocessing._data", "StandardScaler"),
}
# names in numpy's own pickles, before and after its move to numpy._core (2.0)
_NUMPY = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


class _Record:
    """Holds an estimator's attributes, without its class."""

    def __setstate__(self, state: dict) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("an estimator's state must be a dict")
        self.__dict__.update(state)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"names the encoding {encoding!r:.40}, which a head does not hold")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) in _ESTIMATORS:
            return _Record
        if (module, name) == ("_codecs", "encode"):  # how protocols below 3 write bytes
            return _latin1
        if (module, name) in _NUMPY:
            old = int(numpy.__version__.partition(".")[0]) < 2
            current = module.replace(".core", "._core") if not old else module.replace("._core", ".core")
            return getattr(importlib.import_module(current), name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which a head does not hold")


def import_autojudge_head(
    path: str | os.PathLike,
    *,
    allow_pickle: bool = False,
    threshold: float | None = None,
    base_model_name_or_path: str | None = None,
) -> JudgeHead:
    """Read a head of AutoJudge from its training pickle, or from the one made for vLLM.

    The training pickle holds `model` and `scaler`, the other `weights`, `bias`, `mean` and `scale`. The probability of
    "important" is sigmoid(v . (x - m) / s + c), ours of "acceptable" 1 minus that: w = -v / s, b = -(c - v . m / s).

    Args:
        path: the pickle.
        allow_pickle: consent; must be True. Only for files whose origin you trust.
        threshold: AutoJudge's threshold on the probability of "important", below which it accepts; ours is 1 minus
            that. None: 0.5.
        base_model_name_or_path: the target.

    Raises:
        ValueError: the consent is missing, or the file holds anything else.
    """
    if allow_pickle is not True:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read: pass allow_pickle=True if you trust where it "
            "comes from"
        )
    try:
        with open(path, "rb") as file:
            values = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not an AutoJudge head: {error}") from None
    weight, bias, mean, scale = (_numbers(path, name, value) for name, value in _parts(path, values).items())
    if not len(weight) == len(mean) == len(scale) or len(bias) != 1 or (scale <= 0).any():
        raise ValueError(f"{path}: weights, mean and scale must have one positive scale per feature, and one bias")
    weight = -weight / scale
    bias = -bias - weight @ mean  # weight is flipped already: -(c - v . m / s) = -c - w . m
    config = JudgeConfig(
        hidden_size=len(weight),
        hidden_state="post_norm",  # AutoJudge reads transformers' last_hidden_state, which is after the final norm
        threshold=0.5 if threshold is None else 1 - threshold,
        base_model_name_or_path=base_model_name_or_path,
        provenance={"imported_from": "AutoJudge", "polarity": "flipped: its positive class is 'important'"},
    )
    return JudgeHead(config).set_weights(weight, bias).requires_grad_(False)


def _parts(path, values: object) -> dict:
    names = ("weights", "bias", "mean", "scale")
    if isinstance(values, dict) and set(names) <= values.keys():
        return {name: values[name] for name in names}
    if isinstance(values, dict) and {"model", "scaler"} <= values.keys():
        model, scaler = (
            vars(values[name]) if isinstance(values[name], _Record) else {} for name in ("model", "scaler")
        )
        if {"coef_", "intercept_", "classes_"} <= model.keys() and {"mean_", "scale_"} <= scaler.keys():
            if [int(c) for c in numpy.ravel(model["classes_"])] != [0, 1]:
                raise ValueError(f"{path}: the classes must be 0 and 1, got {model['classes_']!r:.60}")
            values = (model["coef_"], model["intercept_"], scaler["mean_"], scaler["scale_"])
            return dict(zip(names, values, strict=True))
    raise ValueError(f"{path} is not an AutoJudge head: it holds neither 'model' and 'scaler' nor {names}")


def _numbers(path, name: str, value: object) -> torch.Tensor:
    try:
        array = numpy.ravel(numpy.asarray(value, dtype=numpy.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: '{name}' is not an array of numbers: {error}") from None
    if not numpy.isfinite(array).all():
        raise ValueError(f"{path}: '{name}' holds NaN or infinite values")
    return torch.from_numpy(array.copy())
