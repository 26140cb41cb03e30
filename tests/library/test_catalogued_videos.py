"""A catalogue of somebody else: its videos are checked before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.libraries import write_index

from granalign_fast.library.records import CataloguedVideo, rows_of

RECORD: dict[str, Any] = {
    "vid": "street",
    "stamp": "1-2",
    "clips": 30,
    "clip_seconds": 2.0,
    "duration": None,
    "path": None,
    "sha256": None,
    "date": 1.5,
    "models": {"sentence-encoder": "a"},
    "captioned": True,
}


def test_a_record_is_read_back() -> None:
    for record in (RECORD, RECORD | {"frames_per_clip": 4}):
        assert CataloguedVideo.from_record(record).to_record() == record


def test_a_record_without_frames_per_clip_has_one() -> None:
    """So it is in catalogues of versions that knew no clips of several frames."""
    assert CataloguedVideo.from_record(RECORD).frames_per_clip == 1


def test_an_index_of_other_clips_is_another_one(tmp_path: Path) -> None:
    one = write_index(tmp_path / "one", 6, seed=1)
    four = write_index(tmp_path / "four", 6, seed=1, frames_per_clip=4)
    assert rows_of(four, "street").video.frames_per_clip == 4
    for catalogued in (one, four):
        video = rows_of(catalogued, "street").video
        assert [video.is_of(index) for index in (one, four)] == [
            catalogued is one,
            catalogued is four,
        ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vid", 7),
        ("clips", "30"),
        ("clips", 0),
        ("clips", 10**12),
        ("clips", True),
        ("clip_seconds", 0),
        ("clip_seconds", float("nan")),
        ("frames_per_clip", 3),
        ("frames_per_clip", "4"),
        ("frames_per_clip", True),
        ("duration", "60"),
        ("duration", float("nan")),
        ("duration", float("inf")),
        ("duration", -1.0),
        ("date", [1]),
        ("date", 1e12),
        ("date", float("nan")),
        ("models", 3),
        ("models", {"clip": 1}),
        ("captioned", "yes"),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"got {name} "):
        CataloguedVideo.from_record(RECORD | {name: value})


@pytest.mark.parametrize("record", [None, 3, "street", []])
def test_what_is_no_object_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match="expected an object"):
        CataloguedVideo.from_record(record)
