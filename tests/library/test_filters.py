from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.index import VideoSource
from granalign_fast.library import records
from granalign_fast.library.filters import Filters, parse_date
from granalign_fast.library.records import CataloguedVideo, creation_time, file_date
from granalign_fast.library.tags import FILE, read_tags, write_tags
from granalign_fast.storage import Address

NOON = parse_date("", "2026-06-01T12:00")
VIDEO = CataloguedVideo(
    "GX01", "stamp", 30, 2.0, 59.0, Path("/films/2026/GX01.MP4"), "0" * 64, NOON, {}
)
TAGS = {"GX01": ("trip", "sea")}


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, True),
        ({"videos": ["other", "GX01"]}, True),
        ({"videos": ["GX01.MP4"]}, True),
        ({"videos": ["2026/GX01"]}, True),
        ({"videos": ["GX*"]}, True),
        ({"videos": ["/films/2025/*", "*.MP4"]}, True),
        ({"videos": ["gx*", "GX1"]}, False),
        ({"tags": ["trip"]}, True),
        ({"tags": ["sea", "trip"]}, True),
        ({"tags": ["sea", "work"]}, False),
        ({"after": "2026-06-01"}, True),
        ({"after": "2026-06-01T12:00"}, True),
        ({"after": "2026-06-01T12:01"}, False),
        ({"before": "2026-06-01T12:00"}, False),
        ({"before": "2026-06-02", "after": "2026-05-31"}, True),
        ({"min_length": 59}, True),
        ({"min_length": 59.5}, False),
        ({"tags": ["trip"], "min_length": 60}, False),
    ],
)
def test_each_condition(fields: dict[str, Any], passes: bool) -> None:
    filters = Filters(**fields)
    assert filters.is_empty == (not fields)
    assert filters.passes(VIDEO, TAGS) is passes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"videos": "GX01"}, "videos: got 'GX01', expected a list"),
        ({"tags": [1]}, r"tags: got \[1\], expected a list of texts"),
        ({"after": "yesterday"}, "after: got 'yesterday', expected a date such as 2026-06-01"),
        ({"before": 2026}, "before: got 2026"),
        ({"min_length": -1}, "min_length: got -1, expected seconds from 0"),
        ({"min_length": float("nan")}, "min_length: got nan"),
    ],
)
def test_bad_conditions_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        Filters(**fields)


@pytest.mark.parametrize("name", ["s3://films/2026/*", "s3://films/2026/GX01.MP4", "GX01.MP4"])
def test_a_file_in_an_object_store_is_chosen_by_its_address(name: str) -> None:
    address = Address.find("s3://films/2026/GX01.MP4")
    assert address is not None
    video = replace(VIDEO, vid="other", path=address.to_path())
    assert Filters(videos=[name]).passes(video, {})
    assert not Filters(videos=["s3://films/2025/*"]).passes(video, {})


def source(path: Path) -> VideoSource:
    return VideoSource(path, path.stat().st_size, sha256_of(path))


def test_the_time_in_the_file_and_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    plain = source(render(tmp_path / "plain.mp4", constant(5, 1.0)))
    assert creation_time(plain) is None
    assert file_date(plain) == plain.path.stat().st_mtime
    path = tmp_path / "dated.mp4"
    with av.open(str(plain.path)) as video, av.open(str(path), "w") as target:
        target.metadata["creation_time"] = "2019-07-20T20:17:00Z"
        stream = target.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    dated = source(path)
    assert creation_time(dated) == parse_date("", "2019-07-20T20:17+00:00")
    # Neither another file at this path is opened, nor a large one whose hash is unknown.
    assert creation_time(replace(dated, sha256="0" * 64)) is None
    monkeypatch.setattr("granalign_fast.files._LARGE", 0)
    assert creation_time(dated) is None
    # Some file systems keep dates beyond the year 9999, which no calendar of Python has.
    monkeypatch.setattr(records, "MOST_DATE", 0)
    assert file_date(dated) is None
    path.unlink()
    assert (creation_time(dated), file_date(dated)) == (None, None)


def test_tags_on_disk(tmp_path: Path) -> None:
    write_tags(tmp_path, TAGS | {"none": ()})
    assert read_tags(tmp_path) == TAGS
    for content in ('{"format": 1, "tags": [', '{"format": 1, "tags": {"GX01": "trip"}}', "[]"):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(GranAlignError, match="damaged"):
            read_tags(tmp_path)
