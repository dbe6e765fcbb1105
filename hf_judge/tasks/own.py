"""Read a task of a user's own: a YAML file that says how a JSONL file is asked, or a small Python file."""

from __future__ import annotations

import os
import runpy
from dataclasses import dataclass
from pathlib import Path

import jinja2
import jinja2.sandbox

from hf_judge.files.jsonl import decode_text, read_jsonl_lines, type_name

KEYS = {"data", "prompt", "answer", "checker", "tests"}


@dataclass(frozen=True)
class OwnTask:
    """Holds the rows of a user's task and the name of its checker."""

    rows: list[dict]
    names: list[str]
    checker: str


def is_own(path: str) -> bool:
    """Tell whether a path names the description of a task."""
    return path.endswith((".yaml", ".yml", ".py"))


def load_own(path: str) -> OwnTask:
    """Read a user's task.

    A YAML file holds `data` (a JSONL file, from the folder of the YAML file on), `prompt` (a jinja2 template over the
    keys of a line), `answer` (the key of the right answer; `tests` for unit tests), and `checker`:

        data: problems.jsonl
        prompt: "Q: {{ question }}"
        answer: solution
        checker: numeric

    A Python file defines `rows()`, which returns or yields objects with `prompt` and `answer`, and `checker`, a name.
    It is run: use files that you trust.

    Raises:
        ValueError: the file holds anything else; the message names it.
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file at '{path}': expected the description of a task, YAML or Python")
    return _from_python(path) if path.endswith(".py") else _from_yaml(path)


def _from_python(path: str) -> OwnTask:
    found = runpy.run_path(path)
    checker = found.get("checker")
    if not callable(found.get("rows")) or not isinstance(checker, str):
        raise ValueError(f"{path}: expected a function `rows` and a text `checker`, got {sorted(_public(found))}")
    rows = list(found["rows"]())
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or "prompt" not in row:
            raise ValueError(f"{path}, row {number}: expected an object with 'prompt', got {row!r:.80}")
    return OwnTask(rows, [f"{path}, row {number}" for number in range(1, len(rows) + 1)], checker)


def _public(names: dict) -> list[str]:
    return [name for name in names if not name.startswith("_")]


def _from_yaml(path: str) -> OwnTask:
    import yaml

    try:
        told = yaml.safe_load(decode_text(Path(path).read_bytes(), path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(told, dict):
        raise ValueError(f"{path}: expected the keys {sorted(KEYS)}, got {type_name(told)}")
    unknown, missing = set(told) - KEYS, {"data", "prompt", "checker"} - set(told)
    if unknown or missing or not ({"answer", "tests"} & set(told)):
        raise ValueError(
            f"{path}: expected the keys data, prompt, checker, and answer or tests; unknown: "
            f"{sorted(map(str, unknown)) or 'none'}, missing: {sorted(missing) or 'none'}"
        )
    wrong = [key for key, value in told.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]} must be text, got {type_name(told[wrong[0]])}")
    return _asked(path, told)


def _asked(path: str, told: dict) -> OwnTask:
    """Put the lines of the data into the template."""
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    data = os.path.join(os.path.dirname(path), told["data"])
    fields = {kind: told[kind] for kind in ("answer", "tests") if kind in told}
    try:
        template = environment.from_string(told["prompt"])
    except jinja2.TemplateError as error:
        raise ValueError(f"{path}: the prompt is no jinja2 template: {error}") from None

    def row(line: dict) -> dict:
        try:
            prompt = template.render(line)
        except jinja2.TemplateError as error:
            raise ValueError(f"the prompt of {path} cannot be written: {error}") from None
        missing = [key for key in fields.values() if line.get(key) is None]
        if missing:
            raise ValueError(f"expected the key '{missing[0]}', which {path} names; got the keys {sorted(line)!s:.120}")
        return {"prompt": [{"role": "user", "content": prompt}]} | {kind: line[key] for kind, key in fields.items()}

    lines = list(read_jsonl_lines(data, row, holds="an object with the keys that the task names"))
    if not lines:
        raise ValueError(f"{data} holds no rows, which {path} names")
    return OwnTask([one for _, one in lines], [f"{data}, line {number}" for number, _ in lines], told["checker"])
