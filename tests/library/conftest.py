"""Fixtures of the tests of libraries and jobs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from helpers.buckets import connect
from helpers.job_models import write_job_videos

from granalign_fast.storage import store


@pytest.fixture(scope="session")
def job_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the videos of a job; tests only read it."""
    folder = tmp_path_factory.mktemp("videos")
    write_job_videos(folder)
    return folder


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for all buckets; real S3 servers are tried by `make test-ray`."""
    folder = tmp_path / "buckets"
    folder.mkdir()

    monkeypatch.setattr(store, "_connect", partial(connect, folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder
