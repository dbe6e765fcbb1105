"""Keep what was measured about a judge head in its config, for its card.

`hf-judge evaluate` and `bench` call this for heads in directories. A run never replaces one with more problems.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import hf_judge
from hf_judge.files.jsonl import type_name
from hf_judge.head.adapter import read_adapter, write_adapter
from hf_judge.head.hub import is_hub_id
from hf_judge.head.repository.publish import example_of
from hf_judge.head.repository.tables import MEASURED
from hf_judge.rules.by_name import BASELINES, needs_head

_ACCURACY = ("accuracy", "accuracy_interval", "gained", "lost", "mcnemar_p")
_SPEED = ("speedup", "speedup_interval", "tokens_per_second", "accepted_per_forward", "rescued_per_answer")
_BENCH = ("tokens_per_second", "tokens_per_second_spread", "ratio_to_plain", "accepted_per_forward")
_SETUP = ("machine", "dtype", "decoding", "hf_judge", "transformers", "torch", "date")


def evaluated(found: dict, rule: str, threshold: float) -> dict:
    """Choose from the figures of `hf-judge evaluate` what a card shows.

    Args:
        found: figures, see `hf_judge.evaluation.report.result`.
        rule: name of the head among them: "judge" or "judge:NAME".
        threshold: the head's own; without a row of it, all rows of the head are kept.
    """
    rows = found["rules"]
    shown = {row["rule"]: row for row in rows if row["rule"] in ("plain", "strict")}
    own = [(threshold if row["threshold"] is None else row["threshold"], row) for row in rows if row["rule"] == rule]
    own = [(value, row) for value, row in own if value == threshold] or own
    shown |= {f"judge at {value:g}": row for value, row in own}
    floor = rows[0]["accuracy"] - 0.01 - 1e-9
    free = [row for row in rows if _is_training_free(row["rule"]) and row["accuracy"] >= floor]
    best = max(free, key=lambda row: row["speedup"], default=None)
    if best is not None:
        value = "" if best["threshold"] is None else f" {best['threshold']:g}"
        shown[f"{best['rule']}{value} (best rule without training)"] = best
    setup = found["setup"]
    return {
        "n": setup["n"],
        "num_assistant_tokens": setup["num_assistant_tokens"],
        "methods": [{"name": name} | {key: row[key] for key in (*_ACCURACY, *_SPEED)} for name, row in shown.items()],
        "setup": {key: setup[key] for key in _SETUP if key in setup},
    }


def benched(found: dict) -> dict:
    """Choose from the figures of `hf-judge bench` what a card shows: plain, and the best with and without a judge."""
    rows = found["ways"]
    judged = [row for row in rows if row["way"].startswith("judged")]
    others = [row for row in rows if row not in judged]
    fastest = [max(some, key=lambda row: row["tokens_per_second"]) for some in (others, judged) if some]
    shown = {row["way"]: row for row in [rows[0], *fastest]}
    setup = found["setup"]
    return {
        "n": setup["n"],
        "methods": [{"name": name} | {key: row[key] for key in _BENCH} for name, row in shown.items()],
        "recommendation": found["recommendation"]["text"],
        "setup": {key: setup[key] for key in _SETUP if key in setup},
    }


def record(
    directory: str | os.PathLike,
    kind: str,
    task: str,
    figures: dict,
    *,
    draft: str | None = None,
    prompts: list[str | list[dict]] = (),
) -> bool:
    """Write figures into the config of a head, with the draft and an example prompt where it has none.

    Args:
        directory: the head's folder; heads that came with this package are left as they are.
        kind: "evaluate" or "bench".
        task: name of the task; of a path the last part is kept.
        figures: what [`evaluated`] or [`benched`] returned.
        draft: name of the draft; kept only where it is a repository's.
        prompts: prompts of the task; the first short one that names no token, path or machine becomes the example.

    Returns:
        Whether something was written; not, where the folder cannot be written to, or holds figures of more problems.

    Raises:
        ValueError, TypeError: the folder holds no head.
    """
    directory = Path(directory).resolve()
    if directory.is_relative_to(Path(hf_judge.__file__).resolve().parent) or not os.access(directory, os.W_OK):
        return False
    head = read_adapter(directory)
    provenance = dict(head.config.provenance)
    if re.match(r"[/\\~.]|[A-Za-z]:[/\\]", task):  # the options stay: "/data/held_out.jsonl (numeric)"
        task = task.replace("\\", "/").rpartition("/")[2]
    measured = _groups(provenance.get(MEASURED))
    of_kind = _groups(measured.get(kind))
    if of_kind.get(task, {}).get("n", 0) > figures["n"]:
        return False
    provenance[MEASURED] = measured | {kind: of_kind | {task: figures}}
    if draft is not None and is_hub_id(draft) and "/" in draft:
        provenance.setdefault("draft", draft)
    example = example_of(prompts)
    if example is not None:
        provenance.setdefault("example_prompt", example)
    head.config.provenance = provenance
    write_adapter(directory, *head)
    return True


def _is_training_free(rule: str) -> bool:
    """Tell whether a rule is one to use that needs no head: no baseline, and no random control."""
    return rule not in (*BASELINES, "strict", "random") and not needs_head(rule)


def _groups(value: object) -> dict:
    """Return nested figures.

    Raises:
        ValueError: the config holds something else under that name.
    """
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"provenance['{MEASURED}'] must be an object, got {type_name(value)}: rename that key of the head's config"
        )
    return value or {}
