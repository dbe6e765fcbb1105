"""Make the card of a judge head for the Hub, from the template hub_cards/judge_head.md and the head's config.

`JudgeConfig.provenance` may hold, filled in by whoever trains a head:

| key | |
|---|---|
| `metrics` | figures by name, numbers or groups of numbers: the card's table and its model-index |
| `validation` | figures of the fit's held-out prompts, over the tokens on which the judge decides and over all tokens |
| `measured` | what `hf-judge evaluate` and `bench` found, see `hf_judge.publishing.record`: tables and model-index |
| `calibration` | the certificate of the threshold, by name |
| `data` | a name or Hub id of the training data, or statements about it, by name |
| `draft` | Hub id of the draft model that the usage example loads; default: the config's `draft_name_or_path` |
| `example_prompt` | text or chat messages |
| `domain`, `license` | text |

Every other key is listed under "How it was trained".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_judge.head.config import JudgeConfig
from hf_judge.head.hub import is_hub_id
from hf_judge.head.repository.tables import MEASURED, Table, index_values, is_of_both, tables, validation_rows

TAGS = ("hf-judge", "judge", "judge-decoding", "speculative-decoding")
EXAMPLE_PROMPT = "Question: Ana has 17 coins and finds 5 more. How many has she now?\nAnswer:"
_NOT_TRAINING = ("metrics", "validation", MEASURED, "calibration", "draft", "example_prompt", "domain", "license")


def head_card(config: JudgeConfig, repo_id: str, *, base_unknown: bool = False) -> ModelCard:
    """Make the card of a judge head.

    Args:
        config: config with `base_model_name_or_path`, its commit in `revision`, and the provenance.
        repo_id: repository where the head is published.
        base_unknown: whether the base model is not to be found on the Hub; the card then says so, and names no commit.

    Raises:
        ValueError: the base model is not named.
    """
    if not config.base_model_name_or_path:
        raise ValueError(
            "the card needs base_model_name_or_path: the Hub id of the target that the head was trained on"
        )
    name = repo_id.rpartition("/")[2]
    return ModelCard.from_template(
        _index_data(config, name, base_unknown),
        template_str=_template(),
        model_name=name,
        **_text_values(config, repo_id, base_unknown),
    )


def _index_data(config: JudgeConfig, name: str, base_unknown: bool) -> ModelCardData:
    """Return what the Hub reads about a head: its model, data, licence and figures."""
    base, provenance = config.base_model_name_or_path, config.provenance
    measured = [row for row in _flat(_group(provenance.get("metrics"))) if _is_number(row[1])]
    validation = _group(provenance.get("validation"))
    if not is_of_both(validation):
        measured += [row for row in _flat(validation, "validation / ") if isinstance(row[1], float)]
    measured += index_values(provenance)
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
        "base_model": None if base_unknown else base,
        "base_model_relation": None if base_unknown else "adapter",
        "license": provenance.get("license"),
        "datasets": [data] if isinstance(data, str) and data.count("/") == 1 and " " not in data else None,
    }
    return ModelCardData(
        pipeline_tag="text-generation",
        model_name=name,
        library_name="peft",
        tags=[*TAGS, "custom_generate", *([] if base_unknown else [f"base_model:adapter:{base}"])],
        eval_results=results or None,
        **{key: value for key, value in fields.items() if value is not None},
    )


def _text_values(config: JudgeConfig, repo_id: str, base_unknown: bool) -> dict:
    """Return what the template of the card names."""
    base, provenance = config.base_model_name_or_path, config.provenance
    validation = _group(provenance.get("validation"))
    both = is_of_both(validation)
    measured = _cells(_group(provenance.get("metrics")) | ({} if both else {"validation": validation}))
    measured += _cells(dict(validation_rows(validation)))
    draft = draft_of(config)
    prompt = provenance.get("example_prompt", EXAMPLE_PROMPT)
    return {
        "base_model": base,
        "base_unknown": base_unknown,
        "base_revision": "unknown" if base_unknown else config.revision or "main",
        "hidden_size": config.hidden_size,
        "n_features": config.n_features,
        "extra_features": config.extra_features,
        "hidden_state": config.hidden_state,
        "n_matrices": len(config.fingerprint or {}),
        "labelled_draft": _cell(config.draft_name_or_path or ""),
        "quantization": _cell(config.quantization or ""),
        "threshold": config.threshold,
        "label": _cell(config.label),
        "draft": draft,
        "chat": not isinstance(prompt, str),
        "domain": _cell(provenance.get("domain", "")),
        "training": _cells({key: value for key, value in provenance.items() if key not in _NOT_TRAINING}),
        "metrics": measured,
        "tables": [_escaped(table) for table in tables(provenance)],
        "calibration": _cells(_group(provenance.get("calibration"))),
        "code": _code(
            repo_id=repo_id,
            base_model=f"path/to/{base}" if base_unknown and "/" not in base else base,
            base_revision=config.revision,
            draft=draft,
            example_prompt=prompt,
        ),
    }


def draft_of(config: JudgeConfig) -> str | None:
    """Return the Hub id of the draft; None: it is not known, or a folder of somebody's machine."""
    draft = config.provenance.get("draft")
    if draft is None and config.draft_name_or_path and "/" in config.draft_name_or_path:
        draft = config.draft_name_or_path if is_hub_id(config.draft_name_or_path) else None
    return draft


def _escaped(table: Table) -> Table:
    """Return a table whose cells draw nothing but text."""
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    return Table(_cell(table.title), table.header, rows, _cell(table.note))


def _template() -> str:
    # not files("hf_judge") / "hub_cards": an editable install maps the folder elsewhere
    return files("hf_judge.hub_cards").joinpath("judge_head.md").read_text(encoding="utf-8")


def _group(value: object) -> dict:
    """Return figures by name, whatever form an author gave them: of a list by number, of a single value as "value"."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list):
        return {str(number): item for number, item in enumerate(value, 1)}
    return {} if value is None else {"value": value}


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


def _code(**values: object) -> dict[str, str]:
    """Return literals for a Python block: JSON strings are valid Python, and a backtick could end the block."""
    literals = {name: json.dumps(value) if isinstance(value, str) else repr(value) for name, value in values.items()}
    return {name: literal.replace("`", "\\u0060") for name, literal in literals.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
