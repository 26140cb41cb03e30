"""A model repository and a running Triton server that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.triton_server import Triton, is_installed, running

from granalign_fast.export.cached import exported_minilm
from granalign_fast.export.triton import SearchPlace, export_triton
from granalign_fast.miniatures import MODELS
from granalign_fast.models.manifest import SENTENCE_ENCODER, exported_models


@pytest.fixture(scope="session")
def repository(indexed: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the miniatures and all-MiniLM-L6-v2, for a server with Python alone."""
    models = exported_models(MODELS) | {SENTENCE_ENCODER: exported_minilm()}
    search = SearchPlace(str(indexed / "library"), str(MODELS))
    out = tmp_path_factory.mktemp("triton") / "repository"
    return export_triton(models, out, search=search, backend="python")


@pytest.fixture(scope="session")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A running server of the repository."""
    if not is_installed():
        pytest.skip("run make test-triton, which installs Triton's server")
    with running(repository, tmp_path_factory.mktemp("server")) as server:
        yield server
