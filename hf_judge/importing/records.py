"""Check the fields of foreign records, and make examples of them."""

from __future__ import annotations

from hf_judge.files.jsonl import type_name
from hf_judge.labelling.responses import LabelledResponse

_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


class Unmatched(ValueError):
    """Says why a record's labels cannot be lined up with its text; reports count the reason."""


class WrongFormat(ValueError):
    """Says that a record lacks a field of its format: the file is another dataset's, or another layout."""


def field(record: dict, name: str, kind: type, *, empty: bool = False):
    """Return a field of a record.

    Args:
        record: the record.
        name: the field.
        kind: the type that it must have.
        empty: whether a field that is missing counts as an empty one.

    Raises:
        WrongFormat: the field is missing; the message lists the fields that are there.
        Unmatched: it has another type.
    """
    if name not in record or (record[name] is None and empty):
        if empty:
            return kind()
        raise WrongFormat(f"no field '{name}'; there are: {', '.join(sorted(map(str, record))[:20]) or 'none'}")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Unmatched(f"'{name}' must be {_NAMES[kind]}, got {type_name(value)}")
    return value


def question(text: str) -> list[dict]:
    """Return a problem as chat messages."""
    return [{"role": "user", "content": text.strip()}]


def make_example(prompt, response: str, **more) -> LabelledResponse:
    """Make an example.

    Raises:
        Unmatched: the response is blank, or a span is not inside it.
    """
    if not response.strip():
        raise Unmatched("the response is blank")
    try:
        return LabelledResponse(prompt, response, **more)
    except (TypeError, ValueError) as error:
        raise Unmatched(str(error)) from None
