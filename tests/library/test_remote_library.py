"""A library in an object store: its published catalogue, the copies of it, and its upkeep."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords
from helpers.job_models import JobModels
from helpers.libraries import contents, expected_contents, write_index
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.index.media import with_media
from granalign_fast.library import Filters, Library
from granalign_fast.library.jobs import index_sources
from granalign_fast.library.opening import open_library_catalogue
from granalign_fast.library.remote import (
    fetch_index,
    publish_catalogue,
    remove_remote,
    tag_remote,
)
from granalign_fast.library.remote_library import RemoteLibrary
from granalign_fast.library.tags import read_tags
from granalign_fast.library.upkeep import find_video
from granalign_fast.search.key_frames import frame_set
from granalign_fast.search.retriever import Retriever
from granalign_fast.storage import Address, Store
from granalign_fast.storage.address import address_of, path_text
from granalign_fast.video import remote_frames
from granalign_fast.video.frames import read_clips

PLACE = "s3://bucket/films"


@pytest.fixture
def films(buckets: Path) -> Path:
    """The folder that stands in for a library in an object store."""
    folder = buckets / "bucket" / "films"
    for seed, vid in enumerate(("street", "yard", "kitchen")):
        write_index(folder / vid, 5 + seed, seed=seed)
    return folder


def address() -> Address:
    found = Address.find(PLACE)
    assert found is not None
    return found


def test_without_a_catalogue_the_indexes_are_read(films: Path):
    catalogue = open_library_catalogue(PLACE)
    assert contents(catalogue) == expected_contents(films)
    assert not (films / ".catalogue").exists() and catalogue.name == PLACE


def test_readers_take_the_published_catalogue(films: Path, monkeypatch: pytest.MonkeyPatch):
    publish_catalogue(address())
    listed: list[str] = []
    monkeypatch.setattr(Store, "list", lambda *_, **__: listed.append(""))
    catalogue = open_library_catalogue(PLACE)
    monkeypatch.undo()
    assert contents(catalogue) == expected_contents(films) and not listed


@pytest.mark.parametrize("fresh", [False, True])
def test_new_replaced_and_removed_indexes(films: Path, fresh: bool, tmp_path: Path):
    publish_catalogue(address())
    if fresh:  # another machine publishes
        shutil.rmtree(tmp_path / "cache")
    write_index(films / "day", 9, seed=7)
    shutil.rmtree(films / "yard")
    write_index(films / "yard", 4, seed=8)
    shutil.rmtree(films / "kitchen")
    publish_catalogue(address())
    catalogue = open_library_catalogue(PLACE)
    assert {video.vid for video in catalogue.videos()} == {"day", "yard", "street"}
    expected = expected_contents(films)
    assert contents(catalogue) == expected
    shutil.rmtree(tmp_path / "cache")
    assert contents(open_library_catalogue(PLACE)) == expected


def test_a_search_copies_what_it_needs(films: Path, tmp_path: Path):
    publish_catalogue(address())
    plain = Library.open(films, Retriever(BagOfWords()))
    library = Library.open(PLACE, Retriever(BagOfWords()))
    copied = "cache/granalign-fast/libraries/*/.indexes/*/*"
    assert not list(tmp_path.glob(copied))
    for refine in (0, 1, 3):
        got = library.search("a red car", refine=refine)
        expected = plain.search("a red car", refine=refine)
        assert [(m.vid, m.start, m.end) for m in got.moments] == [
            (m.vid, m.start, m.end) for m in expected.moments
        ]
    assert {path.name for path in tmp_path.glob(copied)} == {"street", "yard", "kitchen"}
    # An index that is gone costs only itself.
    shutil.rmtree(films / "street")
    again = Library.open(PLACE, Retriever(BagOfWords()))
    shutil.rmtree(tmp_path / "cache")
    result = Library.open(PLACE, Retriever(BagOfWords())).search("a red car", refine=3)
    assert result.errors["street"].startswith(f"{PLACE}/street/manifest.json: no such file")
    assert again.search("a red car").moments


def test_frames_come_from_the_bucket_of_the_library_and_from_the_media(
    job_videos: Path, buckets: Path
):
    for bucket, vid in (("bucket", "street"), ("media", "yard")):
        (buckets / bucket).mkdir(exist_ok=True)
        shutil.copy(job_videos / f"{vid}.mp4", buckets / bucket)
        index_sources([f"s3://{bucket}/{vid}.mp4"], PLACE, JobModels())

    def load(media: str | None, vid: str) -> int:
        library = Library.open(PLACE, Retriever(BagOfWords()), media=media)
        video = find_video(library.catalogue, vid)
        return len(frame_set(library._load(video)).load([0, 1]))

    assert load(None, "street") == 2
    with pytest.raises(GranAlignError, match="give --media s3://media if your keys may be used"):
        load(None, "yard")
    assert (load("s3://media", "street"), load("s3://media", "yard")) == (2, 2)


def test_a_damaged_catalogue_is_never_read(films: Path, tmp_path: Path):
    publish_catalogue(address())
    (segment,) = films.glob(".catalogue/segment-*")
    captions = segment / "captions.f16"
    whole = captions.read_bytes()
    captions.write_bytes(bytes(len(whole)))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(GranAlignError, match=f"library rebuild {PLACE}"):
        open_library_catalogue(PLACE)
    publish_catalogue(address(), rebuild=True)
    assert contents(open_library_catalogue(PLACE)) == expected_contents(films)


@pytest.mark.parametrize("content", ["[]", "{", '{"format": 3}', '{"format": 2, "dead": {"a": 5}}'])
def test_a_pointer_that_cannot_be_used_is_no_empty_library(films: Path, content: str):
    publish_catalogue(address())
    (films / ".catalogue" / "catalogue.json").write_text(content)
    with pytest.raises(GranAlignError, match=f"library rebuild {PLACE}"):
        open_library_catalogue(PLACE)
    publish_catalogue(address())
    assert contents(open_library_catalogue(PLACE)) == expected_contents(films)


def test_a_video_id_leads_nowhere_else(films: Path, tmp_path: Path):
    publish_catalogue(address())
    path = films / ".catalogue" / "catalogue.json"
    pointer = json.loads(path.read_text())
    (segment,) = pointer["segments"]
    table = films / ".catalogue" / segment["name"] / "videos.json"
    videos = json.loads(table.read_text())
    for video in videos:
        video["vid"] = "../../../../../../evil/" + video["vid"]
    table.write_text(json.dumps(videos))
    content = table.read_bytes()
    segment["files"]["videos.json"] = [len(content), hashlib.sha256(content).hexdigest()]
    path.write_text(json.dumps(pointer))
    shutil.rmtree(tmp_path / "cache")
    result = Library.open(PLACE, Retriever(BagOfWords())).search("a red car")
    assert len(result.errors) == 3 and not list(tmp_path.rglob("*evil*"))
    assert all("expected the name of a folder" in error for error in result.errors.values())


def test_copies_of_segments_go_when_they_are_not_named_any_more(films: Path, tmp_path: Path):
    publish_catalogue(address())
    folder = RemoteLibrary(address()).folder / ".published"
    for old, name in ((False, ".new"), (True, ".old")):
        (folder / name).mkdir()
        if old:
            os.utime(folder / name, (0, 0))
    for number in range(4):
        write_index(films / f"more {number}", 50, seed=number)
        publish_catalogue(address())
        catalogue = open_library_catalogue(PLACE)
        copies = {path.name for path in folder.iterdir()}
        assert copies == {".new", *(one.record.name for one in catalogue.segments)}


def test_a_cache_without_hard_links(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    publish_catalogue(address())
    shutil.rmtree(tmp_path / "cache")
    write_index(films / "day", 9, seed=7)
    monkeypatch.setattr(os, "link", refuse)
    assert contents(publish_catalogue(address())) == expected_contents(films)


def test_a_publisher_that_is_killed_leaves_the_catalogue_of_before(
    films: Path, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    publish_catalogue(address())
    before = contents(open_library_catalogue(PLACE))
    write_index(films / "day", 9, seed=7)
    put, write = Store.put, Store.write
    for at in range(1, 14):  # the claim, the files of a segment, the pointer
        done = 0

        def dying(real: object) -> object:
            def change(*words: object) -> object:
                nonlocal done
                done += 1
                if done >= at:  # noqa: B023
                    raise Killed
                return real(*words)  # type: ignore[operator]

            return change

        with monkeypatch.context() as patch:
            patch.setattr(Store, "put", dying(put))
            patch.setattr(Store, "write", dying(write))
            with pytest.raises(Killed):
                publish_catalogue(address())
        assert contents(open_library_catalogue(PLACE)) == before
    publish_catalogue(address())
    assert contents(open_library_catalogue(PLACE)) == expected_contents(films)


def test_tags_and_removal(films: Path, tmp_path: Path):
    publish_catalogue(address())
    assert tag_remote(address(), ["yard"], ["summer"]) == {"yard": ("summer",)}
    shutil.rmtree(tmp_path / "cache")
    library = Library.open(PLACE, Retriever(BagOfWords()))
    assert library.search("a car", filters=Filters(tags=("summer",))).searched == 1
    with pytest.raises(GranAlignError, match=f"{PLACE}: has no video 'garden'"):
        remove_remote(address(), ["yard", "garden"])
    assert remove_remote(address(), ["yard"]) == ["yard"]
    assert not (films / "yard" / "manifest.json").exists()
    assert {video.vid for video in open_library_catalogue(PLACE).videos()} == {"kitchen", "street"}
    assert "yard" not in json.loads((films / ".tags.json").read_text())["tags"]


def test_unfinished_rows_of_a_removed_video_go_with_it(films: Path):
    """It was being indexed anew when the job was killed."""
    store = Store(address())
    for vid in ("yard", "street"):
        store.write(f".indexing/parts/{vid}/0123/00000000-00000012", b"rows")
    remove_remote(address(), ["yard"])
    names = [name for name in store.list() if name.startswith(".indexing")]
    assert names == [".indexing/parts/street/0123/00000000-00000012"]


def test_tags_that_were_deleted_in_the_store_are_gone(films: Path):
    publish_catalogue(address())
    tag_remote(address(), ["yard"], ["summer"])
    (films / ".tags.json").write_text("{")
    with pytest.raises(GranAlignError, match="delete it and tag the videos again"):
        tag_remote(address(), ["yard"], ["winter"])
    (films / ".tags.json").unlink()
    assert not read_tags(open_library_catalogue(PLACE).folder)
    assert tag_remote(address(), ["yard"], ["winter"]) == {"yard": ("winter",)}


def test_tags_are_read_where_no_catalogue_is_published(films: Path, tmp_path: Path):
    tag_remote(address(), ["yard"], ["summer"])
    shutil.rmtree(tmp_path / "cache")
    library = Library.open(PLACE, Retriever(BagOfWords()))
    assert library.search("a car", filters=Filters(tags=("summer",))).searched == 1


def test_one_index(films: Path):
    publish_catalogue(address())
    assert fetch_index(address(), None) is None
    expected = VideoIndex.load(films / "yard").video
    for folder in (fetch_index(address(), "yard"), fetch_index(address().child("yard"), None)):
        assert folder is not None and VideoIndex.load(folder).video == expected
    with pytest.raises(GranAlignError, match="leave --vid out"):
        fetch_index(address().child("yard"), "yard")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://key:secret@bucket/x", "got an address with a key in it"),
        ("s3://", "expected a bucket"),
        ("s3://bucket/x?secret=1", "got the option 'secret'"),
    ],
)
def test_wrong_addresses(text: str, message: str):
    with pytest.raises(GranAlignError, match=message) as error:
        Address.find(text)
    assert "secret@" not in str(error.value)


def test_addresses():
    text = "s3://bucket/a/b.mp4?endpoint_override=localhost:9000&scheme=http"
    found = Address.find(Path(text))
    assert found is not None and found.full == text and str(found) == "s3://bucket/a/b.mp4"
    assert address_of(found.to_path()) == Address("s3", "bucket/a/b.mp4")
    assert path_text(found.to_path()) == str(found) and path_text(Path("/a/b")) == "/a/b"
    # An endpoint is often written as a URL, and `Path` takes one of its slashes.
    for url in ("http://localhost:9000", "http:/localhost:9000/"):
        assert Address.find(f"s3://bucket/a/b.mp4?endpoint_override={url}") == found
    for other in ("video.mp4", "/s3/x.mp4", "http://host/x.mp4", "s3:x"):
        assert Address.find(other) is None


def write_noise(path: Path) -> Path:
    """Write a video whose packets are large, with a key frame every two seconds."""
    images = np.random.default_rng(5).integers(0, 256, (80, 48, 64, 3), np.uint8)
    return render(path, constant(2, 40), drawn=list(images), gop=4)


@pytest.fixture
def stored(job_videos: Path, buckets: Path, tmp_path: Path) -> VideoIndex:
    """The index of a video in an object store."""
    shutil.copytree(job_videos, buckets / "media")
    write_noise(buckets / "media" / "street.mp4")
    index_sources(["s3://media/street.mp4"], tmp_path / "out", JobModels())
    return with_media(VideoIndex.load(tmp_path / "out" / "street"), "s3://media")


def test_frames_come_by_range_requests(
    stored: VideoIndex, buckets: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote_frames, "_BLOCK", 4096)  # of a small video
    monkeypatch.setattr(Store, "fetch", lambda *_: pytest.fail("the whole file was copied"))
    fetched = set()
    read = remote_frames.RangeReader._block

    def block(self: remote_frames.RangeReader, number: int) -> bytes:
        fetched.add(number)
        return read(self, number)

    monkeypatch.setattr(remote_frames.RangeReader, "_block", block)
    video = buckets / "media" / "street.mp4"
    expected = read_clips(video, [18, 3])
    assert all(map(np.array_equal, frame_set(stored).load([18, 3]), expected))
    assert 0 < len(fetched) * 4096 < video.stat().st_size / 2


def test_clips_of_several_frames_come_by_range_requests(
    stored: VideoIndex, buckets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings: dict[str, Any] = {"clip_seconds": 2.0, "frames_per_clip": 4}
    index_sources(["s3://media/street.mp4"], tmp_path / "several", JobModels(), **settings)
    several = with_media(VideoIndex.load(tmp_path / "several" / "street"), "s3://media")
    expected = read_clips(buckets / "media" / "street.mp4", [18, 3], **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "fetch", lambda *_: pytest.fail("the whole file was copied"))
        assert all(map(np.array_equal, frame_set(several).load([18, 3]), expected))
    monkeypatch.setattr(remote_frames, "_frame_at", lambda *_: None)
    assert all(map(np.array_equal, frame_set(several).load([18, 3]), expected))


def test_a_format_that_cannot_seek_is_copied(
    stored: VideoIndex, buckets: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote_frames, "_frame_at", lambda *_: None)
    expected = read_clips(buckets / "media" / "street.mp4", [18, 13])
    assert all(map(np.array_equal, frame_set(stored).load([18, 13]), expected))
    # A stretch of a long video counts its clips from its own beginning.
    assert all(map(np.array_equal, frame_set(stored.part(10, 20)).load([8, 3]), expected))


def test_another_file_gives_no_frame(stored: VideoIndex, buckets: Path):
    shutil.copy(buckets / "media" / "kitchen.mp4", buckets / "media" / "street.mp4")
    with pytest.raises(GranAlignError, match=r"s3://media/street.mp4: got another file"):
        frame_set(stored).load([1])
    assert stored.frames is not None and stored.frames.source is not None
    with pytest.raises(GranAlignError, match="copy it to this machine"):
        stored.frames.source.check()
