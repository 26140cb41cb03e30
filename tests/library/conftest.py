"""Fixtures of the tests of libraries and jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.job_models import write_job_videos

from granalign_fast.storage import Address, store


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

    def connect(address: Address) -> Bucket:
        (folder / address.bucket).mkdir(exist_ok=True)
        return Bucket(folder)

    monkeypatch.setattr(store, "_connect", connect)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


class Bucket:
    """A file system of pyarrow that makes the folders of a file, as object stores seem to do."""

    def __init__(self, folder: Path) -> None:
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        self._folder = folder
        self._system = SubTreeFileSystem(str(folder), LocalFileSystem())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def open_output_stream(self, path: str) -> Any:
        (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
        return self._system.open_output_stream(path)
