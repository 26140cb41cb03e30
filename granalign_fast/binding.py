"""ONNX Runtime on arrays that stay where they are: DLPack in, DLPack out, no copy to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = Any
"""A NumPy or CuPy array."""

# DLPack's numbers of devices.
_CPU, _CUDA = 1, 2


def run_bound(
    session: Any, arrays: Mapping[str, Array], xp: Any, device: str = "cuda", index: int = 0
) -> dict[str, Array]:
    """Run a session on arrays of a device; its outputs are allocated and stay there.

    Args:
        session: an `onnxruntime.InferenceSession` on that device.
        arrays: one for each input; what is not contiguous is made so on the device.
        xp: the module of the arrays: CuPy, or NumPy for ``"cpu"``.
        device: ``"cuda"``, or ``"cpu"``, where the same path is tested.
        index: of the device.

    Returns:
        One array of `xp` for each output. It owns its memory.
    """
    from onnxruntime import OrtValue

    binding = session.io_binding()
    kept = []  # until the run is over
    for name, array in arrays.items():
        contiguous = xp.ascontiguousarray(array)
        kept.append(contiguous)
        # NumPy lends no array that must not be written to; ONNX Runtime reads it in place as well.
        lend = OrtValue.ortvalue_from_numpy if _read_only(contiguous) else OrtValue.from_dlpack
        binding.bind_ortvalue_input(name, lend(contiguous))
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device, index)
    if device == "cuda":
        # ONNX Runtime has a stream of its own, which must not overtake the one that fills `arrays`.
        xp.cuda.get_current_stream().synchronize()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    values = binding.get_outputs()
    return {name: _adopt(value, xp, index) for name, value in zip(names, values, strict=True)}


def _read_only(array: Array) -> bool:
    return isinstance(array, np.ndarray) and not array.flags.writeable


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
        # The run is over and synchronised: whatever stream the consumer names may read it.
        return self._value._ortvalue.to_dlpack()


def _dtype(value: Any) -> Any:
    names = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    return names[value.data_type()]
