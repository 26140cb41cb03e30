"""Libraries that somebody else made: links in the places of our folders lead nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.index.own_folders import check_own_folder
from granalign_fast.index.records import VideoSource
from granalign_fast.index.work_folder import ClipRows, WorkFolder
from granalign_fast.library.catalogue import open_catalogue, update_catalogue
from granalign_fast.library.segment import SegmentRecord
from granalign_fast.library.upkeep import remove_videos


def index_of(vid: str) -> VideoIndex:
    return VideoIndex(CaptionedVideo(vid, ("a dog", "a cat")), np.eye(2, dtype=np.float32))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    for vid in ("a", "b"):
        index_of(vid).save(tmp_path / "library" / vid)
    return tmp_path / "library"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of the user's, with the names that the package gives to its own."""
    for name in ("draft/a", "old/a", "parts/a", "segment-1", "a"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "letter").write_text("dear")
    (tmp_path / "own" / "job.json").write_text("{}")
    return tmp_path / "own"


def rows() -> ClipRows:
    times, missing = np.array([0.0]), np.array([False])
    embeddings = np.ones((1, 2), np.float32)
    return ClipRows(0, times, ("x",), ("a dog",), embeddings, None, missing)


WORK: dict[str, Callable[[WorkFolder], object]] = {
    "recover": lambda work: work.recover(),
    "start": lambda work: work.start_job({}, ["a"]),
    "discard": lambda work: work.discard(),
    "rows": lambda work: work.write_rows("a", rows()),
    "publish": lambda work: work.publish(index_of("a")),
}


@pytest.mark.parametrize("place", ["", "draft", "old", "parts"])
@pytest.mark.parametrize("act", WORK)
def test_unfinished_work_behind_a_link(library: Path, own: Path, place: str, act: str) -> None:
    before = sorted(own.rglob("*"))
    if place:
        (library / ".indexing").mkdir()
    (library / ".indexing" / place).symlink_to(own / place)
    with pytest.raises(GranAlignError, match=r"\.indexing.*: got a link, expected a folder of the"):
        WORK[act](WorkFolder(library))
    assert sorted(own.rglob("*")) == before
    assert {path.name for path in library.iterdir()} == {".indexing", "a", "b"}


def test_an_old_index_that_is_a_link_or_hidden(library: Path, own: Path) -> None:
    (library / ".indexing" / "old" / ".catalogue").mkdir(parents=True)
    WorkFolder(library).recover()
    assert not (library / ".catalogue").exists()
    (library / ".indexing" / "old" / "c").symlink_to(own)
    with pytest.raises(GranAlignError, match="c: got a link"):
        WorkFolder(library).recover()
    assert not (library / "c").exists() and (own / "a" / "letter").exists()


def test_rows_behind_a_link_are_not_read(library: Path, tmp_path: Path) -> None:
    work = WorkFolder(library)
    work.start_job({}, ["a"])
    work.write_rows("a", rows())
    assert len(work.read_rows("a")) == 1
    (part,) = (library / ".indexing" / "parts" / "a").iterdir()
    part.rename(tmp_path / "part")
    part.symlink_to(tmp_path / "part")
    assert not work.read_rows("a")


def test_an_index_that_is_a_link_is_not_replaced(library: Path, own: Path) -> None:
    (library / "c").symlink_to(own)
    for call in (
        lambda work: work.publish(index_of("c")),
        lambda work: work.update_source("c", VideoSource(own / "x", 1, "0" * 64)),
    ):
        with pytest.raises(GranAlignError, match="c: got a link, expected a folder of the library"):
            call(WorkFolder(library))
    assert (own / "a" / "letter").exists() and not (own / "manifest.json").exists()


def test_a_catalogue_behind_a_link(library: Path, own: Path) -> None:
    before = sorted(own.rglob("*"))
    (library / ".catalogue").symlink_to(own)
    with pytest.raises(GranAlignError, match=r"\.catalogue: got a link"):
        update_catalogue(library)
    # It is searched all the same, by files that last as long as the process.
    assert [video.vid for video in open_catalogue(library).videos()] == ["a", "b"]
    assert sorted(own.rglob("*")) == before


def test_a_segment_behind_a_link_is_not_read(library: Path, tmp_path: Path) -> None:
    update_catalogue(library)
    (segment,) = (library / ".catalogue").glob("segment-*")
    segment.rename(tmp_path / "elsewhere")
    segment.symlink_to(tmp_path / "elsewhere")
    catalogue = open_catalogue(library)
    assert [video.vid for video in catalogue.videos()] == ["a", "b"]
    assert all(one.folder.name != segment.name for one in catalogue.segments)
    assert len(list((tmp_path / "elsewhere").iterdir())) > 5


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_a_segment_has_a_plain_name(name: str) -> None:
    record = {"name": name, "clips": 1, "dim": 2, "frame_dim": 0, "files": {}}
    with pytest.raises(ValueError, match="expected a name without folders"):
        SegmentRecord.from_record(record)


def test_removed_videos_go_nowhere_else(library: Path, own: Path) -> None:
    before = sorted(own.rglob("*"))
    (library / ".removed").symlink_to(own)
    with pytest.raises(GranAlignError, match=r"\.removed: got a link"):
        remove_videos(library, ["a"])
    assert sorted(own.rglob("*")) == before and (library / "a").is_dir()


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library" / ".indexing").mkdir(parents=True)
    assert check_own_folder(tmp_path / "library" / ".indexing")
    assert not check_own_folder(tmp_path / "library" / "none")
    # The library's owner may differ from this user, and owns what lies in it.
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert check_own_folder(tmp_path / "library" / ".indexing")
    if owner == 0:
        os.chown(tmp_path / "library" / ".indexing", 12345, 12345)
        with pytest.raises(GranAlignError, match="got a folder of user 12345"):
            check_own_folder(tmp_path / "library" / ".indexing")
