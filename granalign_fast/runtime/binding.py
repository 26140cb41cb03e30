"""Run ONNX Runtime on arrays in place: inputs are bound by address, outputs are shared by DLPack.

A contiguous array is not copied on its way in or out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any
"""A NumPy or CuPy array."""

# DLPack's device codes: kDLCPU and kDLCUDA.
_CPU, _CUDA = 1, 2


def on_host(array: Array) -> bool:
    """Return whether an array is NumPy's. CuPy's `data` is a pointer, NumPy's a memoryview."""
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
    """Run a session on arrays of a device; the outputs are allocated on that device.

    Args:
        session: an `onnxruntime.InferenceSession` on that device.
        arrays: one for each input; an array that is not contiguous is copied on the device.
        xp: the array module: CuPy for ``"cuda"``, NumPy for ``"cpu"``.
        device: ``"cuda"``, or ``"cpu"`` so that tests can take the same path.
        index: the device's number. The device must be the current one.
        options: `onnxruntime.RunOptions` of this run.
        queued: return without waiting for the run. The session must have been given the current
            stream, which orders the run after the work that fills `arrays` and before the work that
            reads the outputs; `options` must come from `queued_options`.

    Returns:
        One array of `xp` for each output. It owns its memory.
    """
    binding = session.io_binding()
    # The inputs must live until the run has ended, or is in the stream.
    bound = [
        bind_input(binding, name, xp.ascontiguousarray(array), device, index)
        for name, array in arrays.items()
    ]
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device, index)
    if device == "cuda" and not queued:
        # ONNX Runtime's own stream must not overtake the current one, which fills `arrays`.
        xp.cuda.get_current_stream().synchronize()
    session.run_with_iobinding(binding, options)
    if not queued:
        binding.synchronize_outputs()
    del bound
    values = binding.get_outputs()
    return {name: _adopt(value, xp, index) for name, value in zip(names, values, strict=True)}


def queued_options() -> Any:
    """Return `onnxruntime.RunOptions` of a run that returns once its work is in the stream."""
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def bind_input(binding: Any, name: str, array: Array, device: str, index: int) -> Any:
    """Bind a contiguous array as an input, in place.

    A GPU array is bound by its address. With DLPack, CuPy would make its default stream wait for
    each array, and ONNX Runtime would not learn the GPU's number.

    Returns:
        An object that the caller must keep alive until the run has ended.
    """
    from onnxruntime import OrtValue

    if on_host(array):
        value = _share(array)
    elif array.size:
        address = array.data.ptr
        binding.bind_input(name, device, index, array.dtype.type, array.shape, address)
        return array
    else:  # an empty array has no address to bind
        dtype = array.dtype.type
        value = OrtValue.ortvalue_from_shape_and_type(array.shape, dtype, device, index)
    binding.bind_ortvalue_input(name, value)
    return value


def bind_output(binding: Any, name: str, array: Array, device: str, index: int) -> Any:
    """Bind a contiguous array as an output, to be written in place.

    Returns:
        An object that the caller must keep alive until the run has ended.
    """
    if on_host(array):
        value = _share(array)
        binding.bind_ortvalue_output(name, value)
        return value
    address = array.data.ptr
    binding.bind_output(name, device, index, array.dtype.type, array.shape, address)
    return array


def _share(array: npt.NDArray[Any]) -> Any:
    """Return an `onnxruntime.OrtValue` over an array's memory; the array must outlive it."""
    from onnxruntime import OrtValue

    # NumPy does not export read-only arrays by DLPack. ONNX Runtime's other constructor reads them
    # in place as well.
    share = OrtValue.from_dlpack if array.flags.writeable else OrtValue.ortvalue_from_numpy
    return share(array)


def _adopt(value: Any, xp: Any, index: int) -> Array:
    """Return an array of `xp` over the memory of an `OrtValue`."""
    if 0 in value.shape():  # there is no memory to share
        return xp.empty(value.shape(), _dtype(value))
    return xp.from_dlpack(_Exporter(value, index))


class _Exporter:
    """An `OrtValue` with the two methods that `from_dlpack` calls."""

    def __init__(self, value: Any, index: int) -> None:
        self._value = value
        on_cpu = value.device_name().lower() == "cpu"
        self._device = (_CPU, 0) if on_cpu else (_CUDA, index)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        # No stream to wait for: the value is ready, or in the current stream like its consumer.
        return self._value._ortvalue.to_dlpack()


def _dtype(value: Any) -> Any:
    """Return the NumPy type of an `OrtValue`."""
    names = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    return names[value.data_type()]
