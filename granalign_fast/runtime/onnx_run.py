"""Call ONNX Runtime: on host or GPU arrays, split to fit bounds, or bound to fixed arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line

from .binding import bind_input, bind_output, on_host, queued_options, run_bound
from .capture_lock import CAPTURE_LOCK
from .shapes import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

Arrays = Mapping[str, Any]
"""Arrays by name: NumPy's, or on a GPU CuPy's (see `Session`)."""
Run = Callable[[Arrays], dict[str, Any]]

GRAPH_ID, NO_GRAPH = "gpu_graph_id", "-1"
"""ONNX Runtime's run option for the number of a CUDA graph, and its value for no graph.

Numbers of graphs start at 1: 0 is the default of a run without this option."""


@dataclass(frozen=True)
class OnnxRun:
    """Runs of an ONNX Runtime session; a request beyond the bounds is split.

    For shapes outside the bounds, ONNX Runtime's TensorRT provider would build another engine in
    the middle of a request.

    Attributes:
        name: the model's name, for messages.
        session: an `onnxruntime.InferenceSession`.
        outputs: names of the outputs.
        span: bounds of the inputs' shapes; None if there are no bounds.
        device: the GPU's number.
        stream: the `cupy.cuda.Stream` that the session was created with. Runs are then queued on it
            without waiting. None if the session has its own stream.
    """

    name: str
    session: Any
    outputs: tuple[str, ...]
    span: Profile | None
    device: int = 0
    stream: Any = None

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        """Run the session; return one array for each output.

        Raises:
            GranAlignError: a shape is out of bounds, or the run fails.
        """
        if self.span is None:
            return self._call(arrays)
        # Every input must have the same number of rows, and rows within the bounds.
        rows = min((array.shape[0] for array in arrays.values()), default=0)
        for name, bounds in self.span.items():
            array = arrays[name]
            if array.shape[0] != rows or not bounds.admits((1, *array.shape[1:])):
                raise GranAlignError(
                    f"{self.name}: got {name} of shape {array.shape}, expected {rows} rows within "
                    f"{bounds}; export the model again for other shapes"
                )
        # TensorRT takes no empty batch: run one row of zeros and return none of its outputs.
        if not rows:
            row = {name: np.zeros((1, *a.shape[1:]), a.dtype) for name, a in arrays.items()}
            return {name: result[:0] for name, result in self._call(row).items()}
        # Split the request into the largest batches that the bounds allow.
        most = next(iter(self.span.values())).most[0]
        parts = [
            self._call({name: array[start : start + most] for name, array in arrays.items()})
            for start in range(0, rows, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _call(self, arrays: Arrays) -> dict[str, Any]:
        """Run the session once, on the host's arrays or on a GPU's."""
        with onnx_errors(self.name), CAPTURE_LOCK.shared():
            if not all(map(on_host, arrays.values())):
                return self._call_on_gpu(arrays)
            results = self.session.run(None, dict(arrays))
        return dict(zip(self.outputs, results, strict=True))

    def _call_on_gpu(self, arrays: Arrays) -> dict[str, Any]:
        """Run the session on CuPy arrays; queued on its stream if it was given one."""
        import cupy

        with cupy.cuda.Device(self.device):
            if self.stream is None:
                return run_bound(self.session, arrays, cupy, "cuda", self.device)
            with self.stream:
                return run_bound(
                    *(self.session, arrays, cupy, "cuda", self.device),
                    options=self._options,
                    queued=True,
                )

    def bind(self, inputs: Arrays, outputs: Arrays, *, capturable: bool) -> BoundRun:
        """Bind a repeated run to these arrays; see `BoundRun`."""
        queued = self.stream is not None
        return BoundRun(
            *(self.name, self.session, inputs, outputs),
            device=("cuda", self.device) if queued else ("cpu", 0),
            queued=queued,
            capturable=capturable,
        )

    @cached_property
    def _options(self) -> Any:
        return queued_options()


class BoundRun:
    """A run of a session that is repeated on the same arrays, at fixed addresses and shapes.

    Each run reads the current values of the inputs. If the graph writes in place, one array may be
    both an input and an output.

    Args:
        name: the model's name, for messages.
        session: an `onnxruntime.InferenceSession`.
        inputs: one contiguous array for each input.
        outputs: one contiguous array for each output.
        device: ``"cpu"`` or ``"cuda"``, and the device's number.
        queued: on a GPU, queue runs on the session's stream without waiting.
        capturable: whether the session was created with ``enable_cuda_graph``.

    Attributes:
        captured: whether runs replay a CUDA graph.
    """

    def __init__(
        self,
        name: str,
        session: Any,
        inputs: Arrays,
        outputs: Arrays,
        *,
        device: tuple[str, int],
        queued: bool,
        capturable: bool,
    ) -> None:
        self.captured = False
        self._name = name
        self._session = session
        self._queued = queued
        self._binding = session.io_binding()
        # Keeps the arrays alive as long as the binding.
        self._bound = [
            bind(self._binding, name, array, *device)
            for bind, arrays in ((bind_input, inputs), (bind_output, outputs))
            for name, array in arrays.items()
        ]
        self._options = run_options(NO_GRAPH if capturable else None, queued=queued)

    def __call__(self) -> None:
        """Run once.

        Raises:
            GranAlignError: the run fails.
        """
        with onnx_errors(self._name), CAPTURE_LOCK.shared():
            self._session.run_with_iobinding(self._binding, self._options)

    def capture(self, graph: int) -> None:
        """Run once and capture the run as a CUDA graph, which later runs replay.

        Args:
            graph: the graph's number, 1 or more, unique in the session.

        Raises:
            GranAlignError: the run cannot be captured; the session is unusable from then on.
        """
        options = run_options(str(graph), queued=self._queued)
        try:
            with CAPTURE_LOCK.exclusive():
                self._session.run_with_iobinding(self._binding, options)
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise GranAlignError(f"{self._name}: cannot be captured ({one_line(error)})") from None
        self.captured, self._options = True, options


def run_options(graph: str | None, *, queued: bool = False) -> Any:
    """Return `onnxruntime.RunOptions` of a run.

    Args:
        graph: the number of its CUDA graph, or `NO_GRAPH`; None for a session without graphs.
        queued: whether the run returns once its work is in the session's stream.
    """
    from onnxruntime import RunOptions

    options = queued_options() if queued else RunOptions()
    if graph is not None:
        options.add_run_config_entry(GRAPH_ID, graph)
    return options


@contextmanager
def onnx_errors(name: str) -> Iterator[None]:
    """Convert the errors of ONNX Runtime's runs to `GranAlignError`, with the model's name."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    try:
        yield
    except errors.InvalidArgument as error:
        raise GranAlignError(f"{name}: wrong input ({one_line(error)})") from None
    except (RuntimeError, errors.RuntimeException, errors.Fail, errors.EPFail) as error:
        # Bound runs raise RuntimeError for every cause, wrong inputs included.
        raise GranAlignError(
            f"{name}: ONNX Runtime cannot run it ({one_line(error)}); check the input, and on a "
            f"GPU its free memory; smaller batches need less"
        ) from None
