"""Where kernels run in the tests: NumPy, the emulated GPU, and a real one if there is one."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from helpers.emulator import Emulator, emulated_map


@functools.cache
def cuda_missing() -> str | None:
    """Why there is no GPU to test on, or `None`."""
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "no CUDA device"
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


DEVICES = [
    "numpy",
    "emulated",
    "emulated-backwards",
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]


class KernelDevice(NamedTuple):
    """Where a test's kernels run."""

    device: str
    """As a `Ranking` is told."""
    put: Callable[[Any], Any]
    """NumPy arrays to there."""
    get: Callable[[Any], Any]
    """Results back."""


@contextmanager
def on(name: str) -> Iterator[KernelDevice]:
    """Kernels that are called in here run on one of `DEVICES`."""
    if name == "numpy":
        yield KernelDevice("cpu", _same, _same)
    elif name == "cuda":
        if missing := cuda_missing():
            pytest.skip(missing)
        yield KernelDevice("cuda", _to_cupy, _to_numpy)
    else:
        emulator = Emulator(backwards=name.endswith("backwards"), hopper="hopper" in name)
        with pytest.MonkeyPatch.context() as patch:
            for module in launch_users():
                patch.setattr(module, "launcher_for", lambda **_: emulator)
            patch.setattr(_module("ranking"), "launcher_on", lambda _: emulator)
            yield KernelDevice("cuda", _same, _same)


def call(kernel: Callable[..., Any], device: str, *arguments: Any, **options: Any) -> Any:
    """`kernel` with NumPy arrays in and out, run on `device`."""
    with on(device) as there:
        return there.get(
            kernel(*map(there.put, arguments), **{k: there.put(v) for k, v in options.items()})
        )


def launch_users() -> list[Any]:
    families = ("context", "corpus", "nms", "proposals", "ranking", "similarity")
    return [_module(name) for name in families]


@contextmanager
def emulated_hopper(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[Any]:
    """CuPy's stand-in in its place, as a Hopper GPU whose kernels are emulated.

    Args:
        patch: undoes it.
        folder: where binaries are kept.
    """
    from helpers import fake_cupy

    forget_kernels()
    patch.setitem(sys.modules, "cupy", fake_cupy)
    patch.setattr(fake_cupy.ndarray, "__module__", "cupy.core")
    patch.setattr(_module("corpus"), "_attribute", lambda _: 2)
    patch.setattr(_module("launch"), "encoded_map", emulated_map)
    patch.setenv("CUPY_CACHE_DIR", str(folder))
    fake_cupy.LOG.clear()
    yield fake_cupy
    forget_kernels()


def forget_kernels() -> None:
    """Have kernels compiled anew, by whatever CuPy is by then."""
    launch = _module("launch")
    launch._function.cache_clear()
    launch._compiled.cache_clear()


def _module(name: str) -> Any:
    return importlib.import_module(f"granalign_fast.kernels.{name}")


def _same(value: Any) -> Any:
    return value


def _to_cupy(value: Any) -> Any:
    import cupy

    # int64 arrays are offsets and video numbers: they stay on the host.
    return (
        cupy.asarray(value) if isinstance(value, np.ndarray) and value.dtype != np.int64 else value
    )


def _to_numpy(value: Any) -> Any:
    import cupy

    if isinstance(value, tuple):
        return type(value)(*(cupy.asnumpy(item) for item in value))
    return cupy.asnumpy(value)
