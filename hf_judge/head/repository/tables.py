"""Turn the figures in a head's config into the tables of its card, each with what its numbers are over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

MEASURED = "measured"  # key of the provenance: what `hf-judge evaluate` and `bench` found, by task
TOKENS = {"decided": "the tokens on which the judge decides", "all": "all labelled tokens"}


class Table(NamedTuple):
    """Holds a table of a card; every cell is text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


def tables(provenance: Mapping) -> list[Table]:
    """Return a table for each run of `hf-judge evaluate` and `bench` that the config holds.

    Raises:
        ValueError: the config holds something else under that name.
    """
    with _reading():
        measured = provenance.get(MEASURED) or {}
        return [_evaluation(task, found) for task, found in (measured.get("evaluate") or {}).items()] + [
            _speed(task, found) for task, found in (measured.get("bench") or {}).items()
        ]


@contextmanager
def _reading() -> Iterator[None]:
    """Say what is wrong where the figures of a config are not those that our commands write."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(
            f"provenance['{MEASURED}'] of this head was not written by `hf-judge evaluate` or `bench`: rename that key"
        ) from None


def validation_rows(validation: Mapping) -> list[tuple[str, str]]:
    """Return the figures of the fit's held-out tokens as (measure, value), each measure with its tokens and counts."""
    return [
        (
            f"AUC over {tokens} of held-out prompts ({validation[kind]['n_acceptable']} good, "
            f"{validation[kind]['n_mistaken']} mistaken)",
            "-" if validation[kind]["auc"] is None else f"{validation[kind]['auc']:.4f}",
        )
        for kind, tokens in TOKENS.items()
        if is_of_both(validation)
    ]


def is_of_both(validation: Mapping) -> bool:
    """Tell whether the figures of the fit say which tokens they are over; those of earlier releases do not."""
    wanted = {"auc", "n_acceptable", "n_mistaken"}
    return all(isinstance(validation.get(kind), Mapping) and wanted <= validation[kind].keys() for kind in TOKENS)


def index_values(provenance: Mapping) -> list[tuple[str, float]]:
    """Return (name, value) of the judged figures for the model-index.

    Raises:
        ValueError: as [`tables`].
    """
    found = []
    with _reading():
        for task, run in ((provenance.get(MEASURED) or {}).get("evaluate") or {}).items():
            for row in run["methods"]:
                if row["name"].startswith("judge at"):
                    name = f"{task}, {row['name']}"
                    found += [
                        (f"{name}: right answers", row["accuracy"]),
                        (f"{name}: speed-up over plain decoding", row["speedup"]),
                        (f"{name}: accepted tokens per forward", row["accepted_per_forward"]),
                    ]
    validation = provenance.get("validation")
    if isinstance(validation, Mapping) and is_of_both(validation):
        found += [
            (f"AUC over {tokens}", validation[kind]["auc"])
            for kind, tokens in TOKENS.items()
            if validation[kind]["auc"] is not None
        ]
    return found


def _evaluation(task: str, found: Mapping) -> Table:
    rows = []
    for row in found["methods"]:
        low, high = row["accuracy_interval"]
        slow, fast = row["speedup_interval"]
        rows.append(
            [
                row["name"],
                f"{row['accuracy']:.1%} ({low:.1%} to {high:.1%})",
                f"{row['gained']} / {row['lost']} (p = {row['mcnemar_p']:.2g})",
                f"{row['speedup']:.2f}x ({slow:.2f} to {fast:.2f})",
                f"{row['accepted_per_forward']:.1f}",
                "-" if row["rescued_per_answer"] is None else f"{row['rescued_per_answer']:.1f}",
            ]
        )
    header = ["", "right answers (95%)", "gained / lost against plain", "speed-up over plain (95%)"]
    return Table(
        f"{task}: {found['n']} problems",
        [*header, "accepted drafted tokens per forward", "rescued tokens per answer"],
        rows,
        f"Over whole answers; up to {found['num_assistant_tokens']} drafted tokens per round. {_machine(found)}",
    )


def _speed(task: str, found: Mapping) -> Table:
    rows = [
        [
            row["name"],
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio_to_plain']:.2f}x",
            f"{row['accepted_per_forward']:.1f}",
        ]
        for row in found["methods"]
    ]
    header = ["", "tokens per second", "to plain", "accepted drafted tokens per forward"]
    note = f"Over all generated tokens. {found['recommendation']} {_machine(found)}"
    return Table(f"{task}: speed on {found['n']} prompts", header, rows, note)


def _machine(found: Mapping) -> str:
    return "; ".join(f"{name} {value}" for name, value in found["setup"].items())
