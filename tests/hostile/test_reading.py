"""Reading: pipes, devices, sockets, large files and links out of a folder are refused at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from granalign_fast.errors import GranAlignError, MissingFileError
from granalign_fast.files import read_json, sha256_of
from granalign_fast.jsonl import read_jsonl
from granalign_fast.reading import checked_file, open_file, read_file, read_text
from granalign_fast.video.frames import probe


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _socket(folder: Path) -> Path:
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket")
    finally:
        os.chdir(here)
    return folder / "socket"


OTHERS: dict[str, Callable[[Path], Path]] = {
    "a folder": lambda folder: folder,
    "a pipe": _pipe,
    "a socket": _socket,
    "a device": lambda _: Path("/dev/zero"),
}

READERS: dict[str, Callable[[Path], Any]] = {
    "open_file": open_file,
    "read_file": lambda path: read_file(path, 10),
    "read_text": lambda path: read_text(path, 10),
    "checked_file": checked_file,
    "read_json": read_json,
    "read_jsonl": read_jsonl,
    "sha256_of": sha256_of,
    "probe": probe,
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(tmp_path: Path, kind: str, reader: str) -> None:
    path = OTHERS[kind](tmp_path)
    # Also by a link: a stranger's archive can hold one.
    link = tmp_path / "link"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(GranAlignError, match=f"{name}: got {kind}, expected a file"):
            READERS[reader](name)


def test_a_missing_file_and_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"cannot be read \(No such file.*\); copy it again"):
        read_file(tmp_path / "a", 1, remedy="copy it again")
    for name in ("a\0b", "\ud800"):
        with pytest.raises(GranAlignError, match="not a file name"):
            open_file(name)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no room
    with pytest.raises(GranAlignError, match=r"got 1,099,511,627,776 bytes, expected at most 9$"):
        read_file(path, 9)
    with open_file(path) as file:
        assert file.read(2) == b"\0\0"
    path.write_bytes(b"123456789")
    assert read_file(path, 9) == b"123456789"


def test_a_file_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")

    def opened(*_: Any, **__: Any) -> Any:
        file = path.open("rb")
        path.write_bytes(b"123456789")
        return file

    monkeypatch.setattr("granalign_fast.reading.open_file", opened)
    with pytest.raises(GranAlignError, match="got 9 bytes, expected at most 5"):
        read_file(path, 5)


def test_links_stay_in_their_folder(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "index"
    secret.write_text("{}")
    (folder / "inner").mkdir(parents=True)
    (folder / "own").write_text("[]")
    (folder / "inner" / "good").symlink_to("../own")
    assert read_file(folder / "inner" / "good", 9, inside=folder) == b"[]"
    # The folder itself may be reached by a link.
    (tmp_path / "alias").symlink_to(folder)
    assert read_json(tmp_path / "alias" / "own", inside=tmp_path / "alias") == []
    (folder / "file").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "chain").symlink_to("file")
    for bad in ("file", "up/secret", "chain", "../secret"):
        with pytest.raises(GranAlignError, match=r"got a link to .*secret, expected a file in"):
            open_file(folder / bad, inside=folder)
    # A folder whose name begins alike is another one.
    (tmp_path / "index2").mkdir()
    (tmp_path / "index2" / "a").touch()
    with pytest.raises(GranAlignError, match="expected a file in"):
        open_file(tmp_path / "index2" / "a", inside=folder)


def test_links_of_the_hubs_cache_lead_to_its_blobs(tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    folder = model / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / "f00").write_text("[]")
    (folder / "good.json").symlink_to("../../blobs/f00")
    assert read_json(folder / "good.json", inside=folder) == []
    (tmp_path / "secret").write_text("{}")
    (folder / "bad.json").symlink_to(tmp_path / "secret")
    with pytest.raises(GranAlignError, match="got a link to"):
        read_json(folder / "bad.json", inside=folder)


def test_text_has_one_kind_of_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("ä\r\nb\rc\n".encode())
    assert read_text(tmp_path / "a", 99) == "ä\nb\nc\n"
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(GranAlignError, match=r"not UTF-8 text \(.*\); copy it again"):
        read_text(tmp_path / "a", 9, remedy="copy it again")
