"""Make the card of a judge head for the Hub, from the template hub_cards/judge_head.md and the head's config.

`JudgeConfig.provenance` may hold, filled in by whoever trains a head:

| key | |
|---|---|
| `metrics` | figures by name, numbers or groups of numbers: the card's table and its model-index |
| `validation` | figures that training measured on held-out prompts: counts, and floats that go to the model-index |
| `calibration` | the certificate of the threshold, by name |
| `data` | a name or Hub id of the training data, or statements about it, by name |
| `draft` | Hub id of the draft model that the usage example loads |
| `example_prompt`, `domain`, `license` | text |

Every other key is listed under "How it was trained".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_judge.head.config import JudgeConfig

TAGS = ("judge", "judge-decoding", "speculative-decoding")
EXAMPLE_PROMPT = "Question: Ana has 17 coins and finds 5 more. How many has she now?\nAnswer:"
_NOT_TRAINING = ("metrics", "validation", "calibration", "draft", "example_prompt", "domain", "license")


def head_card(config: JudgeConfig, repo_id: str) -> ModelCard:
    """Make the card of a judge head.

    Args:
        config: config with `base_model_name_or_path`, its commit in `revision`, and the provenance.
        repo_id: repository where the head is published.

    Raises:
        ValueError: the base model is not named.
    """
    if not config.base_model_name_or_path:
        raise ValueError(
            "the card needs base_model_name_or_path: the Hub id of the target that the head was trained on"
        )
    name = repo_id.rpartition("/")[2]
    return ModelCard.from_template(
        _index_data(config, name), template_str=_template(), model_name=name, **_text_values(config, repo_id)
    )


def _index_data(config: JudgeConfig, name: str) -> ModelCardData:
    """Return what the Hub reads about a head: its model, data, licence and figures."""
    base, provenance = config.base_model_name_or_path, config.provenance
    measured = [row for row in _flat(provenance.get("metrics", {})) if _is_number(row[1])]
    validation = _flat(provenance.get("validation", {}), "validation / ")
    measured += [row for row in validation if isinstance(row[1], float)]
    data = provenance.get("data")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="judge-decoding",
            dataset_name=data if isinstance(data, str) else "held-out labelled tokens",
            metric_type=metric.replace(" ", "_"),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in measured
    ]
    fields = {
        "license": provenance.get("license"),
        "datasets": [data] if isinstance(data, str) and data.count("/") == 1 and " " not in data else None,
    }
    return ModelCardData(
        pipeline_tag="text-generation",
        model_name=name,
        library_name="peft",
        base_model=base,
        base_model_relation="adapter",
        tags=[*TAGS, "custom_generate", f"base_model:adapter:{base}"],
        eval_results=results or None,
        **{key: value for key, value in fields.items() if value is not None},
    )


def _text_values(config: JudgeConfig, repo_id: str) -> dict:
    """Return what the template of the card names."""
    base, provenance = config.base_model_name_or_path, config.provenance
    measured = provenance.get("metrics", {}) | {"validation": provenance.get("validation", {})}
    return {
        "base_model": base,
        "base_revision": config.revision or "main",
        "hidden_size": config.hidden_size,
        "n_features": config.n_features,
        "extra_features": config.extra_features,
        "hidden_state": config.hidden_state,
        "quantization": _cell(config.quantization or ""),
        "threshold": config.threshold,
        "label": _cell(config.label),
        "draft": provenance.get("draft"),
        "domain": _cell(provenance.get("domain", "")),
        "training": _cells({key: value for key, value in provenance.items() if key not in _NOT_TRAINING}),
        "metrics": _cells(measured),
        "calibration": _cells(provenance.get("calibration") or {}),
        "code": _code(
            repo_id=repo_id,
            base_model=base,
            base_revision=config.revision,
            draft=provenance.get("draft"),
            example_prompt=provenance.get("example_prompt", EXAMPLE_PROMPT),
        ),
    }


def _template() -> str:
    # not files("hf_judge") / "hub_cards": an editable install maps the folder elsewhere
    return files("hf_judge.hub_cards").joinpath("judge_head.md").read_text(encoding="utf-8")


def _flat(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (name, value) of nested figures, groups written as `group / name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", value


def _cells(values: Mapping) -> list[tuple[str, str]]:
    return [(_cell(name), _cell(value)) for name, value in _flat(values)]


def _cell(value: object) -> str:
    """Return text that stays inside a table cell and draws no HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(**values: str | None) -> dict[str, str]:
    """Return literals for a Python block: JSON strings are valid Python, and a backtick could end the block."""
    return {
        name: "None" if value is None else json.dumps(value).replace("`", "\\u0060") for name, value in values.items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
