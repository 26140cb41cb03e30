"""Encoders at fixed batch sizes on CUDA: a whole run as one launch, over buffers that stay.

A small encoder's run is some hundred launches, which take the host longer than the GPU needs for
them. ONNX Runtime captures them as a CUDA graph (its provider option ``enable_cuda_graph``), one
for each shape, which its run option ``gpu_graph_id`` names; inputs and outputs must then lie where
they lay at the capture. None of this has met a GPU yet: results are tested with ONNX Runtime's CPU
provider, which takes the same calls and captures nothing, captures with the one for CUDA over a
runtime that computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from granalign_fast.errors import GranAlignError

from .array_device import Array, ArrayDevice
from .binding import on_host, run_bound
from .onnx_run import NO_GRAPH, Arrays, BoundRun, refusals, run_options
from .shapes import runs

_SLOTS = 64
"""Shapes that are captured; a batch size and a length of text are a shape. Later ones run plainly:
ONNX Runtime's CUDA provider has no way to forget a graph."""


class _Slot(NamedTuple):
    """One shape: its buffers, and the runs that are bound to them."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    run: BoundRun


class GraphRun:
    """Calls of an encoder, from the second of a shape on as a CUDA graph. Threads may share it.

    A request of any number of rows is cut as `profiles.runs` says; what a run lacks is filled up
    with copies of its last row, and cut off again. The first run of a shape is a plain one, of just
    the rows that there are: most lengths of text come once. The second is captured. Where a session
    cannot be captured, all runs are plain, on a session that need not be.

    Args:
        name: of the model, for messages.
        session: an `onnxruntime.InferenceSession` with ``enable_cuda_graph``.
        batches: sizes of runs, ascending.
        device: of the buffers, without a stream: ONNX Runtime captures on its own.
        plainly: makes a session without graphs, for when capturing fails.

    Attributes:
        refused: why nothing is captured any more; None while it is.
    """

    def __init__(
        self,
        name: str,
        session: Any,
        batches: Sequence[int],
        device: ArrayDevice,
        plainly: Callable[[], Any],
    ) -> None:
        self.name = name
        self.session = session
        self.refused: str | None = None
        self._batches = tuple(batches)
        self._device = device
        self._target = ("cpu", 0) if device.index is None else ("cuda", device.index)
        self._plainly = plainly
        self._outputs = [output.name for output in session.get_outputs()]
        self._slots: dict[Any, _Slot] = {}
        self._seen: dict[Any, dict[str, tuple[tuple[int, ...], Any]]] = {}
        self._plain_options = run_options(NO_GRAPH)
        # ONNX Runtime keeps a graph for the thread that captured it, and runs no two at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"cuda-graphs-{name}")

    @property
    def captured(self) -> int:
        """How many shapes run as a graph."""
        return sum(slot.run.captured for slot in self._slots.values())

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        """Run it on arrays with as many rows as each other; the same kind comes back."""
        rows = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        if len(rows) != 1:
            raise GranAlignError(
                f"{self.name}: got arrays of {sorted(rows)} rows, expected as many in each"
            )
        from_host = all(map(on_host, arrays.values()))
        if not from_host:  # what fills them is on this thread's stream, not on the other's
            with self._device.guarded():
                self._wait()
        return self._thread.submit(self._run, arrays, rows.pop(), from_host).result()

    def _run(self, arrays: Arrays, rows: int, from_host: bool) -> dict[str, Any]:
        results: dict[str, Any] = {}
        start = 0
        with self._device.activate(), refusals(self.name):
            # Without rows there is still a result of none, whose shape only a run can tell.
            for used, batch in runs(rows, self._batches) or [(0, self._batches[0])]:
                piece = {name: array[start : start + used] for name, array in arrays.items()}
                outputs = self._piece(piece, used, batch)
                with self._device.guarded():
                    for name, found in outputs.items():
                        if name not in results:
                            empty = np.empty if from_host else self._device.xp.empty
                            results[name] = empty((rows, *found.shape[1:]), found.dtype)
                        # Copied: the next run, captured or not, may write to the same memory.
                        part = self._device.to_host(found) if from_host else found
                        results[name][start : start + used] = part
                    self._wait()
                start += used
        return results

    def _piece(self, arrays: Arrays, used: int, batch: int) -> dict[str, Array]:
        """One run; what it gives for the first `used` rows."""
        key = (batch, *((name, array.shape[1:], array.dtype) for name, array in arrays.items()))
        with self._device.guarded():
            slot = self._slots.get(key)
            if slot is None and used and key in self._seen and not self.refused:
                slot = self._slot(key, batch, arrays)
            if slot is None:
                return self._plain(key, arrays)
            self._fill(slot, arrays, used, batch)
        if slot.run.captured:
            slot.run()
        else:
            try:
                slot.run.capture(len(self._slots))
            except GranAlignError as error:
                with self._device.guarded():
                    self._give_up(error)
                    return self._plain(key, arrays)
        return {name: output[:used] for name, output in slot.outputs.items()}

    def _fill(self, slot: _Slot, arrays: Arrays, used: int, batch: int) -> None:
        """Bring the rows of a run to where its graph reads them."""
        for name, array in arrays.items():
            buffer = slot.inputs[name]
            if self._device.index is not None and on_host(array):
                buffer[:used].set(np.ascontiguousarray(array))
            else:
                buffer[:used] = array
            if used < batch:
                buffer[used:] = buffer[used - 1]
        self._wait()

    def _plain(self, key: Any, arrays: Arrays) -> dict[str, Array]:
        """A run without a graph; it tells what the outputs of a shape are."""
        here = {name: self._device.put(array) for name, array in arrays.items()}
        options = None if self.refused else self._plain_options
        if not all(len(array) for array in here.values()):
            one = {n: self._device.xp.zeros((1, *a.shape[1:]), a.dtype) for n, a in here.items()}
            found = run_bound(self.session, one, self._device.xp, *self._target, options=options)
            return {name: array[:0] for name, array in found.items()}
        found = run_bound(self.session, here, self._device.xp, *self._target, options=options)
        self._seen[key] = {name: (array.shape[1:], array.dtype) for name, array in found.items()}
        return found

    def _slot(self, key: Any, batch: int, arrays: Arrays) -> _Slot | None:
        """The buffers of a shape, made now; None where there are enough."""
        if len(self._slots) >= _SLOTS:
            return None
        empty = self._device.xp.empty
        inputs = {name: empty((batch, *a.shape[1:]), a.dtype) for name, a in arrays.items()}
        outputs = {
            name: empty((batch, *rest), dtype) for name, (rest, dtype) in self._seen[key].items()
        }
        run = BoundRun(
            *(self.name, self.session, inputs, {n: outputs[n] for n in self._outputs}),
            device=self._target,
            queued=False,
            capturable=True,
        )
        slot = _Slot(inputs, outputs, run)
        self._slots[key] = slot
        return slot

    def _give_up(self, error: GranAlignError) -> None:
        """Go on without graphs, on another session: a failed capture leaves this one unusable."""
        self.refused = str(error)
        self._slots.clear()
        self.session = self._plainly()

    def _wait(self) -> None:
        if self._device.index is not None:
            self._device.xp.cuda.get_current_stream().synchronize()
