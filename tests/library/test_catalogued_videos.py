"""A catalogue of somebody else: its videos are checked before they are used."""

from __future__ import annotations

from typing import Any

import pytest

from granalign_fast.library.records import CataloguedVideo

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
    assert CataloguedVideo.from_record(RECORD).to_record() == RECORD


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
