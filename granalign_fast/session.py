"""One model file on the device that was asked for, or an error; never another device.

ONNX Runtime runs it, or TensorRT where `granalign export tensorrt` has built an engine of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .binding import run_bound
from .cache import default_cache
from .engine_stamp import ENGINE_FOLDER, engine_path
from .errors import GranAlignError, MissingExtraError
from .models import one_line, sha256_of
from .profiles import GraphShapes, Profile, graph_shapes
from .tensorrt_library import Machine

Arrays = Mapping[str, Any]
"""By name; `numpy.ndarray`, or `cupy.ndarray` where `Session` says so."""


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

    On the device ``"tensorrt"`` an encoder runs by the engine that `granalign export tensorrt` has
    built beside the file; where there is none, by ONNX Runtime's TensorRT provider, which builds
    its own when the session is made (minutes; kept in the cache folder). An engine that does not
    fit is an error, not a reason to take the other way. All shapes are known by then: a request
    never waits for a build. Graphs that are not TensorRT's to run, such as decoders, run on the
    same GPU by CUDA. On a GPU CuPy's arrays are taken as well, where they lie, and the same kind
    comes back.

    Args:
        path: the ``.onnx`` file.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        threads: CPU threads within one call; None leaves it to ONNX Runtime.

    Attributes:
        inputs: names of what it takes.
        outputs: names of what it gives.
        backend: what runs it: ``"TensorRT engine"`` or the name of ONNX Runtime's provider.
        precision: of the engine, where one runs; None where the file's own counts.

    Raises:
        GranAlignError: the file is missing or corrupt, or the device cannot be had.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    backend: str
    precision: str | None = None

    def __init__(
        self, path: str | Path, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        self.path = Path(path)
        wanted = Device.parse(device)
        if threads is not None and threads < 1:
            raise GranAlignError(f"threads: got {threads}, expected at least 1, or None")
        if wanted.kind != "tensorrt" or not self._open_engine(wanted):
            self._open_onnx(wanted, device, threads)

    def _open_engine(self, wanted: Device) -> bool:
        """Load the engine beside the file, if there is one."""
        path = engine_path(self.path)
        if not path.exists():
            return False
        from .engine import Engine

        engine = Engine(path, self.path.parent, device=wanted.index or 0)
        self._run: Callable[[Arrays], dict[str, Any]] = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.backend, self.precision = "TensorRT engine", engine.stamp.precision
        return True

    def _open_onnx(self, wanted: Device, device: str, threads: int | None) -> None:
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
        providers, most = [(wanted.provider, wanted.options())], None
        if wanted.kind == "tensorrt":
            providers, most = _tensorrt_providers(self.path, wanted, onnxruntime.__version__)
        if wanted.kind != "cpu":
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
        try:
            session = onnxruntime.InferenceSession(self.path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise GranAlignError(
                f"{self.path}: ONNX Runtime cannot load it ({one_line(error)}); "
                f"export the model again"
            ) from None
        self.backend = providers[0][0]
        if self.backend not in session.get_providers():
            raise GranAlignError(
                f"device {device!r}: ONNX Runtime fell back to {session.get_providers()}; "
                f"install the extra [{wanted.extra}] and a driver that fits it, or ask for 'cpu'"
            )
        self.inputs = tuple(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())
        self._run = _OnnxRun(self.path.name, session, self.outputs, most, wanted.index or 0)

    def __call__(self, **arrays: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model on one array per input; one array per output comes back."""
        if arrays.keys() != set(self.inputs):
            raise GranAlignError(
                f"{self.path.name}: got inputs {sorted(arrays)}, expected {sorted(self.inputs)}"
            )
        return self._run(arrays)


@dataclass(frozen=True)
class _OnnxRun:
    """A call of ONNX Runtime, in pieces where shapes have bounds.

    Beyond them its TensorRT provider would build another engine in the middle of a request.
    """

    name: str
    session: Any
    outputs: tuple[str, ...]
    span: Profile | None
    device: int = 0

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        if self.span is None:
            return self._call(arrays)
        rows = min((array.shape[0] for array in arrays.values()), default=0)
        for name, bounds in self.span.items():
            array = arrays[name]
            if array.shape[0] != rows or not bounds.admits((1, *array.shape[1:])):
                raise GranAlignError(
                    f"{self.name}: got {name} of shape {array.shape}, expected {rows} rows within "
                    f"{bounds}; export the model again for other shapes"
                )
        if not rows:  # none in, none out; but TensorRT takes no fewer than one
            one = {name: np.zeros((1, *a.shape[1:]), a.dtype) for name, a in arrays.items()}
            return {name: result[:0] for name, result in self._call(one).items()}
        most = next(iter(self.span.values())).most[0]
        pieces = [
            self._call({name: array[start : start + most] for name, array in arrays.items()})
            for start in range(0, rows, most)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in self.outputs}

    def _call(self, arrays: Arrays) -> dict[str, Any]:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                import cupy

                return run_bound(self.session, arrays, cupy, "cuda", self.device)
            results = self.session.run(None, dict(arrays))
        except InvalidArgument as error:
            raise GranAlignError(f"{self.name}: wrong input ({one_line(error)})") from None
        return dict(zip(self.outputs, results, strict=True))


def _tensorrt_providers(
    path: Path, wanted: Device, version: str
) -> tuple[list[tuple[str, dict[str, str]]], Profile | None]:
    """ONNX Runtime's providers for the device ``tensorrt``, and the bounds of shapes.

    What TensorRT does not take runs by CUDA: single operators, or a whole graph that is not its.
    """
    cuda = [("CUDAExecutionProvider", wanted.options())]
    shapes = graph_shapes(path)
    if shapes is None or not shapes.by_provider:
        return cuda, None
    # Loads TensorRT's libraries too, which ONNX Runtime does not find by itself.
    machine = Machine.here(wanted.index or 0)
    # The provider names its engines by a graph's nodes: other weights, another version of
    # TensorRT or of itself would meet the same name. So each has a folder of its own.
    cache = default_cache() / ENGINE_FOLDER / f"onnxruntime-{version}-{machine.slug}"
    options = provider_options(shapes, cache / sha256_of(path)[:16], cache)
    return [(wanted.provider, wanted.options() | options), *cuda], shapes.span


def provider_options(shapes: GraphShapes, engines: Path, timings: Path) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider; those that say shapes bar any other.

    Args:
        shapes: of the graph.
        engines: the folder of its engines, made if it is not there.
        timings: the folder of what the builder has measured, likewise.
    """
    try:
        engines.mkdir(parents=True, exist_ok=True)
        timings.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GranAlignError(f"{engines}: cannot be made ({error.strerror or error})") from None
    options = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(timings),
        "trt_fp16_enable": str(shapes.precision == "fp16"),
    }
    for key, bound in (("min", "least"), ("opt", "usual"), ("max", "most")):
        options[f"trt_profile_{key}_shapes"] = ",".join(
            f"{name}:{'x'.join(map(str, getattr(bounds, bound)))}"
            for name, bounds in shapes.span.items()
        )
    return options
