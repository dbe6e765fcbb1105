"""Write files that stay whole when the process is killed: whole files at once, and a journal of finished work.

A file is written beside its place and moved into it, so that every reader sees the old one or the new one. A journal
holds one JSON line per finished task, on disk before the next one starts; the next run reads what is done. Every
process of a job writes a file of its own.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from hf_judge.files.jsonl import BrokenLine, parse_lines


@contextmanager
def replacing(*paths: str | os.PathLike) -> Iterator[list[BinaryIO]]:
    """Open files beside their places; at the end of the block all of them move into place, after an error none does.

    Args:
        paths: places of the files; missing folders are made.

    Yields:
        One binary file per path, in the same order.
    """
    places, staged = [Path(path) for path in paths], []
    try:
        with ExitStack() as stack:
            files = []
            for place in places:
                place.parent.mkdir(parents=True, exist_ok=True)
                staged.append(place.with_name(f"{place.name}.{secrets.token_hex(4)}.part"))
                files.append(stack.enter_context(open(staged[-1], "xb")))
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for temporary, place in zip(staged, places, strict=True):
            os.replace(temporary, place)
    except BaseException:
        for temporary in staged:
            temporary.unlink(missing_ok=True)
        raise


def write_together(contents: dict[str | os.PathLike, bytes | str]) -> None:
    """Write whole files, text as UTF-8: an interrupted call leaves the old files as they were."""
    with replacing(*contents) as files:
        for file, content in zip(files, contents.values(), strict=True):
            file.write(content.encode() if isinstance(content, str) else content)


def check_writable(path: str | os.PathLike) -> None:
    """Refuse a place where a file cannot be written, before its contents are computed.

    Raises:
        OSError: the path is a folder or a device, or no folder above it can be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder: expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise OSError(f"'{path}' is a device or pipe: expected the name of a file to write")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"'{path}' cannot be written: '{folder}' is {'not writable' if folder.is_dir() else 'a file'}")


class Journal:
    """Keeps the finished tasks of a job on disk.

    Args:
        directory: folder with one file per process.
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
        """Return the record of every finished task by its key, over the files of all processes."""
        records = {}
        for path in sorted(self._directory.glob("process-*.jsonl")):
            lines = path.read_bytes()[: _whole_bytes(path)].splitlines()
            try:
                for number, record in parse_lines(lines, path, _record, holds="a finished task"):
                    if number == 1:
                        self._check(path, record.get("settings"))
                    else:
                        records[record["key"]] = record["value"]
            except BrokenLine as error:
                raise ValueError(f"{error} (the journal is damaged: delete the line to go on)") from None
        return records

    def append(self, key: str, value: dict) -> None:
        """Record a finished task; the record is on disk when this returns."""
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


def _record(values: dict) -> dict:
    if "settings" not in values and not values.keys() >= {"key", "value"}:
        raise ValueError(f"expected 'settings', or 'key' and 'value', got the keys {sorted(values)}")
    return values


def _whole_bytes(path: Path) -> int:
    """Return the length of the file up to the end of its last finished line."""
    return path.read_bytes().rfind(b"\n") + 1 if path.is_file() else 0
