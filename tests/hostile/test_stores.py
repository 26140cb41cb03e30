"""Indexes that somebody else made: they choose no bucket in which the user's keys are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.index.media import with_media, with_store
from granalign_fast.index.records import FrameTable, VideoSource
from granalign_fast.search.key_frames import frame_set
from granalign_fast.storage import Address, store

Named = Callable[[VideoIndex], VideoIndex]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Address]:
    """The addresses to which a connection was made; none is answered."""
    found: list[Address] = []

    def connect(address: Address) -> None:
        found.append(address)
        raise OSError("nobody answers")

    monkeypatch.setattr(store, "_connect", connect)
    return found


def index_of(name: str) -> VideoIndex:
    address = Address.find(name)
    assert address is not None
    source = VideoSource(address.to_path(), 9, "0" * 64)
    frames = FrameTable(np.array([0.0, 2.0]), ("a", "b"), source=source)
    captions = CaptionedVideo("v", ("a dog", "a cat"), 2.0, 4.0)
    return VideoIndex(captions, np.eye(2, 384, dtype=np.float32), frames)


def address(name: str) -> Address:
    found = Address.find(name)
    assert found is not None
    return found


def test_a_bucket_that_the_index_alone_names(tmp_path: Path, asked: list[Address]) -> None:
    index_of("s3://private/trip/a.mp4").save(tmp_path / "v")
    index = VideoIndex.load(tmp_path / "v")
    message = "its frames are needed; s3://private/trip/a.mp4: got a video in a bucket that the "
    for other in (
        index,
        with_store(index, address("s3://theirs/library")),
        with_store(index, address("s3://priv")),
        with_store(index, address("gs://private/library")),
    ):
        with pytest.raises(GranAlignError, match=message) as error:
            frame_set(other).load([0])
        assert "give --media s3://private if your keys may be used there" in str(error.value)
    assert not asked


@pytest.mark.parametrize(
    "named",
    [
        lambda index: with_media(index, "s3://private"),
        lambda index: with_media(index, Path("s3://private/trip")),
        lambda index: with_media(index, "s3://private/trip/a.mp4"),
        lambda index: with_store(index, address("s3://private/library")),
    ],
)
def test_a_bucket_that_the_user_named(named: Named, tmp_path: Path, asked: list[Address]) -> None:
    index = named(index_of("s3://private/trip/a.mp4"))
    with pytest.raises(GranAlignError, match="nobody answers"):
        frame_set(index).load([0])
    assert set(asked) == {address("s3://private/trip/a.mp4")}
    # An index that is saved does not hold it.
    index.save(tmp_path / "v")
    with pytest.raises(GranAlignError, match="in a bucket that the index alone names"):
        frame_set(VideoIndex.load(tmp_path / "v")).load([0])


def test_the_named_server_is_asked_and_no_other(asked: list[Address]) -> None:
    named = "s3://private?endpoint_override=10.0.0.5:9000&scheme=http"
    with pytest.raises(GranAlignError, match="nobody answers"):
        frame_set(with_media(index_of("s3://private/a.mp4"), named)).load([0])
    assert {one.options for one in asked} == {address(named).options}


@pytest.mark.parametrize("media", ["s3://other", "s3://private/tri", "gs://private"])
def test_another_place_is_refused(media: str) -> None:
    index = index_of("s3://private/trip/a.mp4")
    with pytest.raises(GranAlignError, match=r"got an index of s3://private/trip/a.mp4, expected"):
        with_media(index, media)
    local = replace(index.frames.source, path=Path("/v.mp4"))  # type: ignore[union-attr]
    with pytest.raises(GranAlignError, match=r"got an index of /v.mp4, expected"):
        with_media(replace(index, frames=replace(index.frames, source=local)), media)
