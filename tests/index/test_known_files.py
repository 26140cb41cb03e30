"""Files that an earlier call has read are not read again, unless their size or times changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.index_worker import UNUSED, Killed, dying, stand_ins, tree, write_video

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.index import VideoIndex, known_files, video_files
from granalign_fast.index.builder import index_videos
from granalign_fast.index.known_files import FILE_NAME


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three videos."""
    (tmp_path / "in").mkdir()
    return [write_video(tmp_path / "in" / f"{name}.mp4", 1, ord(name)) for name in "abc"]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read completely; all others count as settled at once."""
    names: list[str] = []

    def watched(path: Path, *args: Any) -> str:
        names.append(path.name)
        return sha256_of(path, *args)

    monkeypatch.setattr(video_files, "sha256_of", watched)
    monkeypatch.setattr(known_files, "_SETTLED", 0)
    return names


def test_an_unchanged_file_is_neither_read_nor_probed(
    paths: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    index_videos(paths, out, stand_ins())
    assert read == ["a.mp4", "b.mp4", "c.mp4"]
    read.clear()
    before = tree(out)
    monkeypatch.setattr(video_files, "probe", lambda *_, **__: pytest.fail("probed"))
    for some in (paths, paths[:1], paths[::-1]):
        assert index_videos(some, out, UNUSED) == [out / path.stem for path in some]
    assert read == [] and tree(out) == before
    monkeypatch.undo()


def test_verify_reads_every_file(paths: list[Path], tmp_path: Path, read: list[str]) -> None:
    out = tmp_path / "out"
    index_videos(paths, out, stand_ins())
    before = tree(out)
    read.clear()
    index_videos(paths[:2], out, UNUSED, verify=True)
    assert read == ["a.mp4", "b.mp4"] and tree(out) == before


def exchange(path: Path) -> None:
    """Change the content, and restore size and modification time, as `touch -r` does."""
    status, content = path.stat(), bytearray(path.read_bytes())
    other = bytearray(write_video(path.with_suffix(".mkv"), 1, 5).read_bytes())
    path.with_suffix(".mkv").unlink()
    content[-1] ^= 1
    path.write_bytes(content if len(other) != len(content) else other)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert path.stat().st_mtime_ns == status.st_mtime_ns


def touch(path: Path) -> None:
    path.touch()


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("change", [exchange, touch, grow])
def test_a_file_that_may_have_changed_is_read(
    paths: list[Path], tmp_path: Path, read: list[str], change: Any
) -> None:
    out = tmp_path / "out"
    index_videos(paths, out, stand_ins())
    read.clear()
    change(paths[1])
    index_videos(paths, out, stand_ins())
    assert read == ["b.mp4"]
    frames = VideoIndex.load(out / "b").frames
    assert frames is not None and frames.source is not None
    assert frames.source.sha256 == sha256_of(paths[1])
    read.clear()
    index_videos(paths, out, UNUSED)
    assert read == []


def test_a_change_right_after_reading_is_not_missed(
    paths: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system with coarse time stamps, it leaves them as they are."""
    monkeypatch.setattr(known_files, "_SETTLED", 2_000_000_000)
    out = tmp_path / "out"
    index_videos(paths, out, stand_ins())
    read.clear()
    before = tree(out)
    index_videos(paths, out, UNUSED)
    assert read == ["a.mp4", "b.mp4", "c.mp4"] and tree(out) == before
    # A list that was written later vouches for them.
    later = time.time() + 60
    os.utime(out / FILE_NAME, (later, later))
    read.clear()
    index_videos(paths, out, UNUSED)
    assert read == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "files": [{"path": 5}]}',
        b'{"format": 2, "files": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_list_costs_reading_alone(
    paths: list[Path], tmp_path: Path, read: list[str], content: bytes
) -> None:
    out = tmp_path / "out"
    index_videos(paths, out, stand_ins())
    before = tree(out)
    (out / FILE_NAME).write_bytes(content)
    read.clear()
    index_videos(paths, out, UNUSED)
    assert read == ["a.mp4", "b.mp4", "c.mp4"] and tree(out) == before


def test_the_list_holds_the_files_of_indexes_and_no_others(
    paths: list[Path], tmp_path: Path, read: list[str]
) -> None:
    out = tmp_path / "out"
    index_videos(paths, out, stand_ins())

    def listed() -> dict[str, str]:
        record = json.loads((out / FILE_NAME).read_bytes())
        return {file["path"]: file["sha256"] for file in record["files"]}

    assert listed() == {str(path): sha256_of(path) for path in paths}
    moved = paths[0].rename(tmp_path / "moved.mp4")
    shutil.rmtree(out / "b")
    index_videos([moved], out, UNUSED)
    assert listed() == {str(path): sha256_of(path) for path in (paths[2], moved)}
    # A file that fails in the middle is not an index's.
    paths[1].write_bytes(paths[1].read_bytes())

    def replace(done: int, total: int, vid: str) -> None:
        paths[1].write_bytes(b"another")

    failed: list[Path] = []
    index_videos(
        paths[1:2],
        out,
        stand_ins(),
        progress=replace,
        on_error=lambda path, _: failed.append(path),
    )
    assert failed == [paths[1]] and str(paths[1]) not in listed()


def test_a_known_file_is_probed_when_its_index_is_made_anew(
    paths: list[Path], tmp_path: Path, read: list[str]
) -> None:
    out = tmp_path / "out"
    index_videos(paths, out, stand_ins())
    durations = [VideoIndex.load(out / path.stem).video.duration for path in paths]
    read.clear()
    index_videos(paths, out, stand_ins(), clip_seconds=1.0)
    assert read == []
    loaded = [VideoIndex.load(out / path.stem).video for path in paths]
    assert [video.duration for video in loaded] == durations
    assert {video.clip_seconds for video in loaded} == {1.0}


@pytest.mark.once
def test_a_resumed_run_does_not_read_its_files_again(
    paths: list[Path], tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with dying(10**6) as changes:
        index_videos(paths, tmp_path / "whole", stand_ins(), rows=1)
    listed = next(n for n, change in enumerate(changes) if FILE_NAME in change)
    for at in range(len(changes)):
        with pytest.raises(Killed), dying(at):
            index_videos(paths, tmp_path / str(at), stand_ins(), rows=1)
        read.clear()
        index_videos(paths, tmp_path / str(at), stand_ins(), rows=1)
        assert len(read) == (3 if at <= listed else 0), at
        assert tree(tmp_path / str(at)) == tree(tmp_path / "whole")


def test_reading_is_reported_in_bytes(paths: list[Path], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = lambda done, total: calls.append((done, total))  # noqa: E731
    index_videos(paths, tmp_path / "out", stand_ins(), reading=report)
    sizes = [path.stat().st_size for path in paths]
    done = [sum(sizes[: n + 1]) for n in range(3)]
    assert calls == [(bytes_, done[-1]) for bytes_ in done]


def test_a_list_that_cannot_be_written_is_named(
    paths: list[Path], tmp_path: Path, read: list[str]
) -> None:
    (tmp_path / "out" / FILE_NAME).mkdir(parents=True)
    with pytest.raises(GranAlignError, match=r"\.files\.json: cannot be written") as error:
        index_videos(paths, tmp_path / "out", UNUSED)
    assert "\n" not in str(error.value)
