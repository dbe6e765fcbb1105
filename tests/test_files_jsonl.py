"""Users' files: what is read, what is refused and how; and files that a killed process leaves whole."""

import gzip
import json
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_judge.files.durable import check_writable, replacing, write_together
from hf_judge.files.jsonl import BrokenLine, decode_text, read_json_object, read_jsonl_lines

HOLDS = "a JSON object with 'prompt'"
ROW = b'{"prompt": "a"}\n'
TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)


def read(path, parse=lambda row: row, **options):
    return list(read_jsonl_lines(path, parse, holds=HOLDS, **options))


@given(rows=st.lists(OBJECTS), mark=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"]))
def test_what_is_written_is_read(tmp_path_factory, rows, mark, end):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    text = end.join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) for row in rows)
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    assert [row for _, row in read(path)] == rows
    numbers = [n for n, line in enumerate(text.encode().split(b"\n"), 1) if line.strip()]
    assert [number for number, _ in read(path)] == numbers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}".encode("utf-16"), "line 1: expected UTF-8 text.*got UTF-16 text: save it as UTF-8 first"),
        ("{}".encode("utf-16-le"), "line 1: .*got binary data: convert it to JSONL first"),
        ("{}".encode("utf-32"), "line 1: .*got UTF-32 text"),
        (gzip.compress(ROW, mtime=0), "line 1: .*got a gzip archive"),
        (b"PK\x03\x04...", "line 1: .*a zip archive or a spreadsheet"),
        (b"PAR1...", "line 1: .*a Parquet file"),
        (pickle.dumps({"prompt": "a"}), "line 1: .*got binary data"),
        (ROW + 'caf\xe9"\n'.encode("latin-1"), "line 2: expected UTF-8 text, got the byte 0xe9 at byte 4.*save the"),
        (b"prompt,answer\na,5\n", r"line 1: expected .*got prompt,answer.*a table \(CSV, TSV\) is to be converted"),
        (b'[{"prompt": "a"}]', "line 1: .*got a list .*write its items one a line"),
        (b'[\n{"prompt": "a"}]', "line 1: .*a JSON list is to be written as JSONL"),
        (b'{\n "prompt": "a"\n}', "line 1: .*each object stands whole on a line"),
        (ROW + b"null\n", r"line 2: expected .*'prompt', got null \(null\)"),
        (ROW + b"\n7\n", "line 3: expected .*got a number"),
        (ROW + b'"a"\n', "line 2: expected .*got text"),
        (ROW + b'{"prompt": "a"', "line 2: .*no JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "line 1: the key 'prompt' stands there twice"),
        (b'{"prompt": NaN}', "line 1: NaN is no JSON"),
        (b'{"prompt": "\\ud83d"}', r"line 1: a text holds \\ud83d, one half of a character"),
        (b'{"prompt": ' + b"[" * 100_000 + b"}", "line 1: "),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "line 1: "),
    ],
)  # fmt: skip
def test_what_is_no_jsonl_is_told_in_one_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(BrokenLine, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@given(content=st.binary(max_size=60))
def test_any_bytes_are_rows_or_a_broken_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(content)
    try:
        rows = read(path)
    except BrokenLine as error:
        assert str(error).startswith(f"{path}, line ")  # noqa: PT017 (either is right)
    else:
        assert all(isinstance(row, dict) for _, row in rows)


def test_broken_lines_can_be_collected(tmp_path):
    path, broken = tmp_path / "rows.jsonl", []
    path.write_bytes(ROW + b"null\n" + ROW + b"{\n")
    assert [number for number, _ in read(path, on_broken=broken.append)] == [1, 3]
    assert [str(error).split(":")[0] for error in broken] == [f"{path}, line 2", f"{path}, line 4"]
    path.write_bytes(b"\x1f\x8b" + ROW)  # no line of it can be meant
    with pytest.raises(BrokenLine, match="gzip"):
        read(path, on_broken=broken.append)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file at .*expected JSONL, each line a JSON object with 'prompt'"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(IsADirectoryError, match="is a folder: expected a JSONL file"):
        read(tmp_path)


def test_one_object(tmp_path):
    path = tmp_path / "one.json"
    path.write_bytes(b'\xef\xbb\xbf{\n"a": 1}')
    assert read_json_object(path) == {"a": 1}
    for content, message in (
        (b"[1]", "expected a JSON object, got a list"),
        (b"{", "is not valid"),
        (b"\xff", "UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"one.json.*{message}"):
            read_json_object(path)
    assert decode_text(b"\xef\xbb\xbfab", "it") == "ab"


class TestWholeFiles:
    def test_both_or_none(self, tmp_path):
        old, new = tmp_path / "old", tmp_path / "folder" / "new"
        old.write_text("before")

        def interrupted():
            with replacing(old, new) as (first, _):
                first.write(b"after")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert old.read_text() == "before"
        assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["old"]
        write_together({old: b"after", new: "caf\xe9"})
        assert old.read_text() == "after"
        assert new.read_bytes() == "caf\xe9".encode()
        assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["new", "old"]

    def test_places_where_nothing_can_be_written(self, tmp_path):
        check_writable(tmp_path / "new" / "folder" / "file")
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(IsADirectoryError, match="is a folder: expected the name of a file"):
            check_writable(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="cannot be written: '.*file' is a file"):
            check_writable(tmp_path / "file" / "more")

    def test_the_umask_counts(self, tmp_path):
        before = os.umask(0o027)
        try:
            write_together({tmp_path / "file": b""})
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
