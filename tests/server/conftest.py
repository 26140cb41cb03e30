"""Libraries and services that the tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.service import Service, running
from helpers.small_library import write_small_library


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library ``library`` of two rendered videos, and a video without an index.

    Nobody changes it: tests that do copy the library.
    """
    folder = tmp_path_factory.mktemp("served")
    write_small_library(folder)
    return folder


@pytest.fixture
def library(indexed: Path, tmp_path: Path) -> Path:
    """A copy of the library, without the catalogue that a command of another test may have left."""
    ignore = shutil.ignore_patterns(".catalogue")
    return Path(shutil.copytree(indexed / "library", tmp_path / "library", ignore=ignore))


@pytest.fixture(scope="session")
def service(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that tests only read from; its limits are small."""
    library = tmp_path_factory.mktemp("read") / "library"
    shutil.copytree(indexed / "library", library)
    with running(library) as running_service:
        yield running_service.wait_until_ready()
