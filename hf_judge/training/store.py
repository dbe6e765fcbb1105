"""Features of labelled tokens on disk: sharded safetensors files and an index, read shard by shard."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from hf_judge.files.jsonl import read_json_object

INDEX_NAME = "features.json"
FORMAT_VERSION = 2
_INDEX_TYPES = {"shards": list, "rows": list, "complete": bool, "hidden_size": int, "hidden_state": str}
_SHARD_KEYS = {"file", "n_tokens"}


class FeatureStore:
    """Features on disk, read shard by shard.

    Args:
        directory: the folder that `hf_judge.training.extraction.extract_features` filled.

    Raises:
        ValueError: there are no complete features.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        self.index = read_index(self.directory)
        if self.index is None:
            raise ValueError(
                f"no features at '{directory}': {INDEX_NAME} is missing; make them with `hf-judge features`"
            )
        if not self.index["complete"]:
            raise ValueError(
                f"the features at '{directory}' are not complete: run the same command again to finish them"
            )

    @property
    def extra_features(self) -> list[str]:
        """Names of the numbers that are stored beside the states."""
        return self.index.get("extra_features") or []

    def width(self, extra: Sequence[str] = ()) -> int:
        """Return D, the width of the features that [`chunks`] yields with these extra ones."""
        return self.index["hidden_size"] + len(extra)

    @property
    def n_tokens(self) -> int:
        """Number of labelled tokens in all shards."""
        return sum(shard["n_tokens"] for shard in self.index["shards"])

    def column(self, name: str) -> torch.Tensor:
        """Read a whole small column, `(n_tokens,)`.

        Args:
            name: "labels" (int8), "matched" (bool: strict verification accepts the token anyway), "row" (int64, an
                index of `rows`) or "position" (int64, in the response).
        """
        parts = []
        for shard in self.index["shards"]:
            with safe_open(self.directory / shard["file"], framework="pt") as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int8)

    @property
    def rows(self) -> list[dict]:
        """Source, prompt hash and task of every labelled response."""
        return self.index["rows"]

    def chunks(
        self, *, chunk_tokens: int, extra: Sequence[str] = (), generator: torch.Generator | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Walk through all features.

        Args:
            chunk_tokens: the largest number of tokens at once.
            extra: the names, among `extra_features`, of the numbers to put after the states.
            generator: draws the order of shards and of chunks; None: in order.

        Yields:
            The numbers of the tokens `(n,)` long, and their features `(n, D)` float32. Only pages of the file that are
            being read are in memory.
        """
        columns = [self.extra_features.index(name) for name in extra]
        shards, first = [], 0
        for shard in self.index["shards"]:
            shards.append((shard["file"], first, shard["n_tokens"]))
            first += shard["n_tokens"]
        for i in _order(len(shards), generator):
            file_name, first, n_tokens = shards[i]
            with safe_open(self.directory / file_name, framework="pt") as file:
                names = ["features", *(["extra_features"] if extra else [])]
                slices = [file.get_slice(name) for name in names]
                starts = range(0, n_tokens, chunk_tokens)
                for j in _order(len(starts), generator):
                    start, end = starts[j], min(starts[j] + chunk_tokens, n_tokens)
                    parts = [part[start:end].to(torch.float32) for part in slices]
                    features = torch.cat([parts[0], parts[1][:, columns]], dim=1) if extra else parts[0]
                    yield torch.arange(first + start, first + end), features


def read_index(directory: Path) -> dict | None:
    """Read the index of a folder of features; None where there is none.

    Raises:
        ValueError: the index is of another version, or damaged.
    """
    path = directory / INDEX_NAME
    if not path.is_file():
        return None
    index = read_json_object(path)
    if index.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version {index.get('format_version')!r} is not known, expected {FORMAT_VERSION}"
        )
    wrong = [key for key, kind in _INDEX_TYPES.items() if not isinstance(index.get(key), kind)]
    if wrong or any(not isinstance(shard, dict) or not shard.keys() >= _SHARD_KEYS for shard in index["shards"]):
        raise ValueError(
            f"{path} is damaged ({', '.join(wrong) or 'shards'} missing or of another type): make the features again"
        )
    return index


def _order(n: int, generator: torch.Generator | None) -> list[int]:
    return list(range(n)) if generator is None else torch.randperm(n, generator=generator).tolist()
