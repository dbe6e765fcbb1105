"""Read the records of a foreign dataset: JSONL, JSON, Parquet, saved datasets, the Hub, and AutoJudge's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy
import torch

from hf_judge.files.datasets import import_datasets
from hf_judge.files.jsonl import decode_text, read_jsonl_lines
from hf_judge.head.hub import is_hub_id

SUFFIXES = (".jsonl", ".json", ".parquet", ".pt", ".pth", ".pkl")
HOLDS = "an object, one record of the dataset"


def read_records(source: str, *, revision: str | None = None) -> Iterator[tuple[str, dict]]:
    """Yield the records of a dataset, each with a name: its file and line or row.

    Args:
        source: a file (.jsonl, .json, .parquet, or .pt of AutoJudge), a folder of `Dataset.save_to_disk`, or a dataset
            on the Hub, `user/name` or `user/name:split`.
        revision: branch, tag or commit of a dataset on the Hub.

    Raises:
        ValueError: the source cannot be read as any of these.
        FileNotFoundError: there is no such file, and the name is no dataset's.
        ImportError: the source needs the `datasets` package.
    """
    path, suffix = Path(source), Path(source).suffix.lower()
    if suffix in SUFFIXES and not path.exists():
        raise FileNotFoundError(f"no file at '{source}'")
    if path.is_dir():
        yield from _rows(source, _datasets().load_from_disk(source))
    elif suffix == ".parquet" and path.is_file():
        yield from _rows(source, _datasets().Dataset.from_parquet(source))
    elif suffix in (".pt", ".pth", ".pkl") and path.is_file():
        yield from _torch_entries(source)
    elif suffix == ".json" and path.is_file() and path.read_bytes().lstrip()[:1] == b"[":
        yield from _json_list(source)
    elif path.is_file() or not is_hub_id(source.partition(":")[0]):
        lines = read_jsonl_lines(source, lambda values: values, holds=HOLDS)
        yield from ((f"{source}, line {number}", record) for number, record in lines)
    else:
        yield from _hub_rows(source, revision)


def _rows(source: str, dataset) -> Iterator[tuple[str, dict]]:
    splits = dataset.items() if hasattr(dataset, "items") else [(None, dataset)]  # a DatasetDict
    for split, rows in splits:
        where = source if split is None else f"{source}:{split}"
        yield from ((f"{where}, row {number}", record) for number, record in enumerate(rows, 1))


def _hub_rows(source: str, revision: str | None) -> Iterator[tuple[str, dict]]:
    name, _, split = source.partition(":")
    try:
        dataset = _datasets().load_dataset(name, split=split or None, revision=revision)
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(
            f"the dataset '{source}' could not be loaded from the Hub ({str(error).splitlines()[0]:.200}): check name "
            "and split (user/name:split) and the connection, or pass a file"
        ) from None
    yield from _rows(name, dataset if split == "" else {split: dataset})


def _json_list(source: str) -> Iterator[tuple[str, dict]]:
    try:
        values = json.loads(decode_text(Path(source).read_bytes(), source))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from None
    for number, record in enumerate(values, 1):
        if not isinstance(record, dict):
            raise ValueError(f"{source}, item {number}: expected {HOLDS}, got {record!r:.60}")
        yield f"{source}, item {number}", record


def _torch_entries(source: str) -> Iterator[tuple[str, dict]]:
    """Read a list that `torch.save` wrote: tensors, arrays, numbers and texts only, nothing that could run code."""
    try:
        with torch.serialization.safe_globals(_numbers()):
            values = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile file makes the reader raise
        raise ValueError(
            f"{source} is no list that torch.save wrote of tensors, numbers and texts ({type(error).__name__}); files "
            "that hold other objects can run code and are not read"
        ) from None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{source} must hold a list of dicts, got {type(values).__name__}")
    yield from ((f"{source}, entry {number}", value) for number, value in enumerate(values, 1))


def _numbers() -> list:
    """Return what numpy's arrays and numbers in a file are made of, under the names before and after numpy 2."""
    made_by = (numpy.array(0.0).__reduce__()[0], numpy.float64(0).__reduce__()[0])
    named = [(f, f"numpy.{core}.multiarray.{f.__name__}") for f in made_by for core in ("core", "_core")]
    kinds = [numpy.dtype(kind) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")]
    return [*named, numpy.ndarray, numpy.dtype, *map(type, kinds)]


def _datasets() -> ModuleType:
    """Return the package `datasets`, without its progress bars."""
    datasets = import_datasets()
    if not os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS"):
        datasets.disable_progress_bars()
    return datasets
