"""One ONNX file on the device that was asked for, or an error; never on another device.

`open_session` chooses the class by what runs the file: `OnnxSession` for ONNX Runtime,
`GraphSession` for an encoder as CUDA graphs, `EngineSession` for a TensorRT engine.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.files import default_cache, sha256_of

from .array_device import ArrayDevice
from .cuda_graphs import GraphRun
from .device import CUDA, Device
from .engine_stamp import ENGINE_FOLDER, engine_path
from .node_profile import NodeRun, read_profile
from .onnx_run import Arrays, BoundRun, OnnxRun
from .session_loader import SessionLoader
from .shapes import GraphContract, GraphShapes, Profile
from .tensorrt_library import Machine


class Session(ABC):
    """An ONNX file, loaded: ``session(input_ids=ids)["embeddings"]``.

    Any number of threads may call one session at the same time. On a GPU, CuPy arrays are also
    accepted; the outputs are then CuPy arrays too.

    Attributes:
        path: the ``.onnx`` file.
        inputs: names of the inputs.
        outputs: names of the outputs.
        backend: ``"TensorRT engine"``, or the name of ONNX Runtime's provider.
        precision: of a TensorRT engine; None where the file's own precision counts.
        capturable: whether runs that `bind` returns can become CUDA graphs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    backend: str
    precision: str | None = None
    capturable: bool = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def captured_graphs(self) -> int:
        """The number of shapes that run as a CUDA graph so far."""
        return 0

    @property
    def graphs_refused(self) -> str | None:
        """Why a model on CUDA runs without graphs; None where it does not."""
        return None

    def __call__(self, **arrays: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model on one array per input; returns one array per output.

        Raises:
            GranAlignError: the names are not those of the inputs, or the run fails.
        """
        if arrays.keys() != set(self.inputs):
            raise GranAlignError(
                f"{self.path.name}: got inputs {sorted(arrays)}, expected {sorted(self.inputs)}"
            )
        return self._call(arrays)

    @abstractmethod
    def _call(self, arrays: Arrays) -> dict[str, Any]:
        """Run the model on arrays whose names are right."""


class EngineSession(Session):
    """A TensorRT engine that `granalign export tensorrt` built beside the file."""

    backend = "TensorRT engine"

    def __init__(self, path: Path, device: int) -> None:
        super().__init__(path)
        from .engine import Engine

        self._run = Engine(engine_path(path), path.parent, device=device)
        self.inputs, self.outputs = self._run.inputs, self._run.outputs
        self.precision = self._run.stamp.precision

    def _call(self, arrays: Arrays) -> dict[str, Any]:
        return self._run(arrays)


class GraphSession(Session):
    """An encoder on CUDA at fixed batch sizes, each a CUDA graph from its second run on.

    Args:
        loader: loads the file.
        session: an `onnxruntime.InferenceSession` that can be captured.
        batches: sizes of runs, ascending.
        device: on which the buffers live.
    """

    def __init__(
        self, loader: SessionLoader, session: Any, batches: tuple[int, ...], device: ArrayDevice
    ) -> None:
        super().__init__(loader.path)
        self.backend = loader.providers[0][0]
        self.inputs, self.outputs = _names(session)
        # The loader, not this object: a reference cycle would keep the weights in memory.
        self._run = GraphRun(self.path.name, session, batches, device, loader.load)

    @property
    def captured_graphs(self) -> int:
        """The number of shapes that run as a CUDA graph so far."""
        return self._run.captured

    @property
    def graphs_refused(self) -> str | None:
        """Why the model runs without graphs; None where it does not."""
        return self._run.refused

    def _call(self, arrays: Arrays) -> dict[str, Any]:
        return self._run(arrays)


class OnnxSession(Session):
    """A file run by one of ONNX Runtime's providers, shape by shape as the arrays come.

    Args:
        loader: loads the file.
        capturable: whether `bind` shall return runs that can become CUDA graphs.
        span: bounds of shapes; larger requests are split. None where there are no bounds.
        refused: why CUDA graphs were given up before.
    """

    def __init__(
        self,
        loader: SessionLoader,
        *,
        capturable: bool = False,
        span: Profile | None = None,
        refused: str | None = None,
    ) -> None:
        super().__init__(loader.path)
        self._loader = loader
        self._span = span
        self._refused = refused
        self._profile = loader.profile
        session = None
        if capturable:
            try:
                session = loader.load(graphs=True)
            except GranAlignError as error:  # such as control flow, or a node on the CPU
                self._refused, capturable = str(error), False
        self.capturable = capturable
        session = loader.load() if session is None else session
        self.backend = loader.providers[0][0]
        _check_provider(loader, session)
        self.inputs, self.outputs = _names(session)
        self._run: OnnxRun | None = self._runner(session)

    def _runner(self, session: Any) -> OnnxRun:
        index, stream = self._loader.device.index or 0, self._loader.stream
        return OnnxRun(self.path.name, session, self.outputs, self._span, index, stream)

    @property
    def graphs_refused(self) -> str | None:
        """Why a model on CUDA runs without graphs; None where it does not."""
        return self._refused

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundRun:
        """Repeated runs of the model on these arrays; see `BoundRun`."""
        return self._ready().bind(inputs, outputs, capturable=self.capturable)

    def give_up_graphs(self, why: str) -> None:
        """Load the model again without CUDA graphs: a failed capture leaves it unusable.

        Runs that were bound before keep the old model in memory.
        """
        self._refused, self.capturable = why, False
        self._run = None  # otherwise the weights would be in memory twice meanwhile
        self._ready()

    def _ready(self) -> OnnxRun:
        """What runs the model; loaded again where loading failed the last time."""
        if self._run is None:
            self._run = self._runner(self._loader.load())
        return self._run

    def nodes(self) -> list[NodeRun]:
        """Every node that ran since the session was made, and its provider; ends the profile.

        Raises:
            GranAlignError: the session was not made with `profile`.
        """
        if not self._profile:
            raise GranAlignError(
                f"{self.path.name}: got no profile, expected a session made with profile=True, "
                f"asked once"
            )
        self._profile = False
        path = Path(self._ready().session.end_profiling())
        try:
            return read_profile(path)
        finally:
            shutil.rmtree(path.parent)

    def _call(self, arrays: Arrays) -> dict[str, Any]:
        return self._ready()(arrays)


def open_session(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    memory_limit_bytes: int | None = None,
    stream: Any = None,
    capturable: bool = False,
    profile: bool = False,
    contract: GraphContract | None = None,
) -> Session:
    """Load an ONNX file on a device.

    On the device ``"tensorrt"`` an encoder runs by the engine that `granalign export tensorrt`
    built beside the file. Without an engine, ONNX Runtime's TensorRT provider builds its own when
    the session is made (minutes; kept in the cache folder). An engine that does not fit is an
    error. All shapes are known by then, so a request never waits for a build. Graphs that TensorRT
    cannot run, such as decoders, run on the same GPU by CUDA.

    On the device ``"cuda"`` an exported encoder runs at fixed batch sizes, each as a CUDA graph
    from its second run on, or without graphs where that fails; see `cuda_graphs`.

    Args:
        path: the ``.onnx`` file.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        threads: CPU threads within one call; None leaves it to ONNX Runtime.
        memory_limit_bytes: of ONNX Runtime's arena on a GPU, which holds the weights and what a run
            computes. CUDA's own memory and CuPy's arrays, such as a static cache, are not in it.
            None for no limit.
        stream: a `cupy.cuda.Stream`: runs on CuPy's arrays are queued on it without waiting. Use
            the outputs on this stream, or after it.
        capturable: allow runs that `bind` returns to become CUDA graphs, on a GPU with a `stream`.
        profile: record which provider runs each node, for `OnnxSession.nodes`.
        contract: the shapes and batch sizes of an exported graph; None where they are not known.

    Raises:
        GranAlignError: the file is missing or corrupt, or the device cannot be had.
        MissingExtraError: the packages for the device are not installed.
    """
    path, wanted = Path(path), Device.parse(device)
    if threads is not None and threads < 1:
        raise GranAlignError(f"threads: got {threads}, expected at least 1, or None")
    if wanted.kind == "tensorrt" and engine_path(path).exists():
        return EngineSession(path, wanted.index or 0)
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("running a model", wanted.extra) from None
    if wanted.provider not in onnxruntime.get_available_providers():
        raise MissingExtraError(f"device {device!r}", wanted.extra)
    if not path.is_file():
        raise GranAlignError(f"{path}: no such file; expected an ONNX model")

    # Choose the providers; only TensorRT's needs to know the shapes.
    providers, span = [(wanted.provider, wanted.options())], None
    if wanted.kind == "tensorrt":
        shapes = contract.shapes() if contract else None
        providers, span = _tensorrt_providers(path, wanted, onnxruntime.__version__, shapes)
    if wanted.kind != "cpu":
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
    if providers[0][0] != CUDA:
        stream = None
    loader = SessionLoader(
        path, wanted, tuple(providers), threads, memory_limit_bytes, stream, profile
    )

    # An encoder on CUDA runs as graphs, if ONNX Runtime can capture it.
    refused = None
    if wanted.kind == "cuda" and stream is None and not profile and contract:
        batches = contract.batches()
        if batches is not None:
            try:
                session = loader.load(graphs=True)
            except GranAlignError as error:  # such as control flow, or a node on the CPU
                refused = str(error)
            else:
                _check_provider(loader, session)
                there = ArrayDevice(_cupy(wanted, device), wanted.index or 0)
                return GraphSession(loader, session, batches, there)
    capturable = capturable and stream is not None and not profile
    return OnnxSession(loader, capturable=capturable, span=span, refused=refused)


def _names(session: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs and of the outputs."""
    inputs = tuple(node.name for node in session.get_inputs())
    return inputs, tuple(node.name for node in session.get_outputs())


def _check_provider(loader: SessionLoader, session: Any) -> None:
    """Refuse a session for which ONNX Runtime took another provider than the wanted one."""
    if loader.providers[0][0] not in session.get_providers():
        raise GranAlignError(
            f"device {loader.device.name!r}: ONNX Runtime fell back to {session.get_providers()}; "
            f"install the extra [{loader.device.extra}] and a driver that fits it, or ask for 'cpu'"
        )


def _tensorrt_providers(
    path: Path, wanted: Device, version: str, shapes: GraphShapes | None
) -> tuple[list[tuple[str, dict[str, str]]], Profile | None]:
    """ONNX Runtime's providers for the device ``tensorrt``, and the bounds of shapes.

    What TensorRT cannot run goes to CUDA: single operators, or a whole graph.
    """
    cuda = [(CUDA, wanted.options())]
    if shapes is None or not shapes.by_provider:
        return cuda, None
    # Loads TensorRT's libraries too, which ONNX Runtime does not find by itself.
    machine = Machine.current(wanted.index or 0)
    # The provider names its engines by a graph's nodes: other weights, another version of
    # TensorRT or of itself would meet the same name. So each has a folder of its own.
    cache = default_cache() / ENGINE_FOLDER / f"onnxruntime-{version}-{machine.slug}"
    options = provider_options(shapes, cache / sha256_of(path)[:16], cache)
    return [(wanted.provider, wanted.options() | options), *cuda], shapes.span


def _cupy(wanted: Device, device: str) -> Any:
    try:
        import cupy
    except ImportError:
        raise MissingExtraError(f"device {device!r}", wanted.extra) from None
    return cupy


def provider_options(shapes: GraphShapes, engines: Path, timings: Path) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider; those that give shapes exclude any other.

    Args:
        shapes: of the graph.
        engines: the folder of its engines, made if it is not there.
        timings: the folder of what the builder has measured, made if it is not there.

    Raises:
        GranAlignError: a folder cannot be made.
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
