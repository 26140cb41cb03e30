"""JSON Lines: round trips, and errors that name the file and the line."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing
from granalign_fast.jsonl import Record, read_jsonl, write_jsonl

RECORDS: list[Record] = [
    {"query": "a dog", "scores": [0.1, 1e300, -3]},
    {"query": "Straße 道路 \U0001f697 \u2028 \x85", "n": None},
    {"half of a pair": "a \ud800 b", "\udfff": True},
    {},
]
PACK: dict[str, Callable[[bytes], bytes]] = {"a.jsonl": bytes, "a.jsonl.gz": gzip.compress}


@pytest.mark.parametrize("name", PACK)
def test_written_records_are_read_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_jsonl(path, RECORDS)
    assert read_jsonl(path) == RECORDS
    content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    lines = content.decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == RECORDS and lines[-1] == ""
    assert "道路" in lines[1]


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n \u3000\t\n"])
def test_ends_of_lines_and_blank_lines(tmp_path: Path, name: str, end: str) -> None:
    text = end.join(["", '{"a": 1}', '{"a": "\u2028"}', '{"a": 3}'])
    (tmp_path / name).write_bytes(PACK[name](text.encode()))
    assert read_jsonl(tmp_path / name) == [{"a": 1}, {"a": "\u2028"}, {"a": 3}]


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("line", [1, 30, 20_000])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"a": "\xff"}', "not UTF-8 text"), (b"[1]", "got a list"), (b'{"a"', "not JSON")],
)
def test_errors_name_the_line(
    tmp_path: Path, name: str, line: int, content: bytes, message: str
) -> None:
    lines = [b'{"a": 1}'] * 20_010
    lines[line - 1] = content
    (tmp_path / name).write_bytes(PACK[name](b"\n".join(lines)))
    with pytest.raises(GranAlignError, match=rf"{name}:{line}: {message}"):
        read_jsonl(tmp_path / name)


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    chance = random.Random(0)
    data = bytearray(gzip.compress(b"".join(b'{"a": %f}\n' % chance.random() for _ in range(2000))))
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    with pytest.raises(zlib.error):
        gzip.decompress(data)
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(GranAlignError, match=r"a\.jsonl\.gz:\d+: not a whole gzip file"):
        read_jsonl(tmp_path / "a.jsonl.gz")


def full(path: Path) -> None:
    with replacing(path) as sink:
        sink.write(b"half")
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.jsonl", full, r"a\.jsonl: cannot be written \(No space left on device\); make room"),
        ("folder", lambda path: write_jsonl(path, RECORDS), r"cannot be written \(Is a directory"),
        ("none/a", lambda path: write_jsonl(path, RECORDS), r"cannot be written \(No such file"),
        (
            "a.jsonl.gz",
            lambda path: write_jsonl(path, [{}, {"a": [math.nan]}]),
            r"a\.jsonl\.gz: record 1: cannot be JSON .* expected finite numbers",
        ),
    ],
)
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, name: str, write: Callable[[Path], None], message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_text("precious")
    with pytest.raises(GranAlignError, match=message) as error:
        write(tmp_path / name)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.jsonl", "folder"]
    assert (tmp_path / "a.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b", "not a file name"),
        ("a\0b.gz", "not a file name"),
        ("none", "cannot be read"),
        (".", "got a folder, expected a file"),
    ],
)
def test_names_that_cannot_be_read(name: str, message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        read_jsonl(name)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_file_has_the_permissions_of_any_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    before = os.umask(mask)
    try:
        with monkeypatch.context() as patch:
            # The mask is the whole process's: to ask for it is to change it.
            patch.setattr(os, "umask", lambda _: pytest.fail("other threads see that"))
            write_jsonl(tmp_path / "a", RECORDS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
