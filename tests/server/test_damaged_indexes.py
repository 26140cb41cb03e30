"""Indexes that are damaged and restored on disk while a service serves them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers.service import Service, running

TABLE = "second/clips.parquet"


@pytest.fixture
def table(library: Path) -> Path:
    """A file of one of the indexes."""
    return library / TABLE


def listed(service: Service, *, damaged: bool) -> dict[str, Any]:
    """The list of videos once it has damaged indexes, or has none any more."""
    until = time.monotonic() + 30
    while True:
        answer: dict[str, Any] = service.client.get("/v1/videos").json()
        if bool(answer["damaged"]) == damaged:
            return answer
        assert time.monotonic() < until, answer
        time.sleep(0.2)


def search(service: Service) -> dict[str, Any]:
    body = {"query": "a red picture", "preset": "visual", "refine": 2}
    (result,) = service.client.post("/v1/search", json=body).json()["results"]
    return dict(result)


def test_an_index_that_is_restored_is_served_again(library: Path, table: Path) -> None:
    whole = table.read_bytes()
    table.write_bytes(b"torn")
    with running(library) as service:
        service.wait_until_ready()
        first = listed(service, damaged=True)
        assert [video["vid"] for video in first["videos"]] == ["first"]
        assert "second/clips.parquet: altered" in first["damaged"]["second"]
        assert str(library) not in first["damaged"]["second"]
        table.write_bytes(whole)
        again = listed(service, damaged=False)
        assert [video["vid"] for video in again["videos"]] == ["first", "second"]
        assert {video["vid"] for video in search(service)["videos"]} == {"first", "second"}


def test_an_index_that_is_damaged_while_it_is_served_is_named(library: Path) -> None:
    tables = [library / vid / "clips.parquet" for vid in ("first", "second")]
    whole = [path.read_bytes() for path in tables]
    with running(library) as service:
        service.wait_until_ready()
        assert not listed(service, damaged=False)["damaged"]
        for path in tables:  # the index that the service has read already stays in memory
            path.write_bytes(b"torn")
        answer = search(service)
        (warning,) = [text for text in answer["warnings"] if "altered" in text]
        vid = warning.partition(":")[0]
        found = listed(service, damaged=True)
        assert list(found["damaged"]) == [vid] and str(library) not in str((found, warning))
        assert f"{vid}/clips.parquet: altered" in found["damaged"][vid]
        moment = {"format": "csv", "query": "a", "moment": "1-3"}
        for answer in (
            service.client.get(f"/v1/videos/{one}/export", params=moment).json()
            for one in ("first", "second")
        ):
            assert "altered" in answer["detail"] and str(library) not in answer["detail"]
        assert len(listed(service, damaged=True)["damaged"]) == 2
        for path, content in zip(tables, whole, strict=True):
            path.write_bytes(content)
        assert not any("altered" in text for text in search(service)["warnings"])
        listed(service, damaged=False)
