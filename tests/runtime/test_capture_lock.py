"""The capture lock: no call of CuPy's is made while another thread may capture a CUDA graph."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy
from helpers.captures import graph_run, ids_of
from helpers.tiny_bert import write_tiny_bert

from granalign_fast.models.prefix import Prefix
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.array_device import ArrayDevice
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK, ReadersWriterLock

CALLS = [
    (fake_cupy, "asarray"),
    (fake_cupy, "ascontiguousarray"),
    (fake_cupy, "concatenate"),
    (fake_cupy, "empty"),
    (fake_cupy, "from_dlpack"),
    (fake_cupy, "stack"),
    (fake_cupy, "zeros"),
    (fake_cupy.ndarray, "get"),
    (fake_cupy.ndarray, "set"),
    (fake_cupy.ndarray, "__setitem__"),
    (fake_cupy.ndarray, "astype"),
    (fake_cupy.cuda, "alloc_pinned_memory"),
    (fake_cupy.Stream, "synchronize"),
    (fake_cupy.Event, "record"),
    (fake_cupy.Event, "synchronize"),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of `CALLS` that were called; the test fails if one was made without the lock."""
    names: set[str] = set()
    unlocked: list[str] = []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            names.add(name)
            if not getattr(CAPTURE_LOCK._local, "reading", False):
                unlocked.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for owner, name in CALLS:
        watch(owner, name)
    yield names
    assert not unlocked


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    folder = tmp_path_factory.mktemp("sentences")
    source = write_tiny_bert(folder / "tiny")
    return SentenceEncoder(source, cache_dir=folder / "cache", graph="model.onnx")


@pytest.mark.parametrize("refused", [None, 1])
def test_a_graph_run(encoder: SentenceEncoder, calls: set[str], refused: int | None) -> None:
    run, session = graph_run(Path(encoder._session.path), "CuPy", refused)
    ids = ids_of(19, 5)  # a batch of 16, and one of 3 that is padded
    for rows in (19, 19, 19, 0):
        assert run({"input_ids": ids[:rows]})["embeddings"].shape[0] == rows
    assert bool(run.captured) == (refused is None) and len(session.ids) >= 3
    assert calls >= {"empty", "synchronize", "zeros", "__setitem__"}


@pytest.mark.parametrize("names", [("input_ids",), ("input_ids", "token_type_ids")])
def test_embeddings_on_the_gpu(
    encoder: SentenceEncoder,
    calls: set[str],
    names: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No session is called with the lock held. Optimum's graphs take more inputs than ids."""
    rows = np.ones((2, encoder.dim), np.float32).view(fake_cupy.ndarray)

    def session(**arrays: Any) -> dict[str, Any]:
        assert not getattr(CAPTURE_LOCK._local, "reading", False), "a capture would wait for itself"
        assert arrays.keys() == set(names)
        return {"embeddings": rows[: len(arrays["input_ids"])]}

    monkeypatch.setattr(encoder, "_session", session)
    monkeypatch.setattr(session, "inputs", names, raising=False)
    monkeypatch.setattr(encoder, "_gpu", 0)
    embeddings = encoder.encode_on(["a b", "c d"], ArrayDevice(fake_cupy, 0))
    assert embeddings.shape == (2, encoder.dim) and {"asarray", "concatenate"} <= calls


def test_copies_to_the_gpu_and_back(calls: set[str]) -> None:
    device = ArrayDevice(fake_cupy, 0, fake_cupy.Stream())
    rows = np.arange(6.0).reshape(2, 3)
    copy = device.put(rows)
    np.testing.assert_array_equal(device.to_host(copy), rows)
    np.testing.assert_array_equal(device.fetch([copy, copy])(), [rows, rows])
    prefix = Prefix.stack([rows, rows], "model", 3, device)
    assert len(prefix.unstack(device)) == prefix.rows == 2
    assert {"asarray", "get", "stack", "alloc_pinned_memory", "record", "synchronize"} <= calls


def test_nothing_runs_during_a_capture() -> None:
    order: list[str] = []
    running, ended = threading.Event(), threading.Event()

    def run(name: str) -> None:
        with CAPTURE_LOCK.shared():
            order.append(name)
            running.set()
            assert name != "first" or ended.wait(10)
            order.append(f"{name} done")

    def capture() -> None:
        with CAPTURE_LOCK.exclusive():
            order.append("capture")

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(run, "first")]
        assert running.wait(10)
        jobs.append(pool.submit(capture))
        while not CAPTURE_LOCK._writing:
            pass
        jobs.append(pool.submit(run, "second"))
        ended.set()
    for job in jobs:
        job.result()
    assert order == ["first", "first done", "capture", "second", "second done"]


def test_a_reader_may_enter_again() -> None:
    """The capture waits for the outer run. An inner run that waited for it would block both."""
    lock, order = ReadersWriterLock(), list[str]()

    def capture() -> None:
        with lock.exclusive():
            order.append("capture")

    def run() -> None:
        with lock.shared():
            capturing.start()
            while not lock._writing:
                pass
            with lock.shared():
                order.append("inner")
            order.append("outer")

    capturing, running = (threading.Thread(target=work, daemon=True) for work in (capture, run))
    running.start()
    for thread in (running, capturing):
        thread.join(10)
    assert order == ["inner", "outer", "capture"] and not lock._readers
