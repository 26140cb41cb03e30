"""TensorRT and CuPy as this package meets them: loading, what TensorRT complains of, the GPU."""

from __future__ import annotations

import functools
import re
from collections import deque
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line

_MAJOR = "10"


def libraries() -> tuple[Any, Any]:
    """The modules `tensorrt` and `cupy`.

    Importing `tensorrt` also loads its libraries from where pip put them, so that ONNX Runtime's
    TensorRT provider finds them: `onnxruntime.preload_dlls` knows of CUDA and cuDNN alone.

    Raises:
        MissingExtraError: one of them, or a library that it loads, is not installed.
        GranAlignError: TensorRT is of another major version.
    """
    try:
        trt, cupy = import_module("tensorrt"), import_module("cupy")
    except (ImportError, OSError):
        raise MissingExtraError("device 'tensorrt'", "tensorrt") from None
    if trt.__version__.split(".")[0] != _MAJOR:
        raise GranAlignError(
            f"got TensorRT {trt.__version__}, expected 10.16 or a later {_MAJOR}.x, which ONNX "
            f"Runtime is built for too; run pip install 'granalign-fast[tensorrt]'"
        )
    return trt, cupy


@functools.cache
def logger(trt: Any) -> Any:
    """The `ILogger` that remembers errors, in `errors`; all else is dropped.

    TensorRT keeps to the first logger that it is given, for as long as the process lives: so there
    is one, and who wants the errors of one call clears it before.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(msg.split()))

    return Log()


def logged_errors(log: Any) -> str:
    """What TensorRT has said since the log was cleared, in one line."""
    return "; ".join(text[:300] for text in dict.fromkeys(log.errors)) or "it does not say why"


@dataclass(frozen=True)
class Machine:
    """What an engine is built for and runs on.

    Attributes:
        tensorrt: its version, all four numbers.
        compute_capability: of the GPU, such as ``"9.0"``.
        gpu: its name.
    """

    tensorrt: str
    compute_capability: str
    gpu: str

    @classmethod
    def current(cls, index: int = 0) -> Machine:
        """This machine, with the GPU of a number.

        Raises:
            GranAlignError: there is no such GPU, or no driver that fits.
            MissingExtraError: as for `libraries`.
        """
        trt, cupy = libraries()
        try:
            found = cupy.cuda.runtime.getDeviceProperties(index)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise GranAlignError(
                f"GPU {index} cannot be had ({one_line(error)}); check nvidia-smi and the number "
                f"in device 'tensorrt:<number>'"
            ) from None
        capability = f"{found['major']}.{found['minor']}"
        return cls(trt.__version__, capability, found["name"].decode())

    @property
    def slug(self) -> str:
        """For names of files."""
        words = [f"tensorrt-{self.tensorrt}", f"sm{self.compute_capability}", self.gpu]
        return re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower())

    def differences(self, other: Machine) -> list[str]:
        """What another machine has differently, as ``got ..., expected ...``."""
        mine, others = asdict(self), asdict(other)
        return [
            f"{name.replace('_', ' ')} {others[name]!r}, expected {mine[name]!r}"
            for name in mine
            if mine[name] != others[name]
        ]
