"""One ONNX Runtime session on the device that was asked for, or an error; never another device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import GranAlignError, MissingExtraError
from .models import one_line


@dataclass(frozen=True)
class Device:
    """A device as ONNX Runtime knows it, and the extra that brings it."""

    kind: str
    provider: str
    extra: str
    index: int | None = None

    @classmethod
    def parse(cls, name: str) -> Device:
        """``cpu``, ``cuda``, ``cuda:1``, ``tensorrt`` or ``tensorrt:1``."""
        match = re.fullmatch(r"([a-z]+)(?::(\d+))?", name) if isinstance(name, str) else None
        kind, index = match.groups() if match else (None, None)
        if kind not in _PROVIDERS or (kind == "cpu" and index):
            raise GranAlignError(
                f"device {name!r}: expected 'cpu', 'cuda', 'cuda:<number>' or 'tensorrt'"
            )
        provider, extra = _PROVIDERS[kind]
        return cls(kind, provider, extra, int(index) if index else None)

    def options(self) -> dict[str, str]:
        """Provider options."""
        return {} if self.index is None else {"device_id": str(self.index)}


_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
    "tensorrt": ("TensorrtExecutionProvider", "tensorrt"),
}


class Session:
    """An ONNX file, loaded: ``session(input_ids=ids)["embeddings"]``.

    Any number of threads may call one session at the same time.

    Args:
        path: the ``.onnx`` file.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        threads: CPU threads within one call; None leaves it to ONNX Runtime.

    Raises:
        GranAlignError: the file is missing or corrupt, or the device cannot be had.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(
        self, path: str | Path, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        self.path = Path(path)
        wanted = Device.parse(device)
        if threads is not None and threads < 1:
            raise GranAlignError(f"threads: got {threads}, expected at least 1, or None")
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("running a model", wanted.extra) from None
        if wanted.provider not in onnxruntime.get_available_providers():
            raise MissingExtraError(f"device {device!r}", wanted.extra)
        if not self.path.is_file():
            raise GranAlignError(f"{self.path}: no such file; expected an ONNX model")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings would not name the model
        if threads is not None:
            options.intra_op_num_threads = threads
        if wanted.kind != "cpu":
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
        try:
            self._session = onnxruntime.InferenceSession(
                self.path, options, providers=[(wanted.provider, wanted.options())]
            )
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise GranAlignError(
                f"{self.path}: ONNX Runtime cannot load it ({one_line(error)}); "
                f"export the model again"
            ) from None
        if wanted.provider not in self._session.get_providers():
            raise GranAlignError(
                f"device {device!r}: ONNX Runtime fell back to {self._session.get_providers()}; "
                f"install the extra [{wanted.extra}] and a driver that fits it, or ask for 'cpu'"
            )
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def __call__(self, **arrays: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model on one array per input; one array per output comes back."""
        if arrays.keys() != set(self.inputs):
            raise GranAlignError(
                f"{self.path.name}: got inputs {sorted(arrays)}, expected {sorted(self.inputs)}"
            )
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            results = self._session.run(None, arrays)
        except InvalidArgument as error:
            raise GranAlignError(f"{self.path.name}: wrong input ({one_line(error)})") from None
        return dict(zip(self.outputs, results, strict=True))
