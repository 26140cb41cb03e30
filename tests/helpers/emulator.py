"""Compile the kernels' ``.cu`` sources as C++ and run them on NumPy arrays (see cuda_on_cpu.h)."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.kernels.launch import source
from granalign_fast.kernels.tensor_map import TENSOR_MAP, mappable

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
HOPPER = Path(__file__).with_name("hopper_on_cpu.h")
DYNAMIC_SHARED = 232448
"""Bytes of dynamic shared memory: sm_90's limit, and the size of the array in hopper_on_cpu.h."""
GUARD = 64
"""Bytes on either side of an array; a kernel that writes outside the array changes them."""
RUBBISH = 0xA5
"""Value of all bytes of new memory: a kernel must not rely on zeros."""


class Emulator:
    """A `Launcher` that runs kernels on the CPU.

    Args:
        backwards: run the threads of a block in the opposite order.
        hopper: offer tensor maps, as sm_90 does.
    """

    def __init__(self, *, backwards: bool = False, hopper: bool = False) -> None:
        self.backwards, self.hopper = backwards, hopper
        self._guarded: list[npt.NDArray[np.uint8]] = []
        self._recorded: list[Callable[[], object]] | None = None

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * GUARD, RUBBISH, dtype=np.uint8)
        self._guarded.append(memory)
        return memory[GUARD : GUARD + size].view(dtype).reshape(shape)

    def upload(self, host: npt.NDArray[Any]) -> npt.NDArray[Any]:
        device = self.empty(host.shape, host.dtype)
        device[...] = host
        return device

    def tensor_map(self, array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any] | None:
        return emulated_map(array, rows) if self.hopper and mappable(array) else None

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
        assert shared <= DYNAMIC_SHARED
        if self._recorded is not None:
            run = functools.partial(self.launch, blocks=blocks, threads=threads, options=options)
            self._recorded.append(functools.partial(run, family, kernel, *arguments))
            return
        emulate(source(family), kernel, arguments, blocks, threads, options, self.backwards)
        for memory in self._guarded:
            edges = np.concatenate([memory[:GUARD], memory[-GUARD:]])
            assert (edges == RUBBISH).all(), f"{kernel} wrote outside an array"

    def copy(self, target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
        assert self._recorded is None, "only launches can be recorded"
        assert target.dtype == source.dtype and source.size <= target.size
        target.reshape(-1)[: source.size] = source.reshape(-1)

    def record(self, sequence: Callable[[], object]) -> Callable[[], object]:
        self._recorded = launches = []
        try:
            sequence()
        finally:
            self._recorded = None
        return lambda: [launch() for launch in launches]

    def finish(self) -> None:
        assert self._recorded is None, "no waiting within a recording"


def emulated_map(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Encode a matrix as the struct TensorMap of hopper_on_cpu.h."""
    tensor_map = np.zeros(1, TENSOR_MAP)
    item = array.itemsize
    fields = [array.ctypes.data, len(array), array.shape[1] * item, item, rows]
    tensor_map.view(np.int64)[: len(fields)] = fields
    return tensor_map


def emulate(
    text: str,
    kernel: str,
    arguments: Sequence[Any],
    blocks: int,
    threads: int,
    options: tuple[str, ...] = (),
    backwards: bool = False,
) -> None:
    """Run a kernel of a ``.cu`` source on NumPy arrays."""
    defines = tuple(option for option in options if option.startswith("-D"))
    run = getattr(_library(text, defines), f"run_{kernel}")
    run.restype = ctypes.c_bool

    def is_pointer(a: Any) -> bool:
        return a is None or (isinstance(a, np.ndarray) and a.dtype != TENSOR_MAP)

    # Like cuLaunchKernel, `run` takes the address of every argument, be it a pointer or a value.
    values = [
        ctypes.c_void_p(None if a is None else a.ctypes.data)
        if is_pointer(a)
        else np.asarray(a).ctypes.data_as(ctypes.POINTER(ctypes.c_char))
        for a in arguments
    ]
    addresses = (ctypes.c_void_p * len(values))(
        *(
            ctypes.cast(v, ctypes.c_void_p).value
            if not isinstance(v, ctypes.c_void_p)
            else ctypes.addressof(v)
            for v in values
        )
    )
    correct = run(blocks, threads, addresses, backwards)
    assert correct, f"{kernel}: threads wait at different barriers, or 16 bytes are not aligned"


@functools.cache
def _library(text: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    """Compile a ``.cu`` source to a library with one function ``run_<kernel>`` for each kernel."""
    # The Hopper header reserves all the shared memory of a block: only for kernels that use it.
    headers = [HEADER] + [HOPPER] * ("dynamic_shared" in text)
    code = "".join(f'#include "{header}"\n' for header in headers) + text.replace(
        "#include <cuda_fp16.h>", ""
    )
    for kernel in re.findall(
        r'extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(', text
    ):
        code += (
            f'\nextern "C" bool run_{kernel}(unsigned blocks, unsigned threads, void** a, bool b)'
            f"\n{{ return emulator::run({kernel}, blocks, threads, a, b); }}\n"
        )
    folder = Path(tempfile.mkdtemp(prefix="granalign-emulator-"))
    try:
        (folder / "kernel.cpp").write_text(code, encoding="utf-8")
        # No contraction: the kernels that must equal NumPy bit for bit are built without it too.
        command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", *defines]
        # native: half precision in hardware. No fortify: it takes a fiber's longjmp for an error.
        command += ["-march=native", "-U_FORTIFY_SOURCE"]
        command += ["-Wno-unknown-pragmas", "-o", "kernel.so", "kernel.cpp"]
        subprocess.run(command, cwd=folder, check=True)
        return ctypes.CDLL(str(folder / "kernel.so"))
    finally:
        shutil.rmtree(folder)
