"""Read users' text files: JSON, one object a line, in UTF-8 with or without a byte order mark.

Anything else in a file ends in a [`BrokenLine`]: file and line, what was expected, what stands there, what to do.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# first bytes of files of other formats; the longer marks go first
_MAGIC = (
    (codecs.BOM_UTF32_LE, "UTF-32 text"),
    (codecs.BOM_UTF32_BE, "UTF-32 text"),
    (codecs.BOM_UTF16_LE, "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "UTF-16 text"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
)
_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


class BrokenLine(ValueError):
    """Says what is wrong with a line of a file; the text names the file and the line."""


def read_jsonl_lines(
    path: str | os.PathLike,
    parse: Callable[[dict], T],
    *,
    holds: str,
    on_broken: Callable[[BrokenLine], None] | None = None,
) -> Iterator[tuple[int, T]]:
    """Yield what `parse` makes of every line of a JSONL file, with the number of the line, from 1 on.

    Blank lines are passed over.

    Args:
        path: the file.
        parse: function of an object; its ValueError or TypeError is raised again with file and line.
        holds: description of a good line, for errors: "an object with 'prompt'".
        on_broken: function that receives a broken line, which is then skipped; None: the first one is raised.

    Raises:
        BrokenLine: a line is broken and there is no `on_broken`, or the file is no text at all.
        FileNotFoundError, IsADirectoryError: there is no such file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"no file at '{path}': expected JSONL, each line {holds}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"'{path}' is a folder: expected a JSONL file, each line {holds}")
    with open(path, "rb") as file:
        yield from parse_lines(file, path, parse, holds=holds, on_broken=on_broken)


def parse_lines(
    lines: Iterable[bytes],
    source: str | os.PathLike,
    parse: Callable[[dict], T],
    *,
    holds: str,
    on_broken: Callable[[BrokenLine], None] | None = None,
) -> Iterator[tuple[int, T]]:
    """Do as [`read_jsonl_lines`] with lines in memory; `source` names them in errors."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            _refuse_other_formats(line, source, holds)
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            row = parse(_object(line, holds, is_first=number == 1))
        except (ValueError, TypeError, RecursionError) as error:
            broken = BrokenLine(f"{os.fspath(source)}, line {number}: {error}")
            if on_broken is None:
                raise broken from None
            on_broken(broken)
        else:
            yield number, row


def read_json_object(path: str | os.PathLike) -> dict:
    """Read a file that holds one JSON object.

    Raises:
        ValueError: the file holds anything else; the message names it.
        FileNotFoundError, IsADirectoryError: there is no such file.
    """
    try:
        value = json.loads(decode_text(Path(path).read_bytes(), os.fspath(path)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{os.fspath(path)}: expected a JSON object, got {type_name(value)}")
    return value


def decode_text(raw: bytes, source: str) -> str:
    """Decode a user's text, and drop its byte order mark.

    Raises:
        ValueError: the bytes are not UTF-8; the message names `source`.
    """
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: {_undecodable(error)}") from None


def type_name(value: object) -> str:
    """Name the type of a JSON value in words."""
    return _NAMES.get(type(value), "a number")


def _refuse_other_formats(line: bytes, source: str | os.PathLike, holds: str) -> None:
    found = next((name for mark, name in _MAGIC if line.startswith(mark)), None)
    if found is None and b"\0" in line:
        found = "binary data"
    if found is not None:
        remedy = "save it as UTF-8" if found.endswith("text") else "convert it to JSONL"
        raise BrokenLine(
            f"{os.fspath(source)}, line 1: expected UTF-8 text, each line {holds}, got {found}: {remedy} first"
        )


def _object(line: bytes, holds: str, *, is_first: bool = False) -> dict:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(_undecodable(error)) from None
    try:
        value = json.loads(
            text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise ValueError(
            f"expected {holds}, got {text.strip():.60}, which is no JSON ({error.msg}, column {error.colno}): "
            f"{_remedy(text.strip(), is_first)}"
        ) from None
    if not isinstance(value, dict):
        more = ": write its items one a line" if isinstance(value, list) else ""
        raise ValueError(f"expected {holds}, got {type_name(value)} ({text.strip():.60}){more}")
    if "\\ud" in text.lower():  # half of a pair that stands for one character, which no tokenizer and no file takes
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(f"a text holds {half}, one half of a character: write both halves, or none") from None
    return value


def _remedy(text: str, is_first: bool) -> str:
    if text.startswith("["):
        return "a JSON list is to be written as JSONL, its items one a line"
    if text.startswith("{"):
        return "each object stands whole on a line of its own"
    if is_first and any(mark in text for mark in ",;\t"):
        return "a table (CSV, TSV) is to be converted to JSONL first"
    return "correct the line or take it out"


def _undecodable(error: UnicodeDecodeError) -> str:
    return (
        f"expected UTF-8 text, got the byte 0x{error.object[error.start]:02x} at byte {error.start + 1}: "
        "save the file as UTF-8"
    )


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {double!r:.60} stands there twice, and only one of its values could count: drop one")
    return values


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"the number {digits:.60} is too large for a JSON reader: write it as text")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON: write a number, a text or null")


def listed(found: list[tuple[str, str]], most: int = 20) -> list[str]:
    """Write a line for each of the first `most` (name, reason) pairs, and one that counts the others."""
    lines = [f"  {name}: {reason}" for name, reason in found[:most]]
    return [*lines, f"  and {len(found) - most} more"] if len(found) > most else lines
