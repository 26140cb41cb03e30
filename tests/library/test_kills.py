"""Writers, readers and rebuilds that are killed at random moments: `helpers.kill_library`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers.kill_library import kill


@pytest.mark.once
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    killed = kill(tmp_path, 4, random.Random(3))
    assert sum(killed.values()) == 8
