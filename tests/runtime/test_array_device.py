"""`ArrayDevice`: a missing GPU, a missing driver and a full memory are errors of one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy

from granalign_fast import CaptionedVideo, GranAlignError, MomentRetriever, VideoIndex
from granalign_fast.runtime.array_device import ArrayDevice


class Ones:
    """An encoder that gives all texts the same embedding."""

    dim = 4

    def encode(self, texts: Sequence[str], *, progress: Any = None) -> Any:
        return np.full((len(texts), 4), 0.5, np.float32)


INDEX = VideoIndex(CaptionedVideo("v", ("a", "b")), Ones().encode("ab"))


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(fake_cupy.cuda.runtime, "gpus", fake_cupy.cuda.runtime.gpus[:1])


def one_line(error: GranAlignError) -> str:
    assert "\n" not in str(error) and error.__suppress_context__
    return str(error)


@pytest.mark.parametrize(
    "make", [ArrayDevice.of, lambda name: MomentRetriever(Ones(), device=name)]
)
@pytest.mark.parametrize("index", [1, 7])
def test_a_missing_gpu(make: Any, index: int) -> None:
    assert ArrayDevice.of("cuda:0").index == ArrayDevice.of("cuda").index == 0
    with pytest.raises(GranAlignError) as error:
        make(f"cuda:{index}")
    expected = rf"device 'cuda:{index}': GPU {index} cannot be opened (cudaErrorInvalidDevice: "
    assert one_line(error.value).startswith(expected)
    assert "expected one that nvidia-smi lists" in str(error.value)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.cuda.runtime, "gpus", [])
    with pytest.raises(GranAlignError, match=r"GPU 0 cannot be opened .* driver for CUDA 13"):
        ArrayDevice.of("cuda")


FAILURES = [
    fake_cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 1,024 bytes"),
    fake_cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_full_gpu(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise failure

    retriever, gpu = MomentRetriever(Ones(), device="cuda"), ArrayDevice.of("cuda")
    monkeypatch.setattr(retriever._scorer.ranker, "_ranking", fail)
    monkeypatch.setattr(fake_cupy, "stack", fail)
    for call in (
        lambda: retriever.search(INDEX, "what"),
        lambda: gpu.fetch([gpu.put(np.ones(3))]),
    ):
        with pytest.raises(GranAlignError) as error:
            call()
        assert one_line(error.value).startswith(f"GPU 0 failed ({failure}); use smaller batches")


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), ArrayDevice.of("cuda").guarded():
        raise KeyError("x")
