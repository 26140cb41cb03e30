"""Load an ONNX file on exactly the requested device; if that fails, raise an error.

`open_session` chooses the class by the way the file is run: `OnnxSession` by ONNX Runtime,
`GraphSession` as CUDA graphs (encoders), `EngineSession` by a TensorRT engine.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.files import sha256_of

from .array_device import ArrayDevice
from .cache_folder import usable_cache
from .cuda_graphs import GraphRun
from .device import CUDA, Device
from .engine_stamp import ENGINE_FOLDER, engine_path
from .node_profile import NodeRun, read_profile
from .onnx_run import Arrays, BoundRun, OnnxRun
from .session_loader import SessionLoader
from .shapes import GraphContract, GraphShapes, Profile
from .tensorrt_library import Machine, check_provider_version


class Session(ABC):
    """A loaded ONNX file: ``session(input_ids=ids)["embeddings"]``.

    Any number of threads may call one session at the same time. On a GPU, CuPy arrays are also
    accepted; the outputs are then CuPy arrays too.

    Attributes:
        path: the ``.onnx`` file.
        inputs: names of the inputs.
        outputs: names of the outputs.
        backend: ``"TensorRT engine"``, or the name of ONNX Runtime's provider.
        precision: a TensorRT engine's precision; otherwise None: the file's own precision counts.
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
        """The number of shapes that run as a CUDA graph."""
        return 0

    @property
    def graphs_refused(self) -> str | None:
        """The reason why a model on CUDA runs without graphs; None if nothing was refused."""
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
        """Run the model on arrays whose names were checked."""


class EngineSession(Session):
    """A TensorRT engine that `granalign export tensorrt` built from the file."""

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
    """An encoder on CUDA at fixed batch sizes; a shape is a CUDA graph from its second run on.

    Args:
        loader: loads the file again if capturing fails.
        session: an `onnxruntime.InferenceSession` with CUDA graphs enabled.
        batches: batch sizes of runs, ascending.
        device: the device of the buffers.
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
        """The number of shapes that run as a CUDA graph."""
        return self._run.captured

    @property
    def graphs_refused(self) -> str | None:
        """The reason why the model runs without graphs; None if nothing was refused."""
        return self._run.refused

    def _call(self, arrays: Arrays) -> dict[str, Any]:
        return self._run(arrays)


class OnnxSession(Session):
    """A file that one of ONNX Runtime's providers runs, with arrays of any shape.

    Args:
        loader: loads the file.
        capturable: whether `bind` should return runs that can become CUDA graphs.
        span: bounds of the inputs' shapes; larger requests are split. None for no bounds.
        refused: the reason why CUDA graphs were given up before.
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
            except GranAlignError as error:  # for example control flow, or a node on the CPU
                self._refused, capturable = str(error), False
        self.capturable = capturable
        session = loader.load() if session is None else session
        self.backend = loader.providers[0][0]
        _check_provider(loader, session)
        self.inputs, self.outputs = _names(session)
        self._run: OnnxRun | None = self._runner(session)

    def _runner(self, session: Any) -> OnnxRun:
        """Wrap an `onnxruntime.InferenceSession`."""
        index, stream = self._loader.device.index or 0, self._loader.stream
        return OnnxRun(self.path.name, session, self.outputs, self._span, index, stream)

    @property
    def graphs_refused(self) -> str | None:
        """The reason why a model on CUDA runs without graphs; None if nothing was refused."""
        return self._refused

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundRun:
        """Bind a repeated run of the model to these arrays; see `BoundRun`."""
        return self._ready().bind(inputs, outputs, capturable=self.capturable)

    def give_up_graphs(self, why: str) -> None:
        """Load the model again, without CUDA graphs: a failed capture leaves it unusable.

        Runs that were bound before keep the old model in memory until they are dropped.
        """
        self._refused, self.capturable = why, False
        # Drop the old model first: otherwise the weights would be in memory twice for a while.
        self._run = None
        self._ready()

    def _ready(self) -> OnnxRun:
        """Return the model's runner; load the model if loading failed the last time."""
        if self._run is None:
            self._run = self._runner(self._loader.load())
        return self._run

    def nodes(self) -> list[NodeRun]:
        """End the profile; return every node that ran since the session was loaded.

        Raises:
            GranAlignError: the session was not loaded with `profile`, or this is the second call.
        """
        if not self._profile:
            raise GranAlignError(
                f"{self.path.name}: got no profile, expected a session loaded with profile=True; "
                f"read its nodes only once"
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
    lean: bool = False,
    contract: GraphContract | None = None,
) -> Session:
    """Load an ONNX file on a device.

    On the device ``"tensorrt"``, an encoder runs by the engine that `granalign export tensorrt`
    built from the file. If there is no engine, ONNX Runtime's TensorRT provider builds one while
    the session is loaded (this takes minutes; the cache folder keeps it). An engine that does not
    fit is an error. Either way the shapes are fixed before the first request, so no request waits
    for a build. Graphs that TensorRT cannot run, such as decoders, run by CUDA on the same GPU.

    On the device ``"cuda"``, an exported encoder runs at fixed batch sizes; each shape is a CUDA
    graph from its second run on. If it cannot be captured, it runs without graphs. See
    `cuda_graphs`.

    Args:
        path: the ``.onnx`` file.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        threads: CPU threads within one call; None leaves it to ONNX Runtime.
        memory_limit_bytes: limit of ONNX Runtime's arena on a GPU, which holds the weights and the
            intermediate results. It does not count CUDA's own memory and CuPy's arrays, such as a
            static key/value cache. None for no limit.
        stream: a `cupy.cuda.Stream` on which runs on CuPy arrays are queued without waiting. Use
            the outputs on this stream, or after it has been synchronised. Only ONNX Runtime's CUDA
            provider uses it.
        capturable: whether runs that `bind` returns may become CUDA graphs; needs a `stream`.
        profile: record which provider runs each node, for `OnnxSession.nodes`.
        lean: on a CPU, give memory back after each run, as `SessionLoader` says.
        contract: the shapes and batch sizes of an exported graph; None if they are not known.

    Raises:
        GranAlignError: the file is missing or corrupt, the device cannot be opened, or an engine
            does not fit.
        MissingExtraError: the packages for the device are not installed.
    """
    path, target = Path(path), Device.parse(device)
    if threads is not None and threads < 1:
        raise GranAlignError(f"threads: got {threads}, expected at least 1, or None")
    # A TensorRT engine runs without ONNX Runtime.
    if target.kind == "tensorrt" and engine_path(path).exists():
        return EngineSession(path, target.index or 0)
    # Everything else needs ONNX Runtime, with the provider for the device.
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("running a model", target.extra) from None
    if target.provider not in onnxruntime.get_available_providers():
        raise MissingExtraError(f"device {device!r}", target.extra)
    if not path.is_file():
        raise GranAlignError(f"{path}: no such file; expected an ONNX model")

    # Choose the providers; only TensorRT's needs to know the shapes.
    providers, span = [(target.provider, target.options())], None
    if target.kind == "tensorrt":
        shapes = contract.shapes() if contract else None
        providers, span = _tensorrt_providers(path, target, onnxruntime.__version__, shapes)
    if target.kind != "cpu":
        onnxruntime.preload_dlls()  # loads CUDA and cuDNN from pip's folders
    if providers[0][0] != CUDA:
        stream = None
    loader = SessionLoader(
        path, target, tuple(providers), threads, memory_limit_bytes, stream, profile, lean
    )

    # Run an encoder on CUDA as CUDA graphs, if ONNX Runtime can capture it.
    refused = None
    if target.kind == "cuda" and stream is None and not profile and contract:
        batches = contract.batches()
        if batches is not None:
            try:
                session = loader.load(graphs=True)
            except GranAlignError as error:  # for example control flow, or a node on the CPU
                refused = str(error)
            else:
                _check_provider(loader, session)
                buffers = ArrayDevice(_cupy(target, device), target.index or 0)
                return GraphSession(loader, session, batches, buffers)
    capturable = capturable and stream is not None and not profile
    return OnnxSession(loader, capturable=capturable, span=span, refused=refused)


def _names(session: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a session's inputs and of its outputs."""
    inputs = tuple(node.name for node in session.get_inputs())
    return inputs, tuple(node.name for node in session.get_outputs())


def _check_provider(loader: SessionLoader, session: Any) -> None:
    """Raise if ONNX Runtime silently fell back to another provider than the requested one."""
    if loader.providers[0][0] not in session.get_providers():
        raise GranAlignError(
            f"device {loader.device.name!r}: ONNX Runtime fell back to {session.get_providers()}; "
            f"install the extra [{loader.device.extra}] and a driver that fits it, or use 'cpu'"
        )


def _tensorrt_providers(
    path: Path, target: Device, version: str, shapes: GraphShapes | None
) -> tuple[list[tuple[str, dict[str, str]]], Profile | None]:
    """Return ONNX Runtime's providers for the device ``tensorrt``, and the bounds of the inputs.

    The CUDA provider runs what TensorRT cannot: single operators, or a whole graph.
    """
    cuda = [(CUDA, target.options())]
    if shapes is None or not shapes.by_provider:
        return cuda, None
    # This also loads TensorRT's libraries, which ONNX Runtime does not find by itself.
    machine = Machine.current(target.index or 0)
    check_provider_version(machine.tensorrt)
    # The provider names an engine by the graph's nodes only. Other weights, or another version of
    # TensorRT or ONNX Runtime, would find the same file. So each of these has its own folder.
    engines, timings = None, None
    if (cache := usable_cache(ENGINE_FOLDER)) is not None:
        timings = cache / f"onnxruntime-{version}-{machine.slug}"
        engines = timings / sha256_of(path)[:16]
    options = provider_options(shapes, engines, timings)
    return [(target.provider, target.options() | options), *cuda], shapes.span


def _cupy(target: Device, device: str) -> Any:
    """Import CuPy."""
    try:
        import cupy
    except ImportError:
        raise MissingExtraError(f"device {device!r}", target.extra) from None
    return cupy


def provider_options(
    shapes: GraphShapes, engines: Path | None, timings: Path | None
) -> dict[str, str]:
    """Return the options of ONNX Runtime's TensorRT provider, and create its folders.

    With these options the provider accepts no shape outside the bounds.

    Args:
        shapes: the shapes and the precision of the graph.
        engines: folder for the engines that the provider builds; None to keep none.
        timings: folder for the builder's timings of kernels, which speed up later builds; None to
            keep none.

    Raises:
        GranAlignError: a folder cannot be created.
    """
    options: dict[str, str] = {}
    for kind, folder in (("engine", engines), ("timing", timings)):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise GranAlignError(f"{folder}: cannot be created ({reason})") from None
        options |= {f"trt_{kind}_cache_enable": "True", f"trt_{kind}_cache_path": str(folder)}
    options["trt_fp16_enable"] = str(shapes.precision == "fp16")
    for key, bound in (("min", "least"), ("opt", "usual"), ("max", "most")):
        options[f"trt_profile_{key}_shapes"] = ",".join(
            f"{name}:{'x'.join(map(str, getattr(bounds, bound)))}"
            for name, bounds in shapes.span.items()
        )
    return options
