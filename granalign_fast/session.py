"""One model file on the device that was asked for, or an error; never another device.

ONNX Runtime runs it, or TensorRT where `granalign export tensorrt` has built an engine of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .cache import default_cache
from .device import CUDA
from .device import Device as Device
from .engine_stamp import ENGINE_FOLDER, engine_path
from .errors import GranAlignError, MissingExtraError
from .loading import Loader
from .models import read_json, sha256_of
from .node_profile import NodeRun, read_profile
from .onnx_run import Arrays, BoundRun, OnnxRun, Run
from .profiles import GraphShapes, Profile, graph_shapes
from .tensorrt_library import Machine


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

    On the device ``"cuda"`` an exported encoder runs at fixed batch sizes, each as a CUDA graph
    from its second run on, or plainly where that cannot be; see `cuda_graphs`.

    Args:
        path: the ``.onnx`` file.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        threads: CPU threads within one call; None leaves it to ONNX Runtime.
        memory_limit_bytes: of ONNX Runtime's arena on a GPU, which then has the weights and what a
            run computes; CUDA's own memory is not in it, nor are arrays of CuPy's, such as a static
            cache. None for no limit.
        stream: a `cupy.cuda.Stream`: runs on CuPy's arrays are queued on it and nothing waits for
            them. Whoever uses what comes back does it on this stream, or after it.
        capturable: allow runs that `bind` makes to become CUDA graphs, on a GPU with a `stream`.
        profile: record which provider runs each node, for `nodes`.

    Attributes:
        inputs: names of what it takes.
        outputs: names of what it gives.
        backend: what runs it: ``"TensorRT engine"`` or the name of ONNX Runtime's provider.
        precision: of the engine, where one runs; None where the file's own counts.
        capturable: whether runs that `bind` makes can become CUDA graphs.

    Raises:
        GranAlignError: the file is missing or corrupt, or the device cannot be had.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    backend: str
    precision: str | None = None
    capturable: bool

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        memory_limit_bytes: int | None = None,
        stream: Any = None,
        capturable: bool = False,
        profile: bool = False,
    ) -> None:
        self.path = Path(path)
        self._memory_limit = memory_limit_bytes
        self._stream = stream
        self._profile = profile
        self._run: Run | None
        self._refused: str | None = None
        self.capturable = capturable and not profile
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
        self._run = engine
        self.capturable = False
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
        providers, most, stream = [(wanted.provider, wanted.options())], None, None
        graphs: tuple[int, ...] | None = None
        if wanted.kind == "tensorrt":
            providers, most = _tensorrt_providers(self.path, wanted, onnxruntime.__version__)
        if wanted.kind != "cpu":
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip put them
        if providers[0][0] == CUDA:
            stream = self._stream
            if wanted.kind == "cuda" and stream is None and not self._profile:
                graphs = _fixed_batches(self.path)

        # Without a way back to this object: a cycle would keep the weights when it goes.
        self._loader = Loader(
            *(self.path, wanted, tuple(providers), threads, self._memory_limit, stream),
            self._profile,
        )
        self._most = most
        session = None
        self.capturable = self.capturable and stream is not None
        if graphs is not None or self.capturable:
            try:
                session = self._loader.load(graphs=True)
            except GranAlignError as error:  # such as control flow, or a node on the CPU
                self._refused, graphs, self.capturable = str(error), None, False
        session = self._loader.load() if session is None else session
        self.backend = providers[0][0]
        if self.backend not in session.get_providers():
            raise GranAlignError(
                f"device {device!r}: ONNX Runtime fell back to {session.get_providers()}; "
                f"install the extra [{wanted.extra}] and a driver that fits it, or ask for 'cpu'"
            )
        self.inputs = tuple(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())
        if graphs is None:
            self._run = self._plain(session)
            return
        from .cuda_graphs import GraphRun
        from .place import Place

        place = Place(_cupy(wanted, device), wanted.index or 0)
        self._run = GraphRun(self.path.name, session, graphs, place, self._loader.load)

    def _plain(self, session: Any) -> OnnxRun:
        index, stream = self._loader.wanted.index or 0, self._loader.stream
        return OnnxRun(self.path.name, session, self.outputs, self._most, index, stream)

    @property
    def captured_graphs(self) -> int:
        """How many shapes run as a CUDA graph by now."""
        return int(getattr(self._run, "captured", 0))

    @property
    def graphs_refused(self) -> str | None:
        """Why a model on CUDA runs without graphs; None where it does not."""
        return self._refused or getattr(self._run, "refused", None)

    def bind(self, inputs: Arrays, outputs: Arrays) -> BoundRun:
        """Runs of it on these arrays, again and again; see `BoundRun`.

        Not of an engine, nor of an encoder on a GPU, which have arrays of their own.
        """
        run = self._ready()
        assert isinstance(run, OnnxRun)
        return run.bind(inputs, outputs, capturable=self.capturable)

    def give_up_graphs(self, why: str) -> None:
        """Load the model once more, not to be captured: a failed capture leaves it unusable.

        What was bound belongs to what was loaded before, and keeps it in memory.
        """
        self._refused, self.capturable = why, False
        self._run = None  # else the weights would be in memory twice meanwhile
        self._ready()

    def _ready(self) -> Run:
        """What runs it; loaded again where that has failed the last time."""
        if self._run is None:
            self._run = self._plain(self._loader.load())
        return self._run

    def nodes(self) -> list[NodeRun]:
        """Every node that has run since the session was made, and what ran it; ends recording.

        Raises:
            GranAlignError: the session was not made with `profile`.
        """
        if not self._profile:
            raise GranAlignError(
                f"{self.path.name}: got no profile, expected a session made with profile=True, "
                f"asked once"
            )
        self._profile = False
        assert isinstance(self._run, OnnxRun)
        path = Path(self._run.session.end_profiling())
        try:
            return read_profile(path)
        finally:
            shutil.rmtree(path.parent)

    def __call__(self, **arrays: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model on one array per input; one array per output comes back."""
        if arrays.keys() != set(self.inputs):
            raise GranAlignError(
                f"{self.path.name}: got inputs {sorted(arrays)}, expected {sorted(self.inputs)}"
            )
        return self._ready()(arrays)


def _tensorrt_providers(
    path: Path, wanted: Device, version: str
) -> tuple[list[tuple[str, dict[str, str]]], Profile | None]:
    """ONNX Runtime's providers for the device ``tensorrt``, and the bounds of shapes.

    What TensorRT does not take runs by CUDA: single operators, or a whole graph that is not its.
    """
    cuda = [(CUDA, wanted.options())]
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


def _fixed_batches(path: Path) -> tuple[int, ...] | None:
    """The batch sizes of an exported encoder; None of any other graph."""
    from .cuda_graphs import fixed_batches

    manifest = path.parent / "manifest.json"
    if not manifest.is_file():
        return None
    record = read_json(manifest)
    return fixed_batches(record, path.name) if isinstance(record, dict) else None


def _cupy(wanted: Device, device: str) -> Any:
    try:
        import cupy
    except ImportError:
        raise MissingExtraError(f"device {device!r}", wanted.extra) from None
    return cupy


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
