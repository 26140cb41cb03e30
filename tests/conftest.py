"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark data: ``GRANALIGN_SHARED_DATA``, or ``../shared/data``."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GRANALIGN_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"shared_data: no folder {folder}; set GRANALIGN_SHARED_DATA")
    return folder
