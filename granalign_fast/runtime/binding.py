"""ONNX Runtime on arrays that stay where they are: bound by address, and back by DLPack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any
"""A NumPy or CuPy array."""

# DLPack's numbers of devices.
_CPU, _CUDA = 1, 2


def on_host(array: Array) -> bool:
    """Whether it is NumPy's; CuPy's `data` is a pointer."""
    return isinstance(array.data, memoryview)


def run_bound(
    session: Any,
    arrays: Mapping[str, Array],
    xp: Any,
    device: str = "cuda",
    index: int = 0,
    *,
    options: Any = None,
    queued: bool = False,
) -> dict[str, Array]:
    """Run a session on arrays of a device; its outputs are allocated and stay there.

    Args:
        session: an `onnxruntime.InferenceSession` on that device.
        arrays: one for each input; what is not contiguous is made so on the device.
        xp: the module of the arrays: CuPy, or NumPy for ``"cpu"``.
        device: ``"cuda"``, or ``"cpu"``, where the same path is tested.
        index: of the device, which is the current one.
        options: `onnxruntime.RunOptions` of this run.
        queued: do not wait for anything. The session was given the current stream, which keeps the
            run between what filled `arrays` and what reads the result; `options` are `queueing`.

    Returns:
        One array of `xp` for each output. It owns its memory.
    """
    binding = session.io_binding()
    # Until the run is over, or in its place in the stream.
    kept = [
        bind_input(binding, name, xp.ascontiguousarray(array), device, index)
        for name, array in arrays.items()
    ]
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device, index)
    if device == "cuda" and not queued:
        # ONNX Runtime has a stream of its own, which must not overtake the one that fills `arrays`.
        xp.cuda.get_current_stream().synchronize()
    session.run_with_iobinding(binding, options)
    if not queued:
        binding.synchronize_outputs()
    del kept
    values = binding.get_outputs()
    return {name: _adopt(value, xp, index) for name, value in zip(names, values, strict=True)}


def queueing() -> Any:
    """Options of a run that returns when all its work is in the session's stream."""
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def bind_input(binding: Any, name: str, array: Array, device: str, index: int) -> Any:
    """Bind a contiguous array; returns what has to be kept until the run is over.

    A GPU's array goes by its address. By DLPack CuPy would let its default stream wait for each
    array by itself, and ONNX Runtime would not know whose GPU it is.
    """
    from onnxruntime import OrtValue

    if on_host(array):
        value = _lent(array)
    elif array.size:
        address = array.data.ptr
        binding.bind_input(name, device, index, array.dtype.type, array.shape, address)
        return array
    else:  # of no address
        kind = array.dtype.type
        value = OrtValue.ortvalue_from_shape_and_type(array.shape, kind, device, index)
    binding.bind_ortvalue_input(name, value)
    return value


def bind_output(binding: Any, name: str, array: Array, device: str, index: int) -> Any:
    """Bind a contiguous array to be written to; returns what has to be kept meanwhile."""
    if on_host(array):
        value = _lent(array)
        binding.bind_ortvalue_output(name, value)
        return value
    address = array.data.ptr
    binding.bind_output(name, device, index, array.dtype.type, array.shape, address)
    return array


def _lent(array: npt.NDArray[Any]) -> Any:
    """An `onnxruntime.OrtValue` over the same memory, which must outlive it."""
    from onnxruntime import OrtValue

    # NumPy lends no array that must not be written to; ONNX Runtime reads it in place as well.
    lend = OrtValue.from_dlpack if array.flags.writeable else OrtValue.ortvalue_from_numpy
    return lend(array)


def _adopt(value: Any, xp: Any, index: int) -> Array:
    if 0 in value.shape():  # nothing to share
        return xp.empty(value.shape(), _dtype(value))
    return xp.from_dlpack(_Exporter(value, index))


class _Exporter:
    """An `OrtValue` as the array interchange protocol wants it."""

    def __init__(self, value: Any, index: int) -> None:
        self._value = value
        on_cpu = value.device_name().lower() == "cpu"
        self._device = (_CPU, 0) if on_cpu else (_CUDA, index)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        # Synchronised, or in the current stream, of which the consumer is as well.
        return self._value._ortvalue.to_dlpack()


def _dtype(value: Any) -> Any:
    names = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    return names[value.data_type()]
