"""A durable list of finished work: one JSON line per finished task, on disk before the next one starts.

A process killed at any moment loses the tasks it was working on and nothing else; the next run reads what is done.
Every process of a job writes a file of its own. Knows nothing about models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


class Journal:
    """The finished tasks of a job.

    Args:
        directory: holds one file per process.
        settings: JSON values that every finished task depends on.
        process_index: number of this process.

    Raises:
        ValueError: the directory holds work done with other settings, or a file is damaged before its last line.
    """

    def __init__(self, directory: str | os.PathLike, settings: dict, *, process_index: int = 0):
        self._directory, self._settings = Path(directory), json.loads(json.dumps(settings))
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path = self._directory / f"process-{process_index:05d}.jsonl"
        self._file = None

    def __enter__(self) -> Journal:
        self.finished()  # checks every file
        whole = _whole_bytes(self._path)
        self._file = open(self._path, "ab")
        self._file.truncate(whole)  # the line that a killed run did not finish
        if not whole:
            self._append({"settings": self._settings})
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def finished(self) -> dict[str, dict]:
        """Task key -> what was recorded, over the files of all processes."""
        records = {}
        for path in sorted(self._directory.glob("process-*.jsonl")):
            content = path.read_bytes()[: _whole_bytes(path)]
            for number, line in enumerate(content.splitlines(), 1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number} is damaged: {error}; delete the line to go on") from None
                if number == 1:
                    self._check(path, record.get("settings"))
                else:
                    records[record["key"]] = record["value"]
        return records

    def append(self, key: str, value: dict) -> None:
        """Record a finished task; on disk when this returns."""
        self._append({"key": key, "value": value})

    def _append(self, record: dict) -> None:
        self._file.write(json.dumps(record, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check(self, path: Path, found: object) -> None:
        if found != self._settings:
            found = found if isinstance(found, dict) else {}
            changed = sorted(
                key for key in self._settings.keys() | found.keys() if self._settings.get(key) != found.get(key)
            )
            raise ValueError(
                f"{path} holds work done with other settings ({', '.join(changed)} differ): choose another output, or "
                "delete it to start again"
            )


def _whole_bytes(path: Path) -> int:
    """Length of the file up to the end of its last finished line."""
    return path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0
