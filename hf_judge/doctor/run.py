"""Runs all checks of ``hf-judge doctor``."""

from __future__ import annotations

from collections.abc import Callable

from hf_judge.doctor.costs import check_costs
from hf_judge.doctor.environment import check_devices, check_versions
from hf_judge.doctor.findings import Diagnosis
from hf_judge.doctor.pair import Models, check_head, check_tokenizers, load_models
from hf_judge.doctor.self_check import check_engines


def diagnose(
    target: str | None = None,
    draft: str | None = None,
    judge: str | None = None,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    tokenizer: str | None = None,
    draft_tokenizer: str | None = None,
) -> Diagnosis:
    """Check this environment, and a pair of models on it.

    Args:
        target, draft: Hub ids or directories; no target: the embedded pair.
        judge: Hub id or directory of a head.
        dtype, device_map: arguments of `from_pretrained`, for both models.
        tokenizer, draft_tokenizer: Hub ids or directories of the tokenizers, where they do not lie beside the models.
    """
    found = _check_environment()
    options = {"dtype": dtype} | ({} if device_map is None else {"device_map": device_map})
    models = load_models(found, target, draft, judge, options, (tokenizer or target, draft_tokenizer or draft))
    if models is None:
        return found
    check_tokenizers(found, models)
    check_head(found, models)
    return _check_running(found, models)


def diagnose_pair(models: Models, *, before_costs: Callable[[], object] = lambda: None) -> Diagnosis:
    """Check this environment, and loaded models that have no judge yet.

    Args:
        models: the pair.
        before_costs: called once the engines are found to work, before the costs of drafting are measured.
    """
    found = _check_environment()
    check_tokenizers(found, models)
    return _check_running(found, models, before_costs)


def _check_environment() -> Diagnosis:
    found = Diagnosis()
    check_versions(found)
    check_devices(found)
    return found


def _check_running(found: Diagnosis, models: Models, before_costs: Callable[[], object] = lambda: None) -> Diagnosis:
    if found.usable:
        check_engines(found, models)
    if found.usable:
        before_costs()
    if found.usable and models.draft is not models.target:
        check_costs(found, models)
    return found
