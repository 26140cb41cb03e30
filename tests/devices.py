"""Where kernels run in the tests: NumPy, the emulated GPU, and a real one if there is one."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulator import Emulator


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


def call(kernel: Callable[..., Any], device: str, *arguments: Any, **options: Any) -> Any:
    """`kernel` with NumPy arrays in and out, run on `device`."""
    if device == "numpy":
        return kernel(*arguments, **options)
    if device == "cuda":
        if missing := cuda_missing():
            pytest.skip(missing)
        return _to_numpy(
            kernel(
                *(_to_cupy(a) for a in arguments), **{k: _to_cupy(v) for k, v in options.items()}
            )
        )
    emulator = Emulator(backwards=device.endswith("backwards"))
    with pytest.MonkeyPatch.context() as patch:
        for module in launch_users():
            patch.setattr(module, "launcher_for", lambda **_: emulator)
        return kernel(*arguments, **options)


def launch_users() -> list[Any]:
    families = ("context", "corpus", "nms", "proposals", "similarity")
    return [importlib.import_module(f"granalign_fast.kernels.{name}") for name in families]


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
