"""Fixtures of the tests that index the worker's videos."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.index_worker import Tree, index, tree, write_videos


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the worker's videos; tests only read it."""
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder)
    return folder


@pytest.fixture(scope="session")
def clean(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The files that an undisturbed run writes."""
    out = tmp_path_factory.mktemp("clean")
    index(folder, out)
    return tree(out)
