"""Kernels compiled for an architecture that CuPy does not name itself, such as sm_90a."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def kept_binary(text: str, options: tuple[str, ...]) -> Path:
    """The machine code of a source, compiled by NVRTC unless CuPy's cache folder has it.

    Args:
        text: CUDA C++ that includes nothing.
        options: of NVRTC, the architecture among them.

    Returns:
        A ``.cubin`` in ``CUPY_CACHE_DIR``, or where CuPy keeps its own without that; in a folder
        for temporary files where it cannot be written.

    Raises:
        RuntimeError: NVRTC refuses, with what it says.
    """
    import cupy

    told = repr((text, options, cupy.cuda.nvrtc.getVersion()))
    name = f"granalign-{hashlib.sha256(told.encode()).hexdigest()}.cubin"
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    if (folder / name).is_file():
        return folder / name
    binary = _compiled(text, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write(folder, name, binary)
    except OSError:
        return _write(Path(tempfile.mkdtemp(prefix="granalign-")), name, binary)


def _compiled(text: str, options: tuple[str, ...]) -> bytes:
    import cupy

    nvrtc = cupy.cuda.nvrtc
    program = nvrtc.createProgram(text, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
        # CuPy takes the last byte for the end of a string and drops it: it is 0, and in a file it
        # is missed. One too many does no harm.
        return bytes(nvrtc.getCUBIN(program)) + b"\0"
    except nvrtc.NVRTCError:
        raise RuntimeError(f"NVRTC {options}: {nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


def _write(folder: Path, name: str, binary: bytes) -> Path:
    """All of it or nothing: others may read, or write the same, at this moment."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=name, delete=False) as draft:
        draft.write(binary)
    return Path(draft.name).replace(folder / name)
