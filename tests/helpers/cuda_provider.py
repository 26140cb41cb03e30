"""What tests of ONNX Runtime's CUDA provider share: the log of a runtime that does nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.graph_contract import EMBEDDING_GRAPH, GRAPH, STATIC_GRAPH, is_past
from granalign_fast.models.vision_language_model import VisionLanguageModel
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
    assert nodes
    assert strays(nodes, CUDA) == []


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


def check_decoders_on_gpu(folder: Path, rows: int = 2) -> None:
    """Assert that the CUDA provider runs every node of a vision-language model's decoders.

    Both read an image as the beginning of a prompt. The graph for texts, ``embedding.onnx``, is
    checked as well.
    """
    manifest = VisionLanguageModel(folder).manifest
    count, hidden = manifest.image_tokens, manifest.hidden
    dtype, width = manifest.cache_dtype, manifest.kv_heads * manifest.head_dim
    embeds = np.zeros((rows, count, hidden), dtype)
    positions = np.tile(np.arange(count), (rows, 1))
    if manifest.position_axes > 1:
        positions = np.tile(positions, (manifest.position_axes, 1, 1))
    common: dict[str, Any] = {"position_ids": positions}
    if manifest.deepstack:
        common["deepstack"] = np.zeros((rows, manifest.deepstack, count, hidden), dtype)

    def cache(session: Session, *shape: int) -> dict[str, Any]:
        return {name: np.zeros(shape, dtype) for name in session.inputs if is_past(name)}

    def growing(session: Session) -> dict[str, Any]:
        past = cache(session, rows, manifest.kv_heads, 0, manifest.head_dim)
        mask = np.ones((rows, count), np.int64)
        return past | common | {"inputs_embeds": embeds, "attention_mask": mask}

    def static(session: Session) -> dict[str, Any]:
        return (
            cache(session, rows, count + 4, width)
            | common
            | {
                "input_ids": np.zeros((rows, count), np.int64),
                "image_embeds": embeds,
                "image_at": np.zeros(rows, np.int64),
                "write_indices": np.zeros(rows, np.int64),
                "cached_tokens": np.full(rows, count),
                "last": np.zeros((rows, 1, count), dtype),
            }
        )

    check_every_node_on_gpu(folder / EMBEDDING_GRAPH, lambda _: {"input_ids": np.array([[1, 2]])})
    check_every_node_on_gpu(folder / GRAPH, growing)
    check_every_node_on_gpu(folder / STATIC_GRAPH, static)
