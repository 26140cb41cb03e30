"""Import TensorRT and CuPy, collect TensorRT's error messages, and identify the machine."""

from __future__ import annotations

import functools
import re
from collections import deque
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError, install_command, one_line

_OLDEST = (10, 16)
_MAJORS = (10, 11)
"""The major versions of TensorRT whose bindings have all that this package calls."""

_PROVIDER = 10
"""The major version that ONNX Runtime's TensorRT provider is built for."""


def libraries() -> tuple[Any, Any]:
    """Import the modules `tensorrt` and `cupy`.

    Importing `tensorrt` also loads its libraries from pip's folders, so that ONNX Runtime's
    TensorRT provider finds them: `onnxruntime.preload_dlls` loads only CUDA and cuDNN.

    Raises:
        MissingExtraError: a module, or a library that it loads, is not installed.
        GranAlignError: TensorRT is older than 10.16, or newer than 11.
    """
    try:
        trt, cupy = import_module("tensorrt"), import_module("cupy")
    except (ImportError, OSError):
        raise MissingExtraError("device 'tensorrt'", "tensorrt") from None
    if _release(trt.__version__) < _OLDEST or _release(trt.__version__)[0] not in _MAJORS:
        raise GranAlignError(
            f"got TensorRT {trt.__version__}, expected 10.16 or a later 10.x or 11.x; "
            f"run {install_command('tensorrt')}"
        )
    return trt, cupy


def check_provider_version(version: str) -> None:
    """Raise unless ONNX Runtime's TensorRT provider can use this version of TensorRT.

    Native engines can have a later one.
    """
    if _release(version)[0] != _PROVIDER:
        raise GranAlignError(
            f"got TensorRT {version}, expected 10.16 or a later {_PROVIDER}.x, which ONNX "
            f"Runtime's TensorRT provider is built for; build an engine for {version} with "
            f"granalign export tensorrt, or run {install_command('tensorrt')}"
        )


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(re.sub(r"\D.*", "", part) or 0) for part in version.split(".")[:2])


@functools.cache
def logger(trt: Any) -> Any:
    """Return the process's `ILogger`. It keeps the last 20 errors, in `errors`, and nothing else.

    TensorRT uses the first logger that it is given until the process ends. So there is only one.
    Clear `errors` before a call to get the errors of that call.
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
    """Return the errors since the log was cleared, in one line and without repetitions."""
    return "; ".join(text[:300] for text in dict.fromkeys(log.errors)) or "it gives no reason"


@dataclass(frozen=True)
class Machine:
    """The versions and the GPU that an engine is tied to.

    Attributes:
        tensorrt: TensorRT's version, all four numbers.
        compute_capability: the GPU's compute capability, such as ``"9.0"``.
        gpu: the GPU's name.
    """

    tensorrt: str
    compute_capability: str
    gpu: str

    @classmethod
    def current(cls, index: int = 0) -> Machine:
        """Identify this machine, with the GPU of the given number.

        Raises:
            GranAlignError: there is no such GPU, or no driver that fits.
            MissingExtraError: TensorRT or CuPy is not installed.
        """
        trt, cupy = libraries()
        try:
            properties = cupy.cuda.runtime.getDeviceProperties(index)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise GranAlignError(
                f"GPU {index} cannot be opened ({one_line(error)}); check nvidia-smi and the "
                f"number in device 'tensorrt:<number>'"
            ) from None
        capability = f"{properties['major']}.{properties['minor']}"
        return cls(trt.__version__, capability, properties["name"].decode())

    @property
    def slug(self) -> str:
        """A string for file names."""
        words = [f"tensorrt-{self.tensorrt}", f"sm{self.compute_capability}", self.gpu]
        return re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower())

    def differences(self, other: Machine) -> list[str]:
        """List how another machine differs, as ``<name> <other's>, expected <this one's>``."""
        expected, got = asdict(self), asdict(other)
        return [
            f"{name.replace('_', ' ')} {got[name]!r}, expected {expected[name]!r}"
            for name in expected
            if expected[name] != got[name]
        ]
