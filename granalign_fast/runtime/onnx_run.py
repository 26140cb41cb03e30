"""Calls of ONNX Runtime: plain ones, those in pieces, and those on arrays of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line

from .binding import bind_input, bind_output, on_host, queueing, run_bound
from .capture_lock import CAPTURE_LOCK
from .shapes import Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

Arrays = Mapping[str, Any]
"""By name; `numpy.ndarray`, or `cupy.ndarray` where `Session` says so."""
Run = Callable[[Arrays], dict[str, Any]]

GRAPH_ID, NO_GRAPH = "gpu_graph_id", "-1"
"""ONNX Runtime's option of a run: the number of its CUDA graph, from 1 on, as 0 is that of a run
that names none."""


@dataclass(frozen=True)
class OnnxRun:
    """A call of ONNX Runtime, in pieces where shapes have bounds.

    Beyond them its TensorRT provider would build another engine in the middle of a request.

    Attributes:
        name: of the model, for messages.
        session: an `onnxruntime.InferenceSession`.
        outputs: their names.
        span: bounds of shapes; None where there are none.
        device: the GPU's number.
        stream: the `cupy.cuda.Stream` that the session was given, on which it then queues its work
            and waits for nothing; None where it has its own.
    """

    name: str
    session: Any
    outputs: tuple[str, ...]
    span: Profile | None
    device: int = 0
    stream: Any = None

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        """Run it."""
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
        with refusals(self.name), CAPTURE_LOCK.shared():
            if not all(map(on_host, arrays.values())):
                return self._on_gpu(arrays)
            results = self.session.run(None, dict(arrays))
        return dict(zip(self.outputs, results, strict=True))

    def _on_gpu(self, arrays: Arrays) -> dict[str, Any]:
        import cupy

        with cupy.cuda.Device(self.device):
            if self.stream is None:
                return run_bound(self.session, arrays, cupy, "cuda", self.device)
            with self.stream:
                return run_bound(
                    *(self.session, arrays, cupy, "cuda", self.device),
                    options=self._queueing,
                    queued=True,
                )

    def bind(self, inputs: Arrays, outputs: Arrays, *, capturable: bool) -> BoundRun:
        """Runs on these arrays; see `BoundRun`."""
        queued = self.stream is not None
        return BoundRun(
            *(self.name, self.session, inputs, outputs),
            device=("cuda", self.device) if queued else ("cpu", 0),
            queued=queued,
            capturable=capturable,
        )

    @cached_property
    def _queueing(self) -> Any:
        return queueing()


class BoundRun:
    """Runs of a session on arrays that stay where they are: of one shape, again and again.

    What is filled into the inputs counts at the next run. An array may be input and output at once,
    where the graph writes in place.

    Args:
        name: of the model, for messages.
        session: an `onnxruntime.InferenceSession`.
        inputs: one for each input, contiguous.
        outputs: one for each output, likewise.
        device: ``"cpu"`` or ``"cuda"``, and its number.
        queued: on a GPU, queue runs on the session's stream and wait for nothing.
        capturable: whether the session was made for CUDA graphs.

    Attributes:
        captured: whether it is a CUDA graph by now.
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
        self._kept = [
            bind(self._binding, name, array, *device)
            for bind, arrays in ((bind_input, inputs), (bind_output, outputs))
            for name, array in arrays.items()
        ]
        self._options = run_options(NO_GRAPH if capturable else None, queued=queued)

    def __call__(self) -> None:
        """Run it."""
        with refusals(self._name), CAPTURE_LOCK.shared():
            self._session.run_with_iobinding(self._binding, self._options)

    def capture(self, graph: int) -> None:
        """Run it and keep the run as a CUDA graph, which later runs are.

        Args:
            graph: a number, from 1 on, that no other graph of the session has.

        Raises:
            GranAlignError: it cannot be one; the session is of no use any more.
        """
        options = run_options(str(graph), queued=self._queued)
        try:
            with CAPTURE_LOCK.exclusive():
                self._session.run_with_iobinding(self._binding, options)
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise GranAlignError(f"{self._name}: cannot be captured ({one_line(error)})") from None
        self.captured, self._options = True, options


def run_options(graph: str | None, *, queued: bool = False) -> Any:
    """`onnxruntime.RunOptions` of a run.

    Args:
        graph: the number of its CUDA graph, or `NO_GRAPH`; None for a session without.
        queued: whether it returns when all its work is in the session's stream.
    """
    from onnxruntime import RunOptions

    options = queueing() if queued else RunOptions()
    if graph is not None:
        options.add_run_config_entry(GRAPH_ID, graph)
    return options


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Turn what ONNX Runtime says of a run that it cannot do into our own error."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    try:
        yield
    except errors.InvalidArgument as error:
        raise GranAlignError(f"{name}: wrong input ({one_line(error)})") from None
    except (RuntimeError, errors.RuntimeException, errors.Fail, errors.EPFail) as error:
        # Bound runs say RuntimeError of everything, wrong inputs too.
        raise GranAlignError(
            f"{name}: ONNX Runtime cannot run it ({one_line(error)}); check the input, and on a "
            f"GPU its free memory, of which fewer rows at a time take less"
        ) from None
