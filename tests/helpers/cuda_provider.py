"""What tests of ONNX Runtime's CUDA provider share: the log of a runtime that does nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from granalign_fast.models.exported_graph import open_session
from granalign_fast.runtime.device import CUDA
from granalign_fast.runtime.node_profile import strays
from granalign_fast.runtime.session import Session
from helpers import fake_cupy

LOG = os.environ.get("FAKE_CUDA_LOG")
NewCalls = Callable[[], list[str]]
"""Returns the lines that the runtime has logged since its last call."""


def watched_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewCalls]:
    """Read the runtime's log, for a fixture; no test may launch an empty grid."""
    if LOG is None:
        pytest.skip("no CUDA provider over a runtime that does nothing: make cuda-provider")
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    Path(LOG).touch()
    with Path(LOG).open() as log, Path(LOG).open() as whole_log:
        for file in (log, whole_log):
            file.seek(0, os.SEEK_END)
        yield lambda: log.read().splitlines()
        empty = [line for line in whole_log if "empty launch" in line]
        assert not empty, "CUDA refuses to launch an empty grid"


def check_every_node_on_gpu(path: Path, inputs: Callable[[Session], dict[str, Any]]) -> None:
    """Run a model; assert that the CUDA provider ran all of its nodes."""
    session = open_session(path, device="cuda", profile=True)
    session(**inputs(session))
    nodes = session.nodes()
    assert nodes and strays(nodes, CUDA) == []


def kernels(lines: list[str]) -> list[str]:
    """Return the lines that launch a kernel or a graph."""
    return [line for line in lines if re.search("(?:launch|graph on)", line)]


def captured(lines: list[str]) -> list[str]:
    """Return the operations of a capture; assert that all of them happen on the GPU."""
    inside = [line.removeprefix("captured: ") for line in lines if line.startswith("captured: ")]
    on_gpu = ("launch", "queue a fill", "queue a copy device to device")
    other = [line for line in inside if not line.startswith(on_gpu)]
    assert not other, other
    return inside
