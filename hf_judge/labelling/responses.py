"""Read and write labelled responses: a prompt, a response and the spans of its mistakes in characters.

They stand in JSONL files or `datasets`. `hf_judge.labelling.tokens` turns the spans into labels of tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hf_judge.files.datasets import import_datasets
from hf_judge.files.durable import replacing
from hf_judge.files.jsonl import BrokenLine, read_jsonl_lines, type_name
from hf_judge.head.fingerprint import check_fingerprint
from hf_judge.labelling.prompts import SYSTEM_KEYS, TEMPLATE_KEYS, Prompt, prompt_of

logger = logging.getLogger(__name__)

REQUIRED = {"prompt", "response"}
HOLDS = "a JSON object with 'prompt' and 'response'"


@dataclass(frozen=True)
class LabelledResponse:
    """Holds one response and where it is wrong: an example.

    Args:
        prompt (`str` or `list[dict]`): the text before the response, or chat messages with `role` and `content`.
        response (`str`): the answer to the prompt.
        mistakes (`tuple` of `(start, end)`): character spans of the mistakes in `response`; empty: all is right.
        source (`str`): name of the writer or labeller; metrics are given by source.
        task_id (`str`, *optional*): name of the task, where several examples share one.
        scope (`tuple` of `(start, end)`, *optional*): spans outside of which no token gets a label (swaps label the
            swapped tokens alone); None: the whole response.
        response_ids (`tuple[int]`, *optional*): tokens of the response as a model wrote them; it is then not tokenised
            again.
        near_tie (`bool`, *optional*): whether two choices of a model were so close, in mining, that another batch size
            may give another example.
        chat_template_kwargs (`dict`, *optional*): arguments of the chat template (`tools`, `enable_thinking`, ...); in
            a file they may also stand beside it under their own names.
        draft (`dict`, *optional*): the model whose tokens are labelled: its `name`, and its `fingerprint` (see
            `hf_judge.head.fingerprint`).

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a span is empty, reversed or outside the response.
    """

    prompt: str | list
    response: str
    mistakes: tuple[tuple[int, int], ...] = ()
    source: str = ""
    task_id: str | None = None
    scope: tuple[tuple[int, int], ...] | None = None
    response_ids: tuple[int, ...] | None = None
    near_tie: bool | None = None
    chat_template_kwargs: dict | None = None
    draft: dict | None = None

    def __post_init__(self):
        asked = Prompt(self.prompt, {} if self.chat_template_kwargs is None else self.chat_template_kwargs)
        object.__setattr__(self, "chat_template_kwargs", asked.arguments or None)
        for name in ("response", "source", "task_id"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "task_id" and value is None):
                raise TypeError(f"{name} must be text, got {type(value).__name__}")
        if self.near_tie not in (None, True, False):
            raise TypeError(f"near_tie must be true or false, got {self.near_tie!r:.60}")
        if self.draft is not None:
            if not isinstance(self.draft, dict) or not isinstance(self.draft.get("name"), str):
                raise TypeError(f"draft must be an object with the 'name' of a model, got {self.draft!r:.60}")
            check_fingerprint("draft.fingerprint", self.draft.get("fingerprint") or {})
        object.__setattr__(self, "mistakes", _spans("mistakes", self.mistakes or (), len(self.response)))
        if self.scope is not None:
            object.__setattr__(self, "scope", _spans("scope", self.scope, len(self.response)))
        if self.response_ids is not None:
            if not all(type(i) is int and i >= 0 for i in self.response_ids):
                raise TypeError("response_ids must be token ids: integers from 0 on")
            object.__setattr__(self, "response_ids", tuple(self.response_ids))

    @property
    def asked(self) -> Prompt:
        """The prompt with the arguments of its chat template."""
        return Prompt(self.prompt, self.chat_template_kwargs or {})

    @property
    def prompt_hash(self) -> str:
        """16 hex digits that name the prompt: examples of one prompt never go to different sides of a split."""
        return hash_prompt(self.prompt)

    def to_dict(self) -> dict:
        """Return the example as JSON values, without fields that say nothing."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def hash_prompt(prompt: str | list[dict]) -> str:
    """Return 16 hex digits that name a prompt."""
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_jsonl(path: str | os.PathLike, *, skip_errors: bool = False) -> Iterator[LabelledResponse]:
    """Read the examples of a JSONL file, one at a time.

    Args:
        path: file with one JSON object a line, which has the fields of [`LabelledResponse`].
        skip_errors: log and count broken lines instead of stopping at the first.

    Raises:
        ValueError: a line is broken; the message names file, line and what is wrong.
    """
    return (row for _, row in read_named(path, skip_errors=skip_errors))


def read_named(path: str | os.PathLike, *, skip_errors: bool = False) -> Iterator[tuple[str, LabelledResponse]]:
    """Read as [`read_jsonl`], each example with a name: its file and line."""
    n_broken = 0

    def skip(error: BrokenLine) -> None:
        nonlocal n_broken
        n_broken += 1
        logger.warning("skipped: %s", error)

    lines = read_jsonl_lines(path, row_from_dict, holds=HOLDS, on_broken=skip if skip_errors else None)
    for number, row in lines:
        yield f"{os.fspath(path)}, line {number}", row
    if n_broken:
        logger.warning("%s: %d broken lines were skipped", path, n_broken)


def write_jsonl(rows: Iterable[LabelledResponse], path: str | os.PathLike) -> None:
    """Write examples so that an interrupted call leaves the old file as it was."""
    with replacing(path) as (file,):
        for row in rows:
            file.write(json.dumps(row.to_dict(), ensure_ascii=False).encode() + b"\n")


def row_from_dict(values: dict) -> LabelledResponse:
    """Make an example of JSON values.

    Raises:
        ValueError: they are no object, a field is missing or unknown, or a span is wrong.
        TypeError: a field has the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected {HOLDS}, got {type_name(values)}")
    if values.get("messages") is not None or any(values.get(key) is not None for key in (*TEMPLATE_KEYS, *SYSTEM_KEYS)):
        asked = prompt_of(values)
        values = {k: v for k, v in values.items() if k not in ("messages", *TEMPLATE_KEYS, *SYSTEM_KEYS)}
        values |= {"prompt": asked.content, "chat_template_kwargs": asked.arguments}
    known = {f.name for f in fields(LabelledResponse)}
    missing, unknown = REQUIRED - values.keys(), values.keys() - known
    if missing or unknown:
        raise ValueError(
            f"a labelled response has the fields {sorted(known)}; missing: {sorted(missing) or 'none'}, "
            f"unknown: {sorted(str(key)[:40] for key in unknown) or 'none'}"
        )
    return LabelledResponse(**{key: value for key, value in values.items() if value is not None or key in REQUIRED})


def from_dataset(dataset) -> Iterator[LabelledResponse]:
    """Read the examples of a `datasets.Dataset` with the columns of [`LabelledResponse`].

    `chat_template_kwargs` may be JSON text: a column of structs would give every row the keys of all.

    Raises:
        ValueError: a row is wrong; the message has its number.
    """
    for number, values in enumerate(dataset, 1):
        try:
            if isinstance(values.get("chat_template_kwargs"), str):
                values = values | {"chat_template_kwargs": json.loads(values["chat_template_kwargs"])}
            yield row_from_dict(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"dataset, row {number}: {error}") from None


def load_rows(path: str | os.PathLike, *, skip_errors: bool = False) -> list[LabelledResponse]:
    """Read the examples of a JSONL file, or of a directory made by `Dataset.save_to_disk`."""
    return [row for _, row in load_named(path, skip_errors=skip_errors)]


def load_named(path: str | os.PathLike, *, skip_errors: bool = False) -> list[tuple[str, LabelledResponse]]:
    """Read as [`load_rows`], each example with a name: its file and line, or row."""
    if Path(path).is_dir():
        rows = enumerate(from_dataset(_saved_dataset(path)), 1)
        return [(f"{os.fspath(path)}, row {number}", row) for number, row in rows]
    return list(read_named(path, skip_errors=skip_errors))


def data_hash(rows: Iterable[LabelledResponse]) -> str:
    """Return the SHA-256 of the examples in their order."""
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row.to_dict(), sort_keys=True, ensure_ascii=False) + "\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def summarise(rows: Iterable[LabelledResponse]) -> dict:
    """Count the examples, overall and by source.

    Returns:
        {"all": counts, source: counts, ...}; counts: rows (examples), prompts, with_mistakes (examples), characters,
        mistaken_characters.
    """
    counts, prompts = {}, {}
    for row in rows:
        for name in ("all", row.source or "(no source)"):
            count = counts.setdefault(
                name, dict.fromkeys(("rows", "prompts", "with_mistakes", "characters", "mistaken_characters"), 0)
            )
            prompts.setdefault(name, set()).add(row.prompt_hash)
            count["rows"] += 1
            count["prompts"] = len(prompts[name])
            count["with_mistakes"] += bool(row.mistakes)
            count["characters"] += len(row.response)
            count["mistaken_characters"] += sum(end - start for start, end in row.mistakes)
    return counts


def marked(row: LabelledResponse, left: str = "[[", right: str = "]]") -> str:
    """Return the response with its mistakes between marks."""
    text, last = "", 0
    for start, end in row.mistakes:
        text += row.response[last:start] + left + row.response[start:end] + right
        last = end
    return text + row.response[last:]


def _saved_dataset(path: str | os.PathLike):
    try:
        return import_datasets().load_from_disk(str(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"'{path}' is a folder and no dataset of Dataset.save_to_disk ({str(error).splitlines()[0]:.200}): give "
            "such a folder, or a JSONL file"
        ) from None


def _spans(name: str, spans: object, length: int) -> tuple[tuple[int, int], ...]:
    checked = []
    if not isinstance(spans, (list, tuple)):
        raise TypeError(f"{name} must be a list of [start, end] pairs, got {type(spans).__name__}")
    for span in spans:
        if not isinstance(span, (list, tuple)) or len(span) != 2 or not all(type(i) is int for i in span):
            raise TypeError(f"{name} must hold [start, end] pairs of whole numbers, got {span!r:.60}")
        start, end = span
        if not 0 <= start < end <= length:
            raise ValueError(
                f"{name} holds the span {list(span)}, but spans are [start, end) with 0 <= start < end <= {length}, "
                "the length of the response in characters"
            )
        checked.append((start, end))
    return tuple(sorted(checked))
