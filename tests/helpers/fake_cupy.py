"""A stand-in for the part of CuPy that this package uses: arrays are in host memory.

Streams run their work immediately. For the tests' assertions, `LOG` records the operations of
streams, in order. `UPLOADED` and `FETCHED` record the shape and type of every array that was copied
to the device or back.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from helpers.emulator import emulate

LOG: list[str] = []
UPLOADED: list[tuple[tuple[int, ...], Any]] = []
FETCHED: list[tuple[tuple[int, ...], Any]] = []


class _Pointer:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    def copy_from_device_async(self, source: _Pointer, size: int) -> None:
        LOG.append("copy")
        ctypes.memmove(self.ptr, source.ptr, size)


class ndarray(np.ndarray):
    @property
    def data(self) -> _Pointer:
        return _Pointer(self.ctypes.data)

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        assert type(arr) is np.ndarray and arr.flags.c_contiguous
        assert arr.shape == self.shape and arr.dtype == self.dtype
        self[...] = arr

    def get(self, stream: Any = None, out: Any = None, blocking: bool = True) -> np.ndarray:
        FETCHED.append((self.shape, self.dtype))
        assert blocking == (out is None), "a copy without waiting needs a target in pinned memory"
        if out is None:
            return np.array(np.asarray(self))
        out[...] = self
        return out


def empty(shape: tuple[int, ...], dtype: Any) -> ndarray:
    # Not zeros: memory that was never written must not look right.
    return np.full(shape, 113, dtype).view(ndarray)


def asarray(array: np.ndarray) -> ndarray:
    if isinstance(array, ndarray):
        return array
    UPLOADED.append((array.shape, array.dtype))
    return np.array(array).view(ndarray)


def asnumpy(array: ndarray) -> np.ndarray:
    return array.get()


def zeros(shape: tuple[int, ...], dtype: Any) -> ndarray:
    return np.zeros(shape, dtype).view(ndarray)


def ascontiguousarray(array: np.ndarray, dtype: Any = None) -> ndarray:
    return np.ascontiguousarray(array, dtype).view(ndarray)


def concatenate(arrays: list[ndarray], axis: int = 0) -> ndarray:
    assert all(isinstance(array, ndarray) for array in arrays), "got a host array"
    return np.concatenate(arrays, axis).view(ndarray)


def stack(arrays: list[ndarray]) -> ndarray:
    assert all(isinstance(array, ndarray) for array in arrays), "got a host array"
    return np.stack(arrays).view(ndarray)


linalg, maximum = np.linalg, np.maximum


def ones(shape: tuple[int, ...], dtype: Any) -> ndarray:
    return np.ones(shape, dtype).view(ndarray)


def repeat(array: ndarray, count: int, axis: int) -> ndarray:
    return np.repeat(array, count, axis).view(ndarray)


def from_dlpack(exporter: Any) -> ndarray:
    if exporter.__dlpack_device__()[0] == 1:
        return np.from_dlpack(exporter).view(ndarray)
    # A value of the stand-in for the CUDA runtime (fake_cuda), whose memory is the host's.
    value = exporter._value
    c_type = {"tensor(float)": ctypes.c_float, "tensor(float16)": ctypes.c_uint16}[
        value.data_type()
    ]
    memory = (c_type * int(np.prod(value.shape()))).from_address(value.data_ptr())
    memory.owner = value
    array = np.ctypeslib.as_array(memory).reshape(value.shape())
    return (array.view(np.float16) if c_type is ctypes.c_uint16 else array).view(ndarray)


class _Runtime:
    class CUDARuntimeError(RuntimeError):
        pass

    gpus: ClassVar[list[dict[str, Any]]] = [{"name": b"NVIDIA H200", "major": 9, "minor": 0}]

    @classmethod
    def getDeviceProperties(cls, device: int) -> dict[str, Any]:
        if device >= len(cls.gpus):
            raise cls.CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        return cls.gpus[device]


class _Memory:
    class OutOfMemoryError(MemoryError):
        pass


class Stream:
    by_handle: ClassVar[dict[int, Stream]] = {}
    _current = threading.local()
    capturable = True

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else 1000 + len(Stream.by_handle)
        self.captured: list[Callable[[], None]] | None = None
        Stream.by_handle[self.ptr] = self

    def __enter__(self) -> Stream:
        self._stack().append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack().pop()

    @classmethod
    def _stack(cls) -> list[Stream]:
        return cls._current.__dict__.setdefault("streams", [])

    def begin_capture(self, mode: int | None = None) -> None:
        if not self.ptr or not Stream.capturable:
            raise _Runtime.CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        self.captured = []

    def end_capture(self) -> Graph:
        assert self.captured is not None
        steps, self.captured = self.captured, None
        LOG.append("capture")
        return Graph(steps)

    def wait_event(self, event: Event) -> None:
        LOG.append(f"wait {self.ptr}")

    def synchronize(self) -> None:
        assert self.captured is None, "a capturing stream cannot be waited for"


class Graph:
    def __init__(self, steps: list[Callable[[], None]]) -> None:
        self.steps = steps

    def launch(self, stream: Stream | None = None) -> None:
        LOG.append(f"launch {stream.ptr if stream else 0}")
        for step in self.steps:
            step()


class Event:
    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        LOG.append(f"record {stream.ptr if stream else 0}")

    def synchronize(self) -> None:
        LOG.append("synchronize")


class _Device:
    def __init__(self, device: int = 0) -> None:
        self.id = device

    @property
    def compute_capability(self) -> str:
        return "{major}{minor}".format_map(_Runtime.gpus[self.id])

    def __enter__(self) -> None:
        _Runtime.getDeviceProperties(self.id)

    def __exit__(self, *error: object) -> None:
        pass


class _Nvrtc:
    """Compilation returns the source text, with the options in a comment as its last line."""

    class NVRTCError(RuntimeError):
        pass

    programs: ClassVar[dict[int, tuple[str, bytes]]] = {}
    version = (13, 0)

    @classmethod
    def getVersion(cls) -> tuple[int, int]:
        return cls.version

    @classmethod
    def createProgram(cls, text: str, name: str, headers: Any, includes: Any) -> int:
        assert not headers and not includes and name.endswith(".cu")
        cls.programs[len(cls.programs)] = (text, b"")
        return len(cls.programs) - 1

    @classmethod
    def compileProgram(cls, program: int, options: tuple[str, ...]) -> None:
        text, _ = cls.programs[program]
        if "#error" in text:
            raise cls.NVRTCError
        LOG.append("compile")
        cls.programs[program] = (text, f"{text}\n// {' '.join(options)}\n".encode())

    @classmethod
    def getProgramLog(cls, program: int) -> str:
        return "kernel.cu(1): error"

    @classmethod
    def getCUBIN(cls, program: int) -> bytes:
        return cls.programs[program][1]  # without the terminating 0, as in CuPy

    @classmethod
    def destroyProgram(cls, program: int) -> None:
        LOG.append("destroy")


class cuda:
    runtime, memory, nvrtc = _Runtime, _Memory, _Nvrtc
    Device, Event, Graph, Stream = _Device, Event, Graph, Stream
    _null = Stream(null=True)

    @classmethod
    def get_current_stream(cls, device_id: int = -1) -> Stream:
        return (Stream._stack() or [cls._null])[-1]

    @staticmethod
    def alloc_pinned_memory(size: int) -> bytearray:
        return bytearray(size)


class RawModule:
    """A module whose kernels the emulator runs; a capturing stream records them instead."""

    def __init__(
        self, code: str | None = None, options: tuple[str, ...] = (), path: str | None = None
    ) -> None:
        assert (code is None) != (path is None)
        if path is not None:
            code = Path(path).read_text(encoding="utf-8")
            assert code.endswith("\0"), "the file is truncated"
            code = code[:-1]
        self.code = code
        self.options = options

    def get_function(self, name: str) -> Callable[..., None]:
        def launch(
            blocks: tuple[int],
            threads: tuple[int],
            arguments: tuple[Any, ...],
            shared_mem: int = 0,
        ) -> None:
            # CUDA requires that a kernel opts in to more than 48 KiB.
            assert shared_mem <= getattr(launch, "max_dynamic_shared_size_bytes", 48 << 10)

            def run() -> None:
                LOG.append(f"run {name}")
                emulate(self.code, name, arguments, *blocks, *threads, self.options)

            captured = cuda.get_current_stream().captured
            captured.append(run) if captured is not None else run()

        return launch
