"""Cards for the Hub: judge head, labelled dataset, benchmark of a pair. Text from hub_cards/, data from the caller.

Knows nothing about models or networks.

What `head_card` finds in `JudgeConfig.provenance` (all of it optional; whoever trains a head fills it in):

| key | |
|---|---|
| `metrics` | figures by name, numbers or groups of numbers: the card's table and its model-index |
| `validation` | figures that training measured on rows it did not fit: counts, and floats that go to the model-index |
| `calibration` | the certificate of the threshold, by name |
| `data` | a name or Hub id of the training data, or what is to be said about it, by name |
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
    """The card of a judge head.

    Args:
        config: with `base_model_name_or_path`, its commit in `revision`, and the provenance.
        repo_id: where the head is published.

    Raises:
        ValueError: the base model is not named.
    """
    base = config.base_model_name_or_path
    if not base:
        raise ValueError(
            "the card needs base_model_name_or_path: the Hub id of the target that the head was trained on"
        )
    provenance = config.provenance
    figures = {key: provenance[key] for key in ("metrics", "validation") if key in provenance}
    measured = [row for row in _rows(figures.get("metrics", {})) if _is_number(row[1])]
    measured += [row for row in _rows(figures.get("validation", {}), "validation / ") if isinstance(row[1], float)]
    name = repo_id.rpartition("/")[2]
    data = provenance.get("data")
    return ModelCard.from_template(
        _model_data(
            name,
            measured,
            dataset=data if isinstance(data, str) else "held-out labelled tokens",
            library_name="peft",
            base_model=base,
            base_model_relation="adapter",
            license=provenance.get("license"),
            datasets=[data] if isinstance(data, str) and data.count("/") == 1 and " " not in data else None,
            tags=[*TAGS, "custom_generate", f"base_model:adapter:{base}"],
        ),
        template_str=_template("judge_head.md"),
        model_name=name,
        base_model=base,
        base_revision=config.revision or "main",
        hidden_size=config.hidden_size,
        n_features=config.n_features,
        extra_features=config.extra_features,
        hidden_state=config.hidden_state,
        quantization=_cell(config.quantization or ""),
        threshold=config.threshold,
        label=_cell(config.label),
        draft=provenance.get("draft"),
        domain=_cell(provenance.get("domain", "")),
        training=_cells({key: value for key, value in provenance.items() if key not in _NOT_TRAINING}),
        metrics=_cells(figures.get("metrics", {}) | {"validation": figures.get("validation", {})}),
        calibration=_cells(provenance.get("calibration") or {}),
        code=_code(
            repo_id=repo_id,
            base_model=base,
            base_revision=config.revision,
            draft=provenance.get("draft"),
            example_prompt=provenance.get("example_prompt", EXAMPLE_PROMPT),
        ),
    )


def _model_data(name: str, metrics: list[tuple], *, dataset: str, **fields) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="judge-decoding",
            dataset_name=dataset,
            metric_type=metric.replace(" ", "_"),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in metrics
    ]
    fields = {key: value for key, value in fields.items() if value is not None}
    return ModelCardData(pipeline_tag="text-generation", model_name=name, eval_results=results or None, **fields)


def _template(name: str) -> str:
    # not files("hf_judge") / "hub_cards": an editable install maps the folder elsewhere
    return files("hf_judge.hub_cards").joinpath(name).read_text(encoding="utf-8")


def _rows(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of nested figures, groups written as `group / name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", value


def _cells(values: Mapping) -> list[tuple[str, str]]:
    return [(_cell(name), _cell(value)) for name, value in _rows(values)]


def _cell(value: object) -> str:
    """Text that stays inside a table cell and draws no HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(**values: str | None) -> dict[str, str]:
    """Literals for a Python block: JSON strings are valid Python; a backtick could end the block."""
    return {
        name: "None" if value is None else json.dumps(value).replace("`", "\\u0060") for name, value in values.items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
