"""The devices on which tests run kernels: NumPy, the emulated GPU, and a real GPU if present."""

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
    """Return the reason why there is no GPU to test on; None if there is one."""
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
    """The device that runs a test's kernels.

    Attributes:
        device: the device's name, as `Ranking` takes it.
        put: copies a NumPy array to the device.
        get: copies results to the host.
    """

    device: str
    put: Callable[[Any], Any]
    get: Callable[[Any], Any]


@contextmanager
def on(name: str) -> Iterator[KernelDevice]:
    """Run the kernels that are called inside on one of `DEVICES`."""
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
    """Call `kernel` on a device, with NumPy arrays in and out."""
    with on(device) as target:
        return target.get(
            kernel(*map(target.put, arguments), **{k: target.put(v) for k, v in options.items()})
        )


def launch_users() -> list[Any]:
    """Return the modules that launch kernels."""
    families = ("context", "corpus", "feedback", "nms", "proposals", "ranking", "similarity")
    return [_module(name) for name in families]


@contextmanager
def emulated_hopper(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[Any]:
    """Replace CuPy by its stand-in, as a Hopper GPU whose kernels are emulated.

    Args:
        patch: restores the modules at the end of the test.
        folder: cache folder for the kernels' binaries.
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
    """Empty the caches of compiled kernels, so that the current `cupy` compiles them again."""
    launch = _module("launch")
    launch._function.cache_clear()
    launch._compiled.cache_clear()


def _module(name: str) -> Any:
    return importlib.import_module(f"granalign_fast.kernels.{name}")


def _same(value: Any) -> Any:
    return value


def _to_cupy(value: Any) -> Any:
    import cupy

    # int64 arrays are offsets and video numbers, which stay on the host.
    return (
        cupy.asarray(value) if isinstance(value, np.ndarray) and value.dtype != np.int64 else value
    )


def _to_numpy(value: Any) -> Any:
    import cupy

    if isinstance(value, tuple):
        return type(value)(*(cupy.asnumpy(item) for item in value))
    return cupy.asnumpy(value)
