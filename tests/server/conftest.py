"""Libraries and services that the tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.service import Service, running

from granalign_fast.miniatures.videos import render_video
from granalign_fast.pipeline import open_models
from granalign_fast.video.cutting import cut


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library ``library`` of two rendered videos, and a video without an index.

    Nobody changes it: tests that do copy the library.
    """
    folder = tmp_path_factory.mktemp("served")
    videos = folder / "videos"
    videos.mkdir()
    render_video(folder / "long.mp4", 7, seconds=(54.0, 60.0))
    for number, name in enumerate(("first", "second", "new")):
        start = 16.0 * number
        cut(folder / "long.mp4", start, start + 14, videos / f"{name}.mp4", exact=True)
    models = open_models("miniatures", prefix_gib=0.0)
    models.index([videos / "first.mp4", videos / "second.mp4"], folder / "library")
    return folder


@pytest.fixture
def library(indexed: Path, tmp_path: Path) -> Path:
    """A copy of the library."""
    return Path(shutil.copytree(indexed / "library", tmp_path / "library"))


@pytest.fixture(scope="session")
def service(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that tests only read from; its limits are small."""
    library = tmp_path_factory.mktemp("read") / "library"
    shutil.copytree(indexed / "library", library)
    with running(library) as running_service:
        yield running_service.wait_until_ready()
