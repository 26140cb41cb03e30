"""How a kernel gets onto a device: array kinds, argument checks, compilation, launch."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .binary import kept_binary
from .tensor_map import encoded_map, mappable

Array = Any
"""A `numpy.ndarray` or a `cupy.ndarray`; CuPy is not imported until one shows up."""

Offsets = npt.NDArray[np.int64]
"""`(n + 1,)` int64 on the host: part *i* of a batch is ``flat[offsets[i]:offsets[i + 1]]``."""

SOURCES = Path(__file__).parent

SERIAL_PRODUCT = 1 << 18
"""Multiplications up to which OpenBLAS computes a matrix product on the calling thread.

Ours are small: waking its threads costs more than they bring, and where other work keeps the cores
busy it costs a hundred times more. So the host code cuts its products to this size."""


_RUN_PARTS = 64
"""Parts that the host computes in one call at most, so that its temporaries stay small."""


class Launcher(Protocol):
    """A device as the kernels see it: memory, and a way to run a function of a ``.cu`` file."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Uninitialised device memory."""

    def upload(self, host: npt.NDArray[Any]) -> Array:
        """A device copy of a host array, made without waiting for the device."""

    def tensor_map(self, array: Array, rows: int) -> Array | None:
        """By which a kernel for sm_90 gets boxes of a matrix, an argument like any other.

        Args:
            array: `(rows, columns)`.
            rows: of a box, up to 256; its rows are 128 bytes of the matrix's, swizzled.

        Returns:
            `None` where the device has no such copies, or where the matrix does not allow them.
        """
        ...

    def launch(
        self,
        family: str,
        kernel: str,
        *arguments: Any,
        blocks: int,
        threads: int,
        options: tuple[str, ...] = (),
        shared: int = 0,
    ) -> None:
        """Run a kernel.

        Args:
            family: ``family.cu`` holds it; one that ends in ``_sm90`` is for that architecture.
            kernel: its name.
            arguments: arrays of the device, NumPy scalars, what `tensor_map` gave; ``None`` passes
                a null pointer.
            blocks: of the grid.
            threads: of a block.
            options: of the compiler.
            shared: bytes of dynamic shared memory of a block.
        """

    def copy(self, target: Array, source: Array) -> None:
        """Copy a device array into the beginning of another one of its dtype."""

    def record(self, sequence: Callable[[], object]) -> Callable[[], object]:
        """What `sequence` launches, without running it: call the result to run all of it at once.

        Each kernel in it must have run before.
        """
        ...

    def finish(self) -> None:
        """Wait for everything asked so far."""


class CupyLauncher:
    """CuPy's current device and stream. Nothing but `finish` waits for the device."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Uninitialised device memory."""
        import cupy

        return cupy.empty(shape, dtype)

    def upload(self, host: npt.NDArray[Any]) -> Array:
        """A device copy of a host array, made without waiting for the device."""
        import cupy

        return cupy.asarray(host)

    def tensor_map(self, array: Array, rows: int) -> Array | None:
        """By which a kernel for sm_90 gets boxes of a matrix; see `Launcher`."""
        import cupy

        device = cupy.cuda.Device()
        if device.compute_capability != "90" or not mappable(array):
            return None
        return encoded_map(array, rows)

    def launch(
        self,
        family: str,
        kernel: str,
        *arguments: Any,
        blocks: int,
        threads: int,
        options: tuple[str, ...] = (),
        shared: int = 0,
    ) -> None:
        """Run a kernel; see `Launcher`."""
        import cupy

        function = _function(family, kernel, options, shared, cupy.cuda.Device().id)
        null = np.uint64(0)
        given = tuple(null if a is None else a for a in arguments)
        function((blocks,), (threads,), given, shared_mem=shared)

    def copy(self, target: Array, source: Array) -> None:
        """Copy a device array into the beginning of another one of its dtype."""
        target.data.copy_from_device_async(source.data, source.nbytes)

    def record(self, sequence: Callable[[], object]) -> Callable[[], object]:
        """A CUDA graph of what `sequence` launches; call the result to launch it."""
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)  # the default one cannot be captured
        with stream:
            stream.begin_capture()
            try:
                sequence()
            finally:
                graph = stream.end_capture()

        def replay() -> None:
            graph.launch(cupy.cuda.get_current_stream())

        return replay

    def finish(self) -> None:
        """Wait for everything asked so far of the current stream."""
        import cupy

        cupy.cuda.get_current_stream().synchronize()


@functools.cache
def _function(family: str, kernel: str, options: tuple[str, ...], shared: int, device: int) -> Any:
    """A kernel, ready to be called on a device."""
    function = _compiled(family, options, device).get_function(kernel)
    if shared:
        function.max_dynamic_shared_size_bytes = shared
    return function


@functools.cache
def _compiled(family: str, options: tuple[str, ...], device: int) -> Any:
    """One module a source, set of options and device; binaries are kept on disk besides."""
    import cupy

    options = ("--std=c++17", *options)
    if family.endswith("_sm90"):
        # CuPy would compile for sm_90, which lacks what only sm_90a has.
        return cupy.RawModule(path=str(kept_binary(source(family), (*options, "-arch=sm_90a"))))
    return cupy.RawModule(code=source(family), options=options)


def source(family: str) -> str:
    """``family.cu`` with our own headers pasted in, so that CuPy's cache sees their changes."""
    text = (SOURCES / f"{family}.cu").read_text(encoding="utf-8")
    return re.sub(
        r'#include "(.+)"', lambda m: (SOURCES / m[1]).read_text(encoding="utf-8"), text
    ).replace("#pragma once\n", "")


def launcher_for(**arrays: Array) -> Launcher | None:
    """`None` where all arrays are NumPy's, a `CupyLauncher` where all are CuPy's.

    Raises:
        TypeError: something else, or a mixture. Arrays that are `None` are passed over.
    """
    kinds = {name: type(array).__module__.partition(".")[0] for name, array in arrays.items()}
    kinds = {name: kind for name, kind in kinds.items() if arrays[name] is not None}
    if set(kinds.values()) == {"numpy"}:
        return None
    if set(kinds.values()) == {"cupy"}:
        return CupyLauncher()
    raise TypeError(
        f"got {', '.join(f'{name} from {kind}' for name, kind in kinds.items())}; expected all "
        "from NumPy or all from CuPy: move them to one side with cupy.asarray or cupy.asnumpy"
    )


def launcher_on(device: str) -> Launcher | None:
    """`None` for ``"cpu"``, a `CupyLauncher` for ``"cuda"``, CuPy's current device.

    Raises:
        ValueError: another name.
        ImportError: CuPy is not installed.
    """
    if device == "cpu":
        return None
    if device != "cuda":
        raise ValueError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    if importlib.util.find_spec("cupy") is None:
        raise ImportError(
            "device 'cuda' needs CuPy, which is not installed: "
            "run pip install 'granalign-fast[cuda]'"
        )
    return CupyLauncher()


def options_for(dtype: npt.DTypeLike) -> tuple[str, ...]:
    """How a kernel is compiled for embeddings of this dtype."""
    return ("-DGRANALIGN_HALF",) if np.dtype(dtype) == np.float16 else ()


def chunks(offsets: Offsets, size: int) -> Iterator[slice]:
    """Yield runs of a batch's parts, in order, of up to `size` items or of one larger part.

    >>> list(chunks(np.array([0, 3, 3, 9, 10]), 4))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    first, parts = 0, len(offsets) - 1
    while first < parts:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), parts)
        yield slice(first, last)
        first = last


def even_runs(offsets: Offsets, firsts: Offsets | None = None) -> Iterator[tuple[slice, int]]:
    """Yield runs of parts of one length, which the host computes in one call each, and that length.

    Args:
        offsets: of the parts; empty parts are left out.
        firsts: `(parts,)`: with it, the parts of a run also follow each other here.

    >>> list(even_runs(np.array([0, 3, 6, 8, 8, 10])))
    [(slice(0, 2, None), 3), (slice(2, 3, None), 2), (slice(4, 5, None), 2)]
    """
    lengths = offsets[1:] - offsets[:-1]
    new = lengths[1:] != lengths[:-1]
    if firsts is not None:
        new |= firsts[1:] != firsts[:-1] + lengths[:-1]
    ends = [*(np.flatnonzero(new) + 1).tolist(), len(lengths)]
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        for first in range(start, stop if lengths[start:stop].any() else start, _RUN_PARTS):
            yield slice(first, min(first + _RUN_PARTS, stop)), int(lengths[first])


def tiles(offsets: Offsets, size: int) -> Offsets:
    """`(tiles, 2)`: each part of a batch cut into runs of up to `size` items.

    A row is the part's number and the run's first item. Blocks that each take some of the rows are
    alike busy, whether there is one long part or many short ones.

    >>> tiles(np.array([0, 3, 3, 4]), 2).tolist()
    [[0, 0], [0, 2], [2, 3]]
    """
    counts = -(-np.diff(offsets) // size)
    part = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(part)) - (counts.cumsum() - counts)[part]
    return np.stack([part, offsets[part] + number * size], axis=1)


def check_array(name: str, array: Array, shape: tuple[int | None, ...], *dtypes: str) -> None:
    """Refuse an array of the wrong shape (`None` matches any length), dtype or memory order.

    Raises:
        ValueError: says what was got, what was expected and what to do.
    """
    fits = len(array.shape) == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        want_text = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected ({want_text})")
    if array.dtype.name not in dtypes:
        raise ValueError(
            f"{name}: got dtype {array.dtype.name}, expected {' or '.join(dtypes)}: "
            f"convert it with {name}.astype({dtypes[0]!r})"
        )
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: not C-contiguous; pass it through ascontiguousarray")


def check_offsets(name: str, offsets: Any, total: int) -> Offsets:
    """`offsets` as int64 on the host, after checking that they cut `total` items into ragged parts.

    Raises:
        ValueError: they do not start at 0, go backwards, or do not end at `total`.
    """
    array = np.ascontiguousarray(offsets, dtype=np.int64)
    if array.ndim != 1 or len(array) == 0 or array[0] != 0 or array[-1] != total:
        ends = f"from {array.flat[0]} to {array.flat[-1]}" if array.size else "empty"
        raise ValueError(f"{name}: got {array.ndim}-d, {ends}; expected 1-d, from 0 to {total}")
    if (np.diff(array) < 0).any():
        raise ValueError(f"{name}: goes backwards at {int(np.argmax(np.diff(array) < 0))}")
    return array
