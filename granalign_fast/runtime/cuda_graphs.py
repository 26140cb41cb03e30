"""Run encoders on CUDA at fixed batch sizes, each run as one CUDA graph over fixed buffers.

A small encoder's run is about a hundred kernel launches, which take the host longer than the GPU
needs to compute them. A CUDA graph is one launch. ONNX Runtime captures one for each shape
(provider option ``enable_cuda_graph``; the run option ``gpu_graph_id`` names the graph). The inputs
and outputs of a replay must be at the addresses of the capture.

This code has not run on a GPU yet. Tests check the results with ONNX Runtime's CPU provider, which
takes the same calls and captures nothing. They check the captures with ONNX Runtime's CUDA provider
over a CUDA runtime that computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from granalign_fast.errors import GranAlignError

from .array_device import Array, ArrayDevice
from .binding import on_host, run_bound
from .onnx_run import NO_GRAPH, Arrays, BoundRun, onnx_errors, run_options
from .shapes import runs

_SLOTS = 64
"""Most shapes that are captured; a shape is a batch size and a text length. Later shapes run
without a graph: ONNX Runtime's CUDA provider cannot delete a graph, so none can be replaced."""


class _Slot(NamedTuple):
    """One shape: its buffers, and the run that is bound to them."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    run: BoundRun


class GraphRun:
    """An encoder's runs, as CUDA graphs from the second run of a shape on. Threads may share it.

    `shapes.runs` splits a request of any number of rows into runs of the batch sizes. A run with
    too few rows is padded with copies of its last row, and the padding's outputs are dropped.

    The first run of a shape is a plain run of the request's rows, without padding: most text
    lengths occur only once. The second run is captured. If a capture fails, all later runs are
    plain, on a session that was loaded without graphs.

    Args:
        name: the model's name, for messages.
        session: an `onnxruntime.InferenceSession` with ``enable_cuda_graph``.
        batches: batch sizes of runs, ascending.
        device: the device of the buffers, without a stream: ONNX Runtime captures on its own.
        load_plain: loads a session without graphs, for the case that capturing fails.

    Attributes:
        refused: why capturing failed; None while it has not.
    """

    def __init__(
        self,
        name: str,
        session: Any,
        batches: Sequence[int],
        device: ArrayDevice,
        load_plain: Callable[[], Any],
    ) -> None:
        self.name = name
        self.session = session
        self.refused: str | None = None
        self._batches = tuple(batches)
        self._device = device
        self._target = ("cpu", 0) if device.index is None else ("cuda", device.index)
        self._load_plain = load_plain
        self._outputs = [output.name for output in session.get_outputs()]
        self._slots: dict[Any, _Slot] = {}
        # For each shape that has run: the outputs' shapes without the batch axis, and their types.
        self._output_shapes: dict[Any, dict[str, tuple[tuple[int, ...], Any]]] = {}
        self._plain_options = run_options(NO_GRAPH)
        # ONNX Runtime ties a graph to the thread that captured it, and runs one graph at a time. So
        # all runs are on one thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"cuda-graphs-{name}")

    @property
    def captured(self) -> int:
        """The number of shapes that run as a graph."""
        return sum(slot.run.captured for slot in self._slots.values())

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        """Run the encoder on arrays with equal numbers of rows.

        Returns:
            One array for each output: NumPy's if all inputs are NumPy's, otherwise the device's.

        Raises:
            GranAlignError: the numbers of rows differ, or the run fails.
        """
        rows = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
        if len(rows) != 1:
            raise GranAlignError(
                f"{self.name}: got arrays of {sorted(rows)} rows, expected as many in each"
            )
        from_host = all(map(on_host, arrays.values()))
        if not from_host:
            # The arrays are filled on this thread's stream, which the other thread does not see.
            with self._device.guarded():
                self._wait()
        return self._thread.submit(self._run, arrays, rows.pop(), from_host).result()

    def _run(self, arrays: Arrays, rows: int, from_host: bool) -> dict[str, Any]:
        results: dict[str, Any] = {}
        start = 0
        with self._device.activate(), onnx_errors(self.name):
            # A request without rows still makes a run, which shows the shapes of the empty results.
            for used, batch in runs(rows, self._batches) or [(0, self._batches[0])]:
                part = {name: array[start : start + used] for name, array in arrays.items()}
                outputs = self._run_batch(part, used, batch)
                with self._device.guarded():
                    for name, output in outputs.items():
                        if name not in results:
                            empty = np.empty if from_host else self._device.xp.empty
                            results[name] = empty((rows, *output.shape[1:]), output.dtype)
                        # Copied, because the next run, captured or not, may overwrite the outputs.
                        copy = self._device.to_host(output) if from_host else output
                        results[name][start : start + used] = copy
                    self._wait()
                start += used
        return results

    def _run_batch(self, arrays: Arrays, used: int, batch: int) -> dict[str, Array]:
        """Run `used` rows at one batch size; return the outputs of these rows."""
        key = (batch, *((name, array.shape[1:], array.dtype) for name, array in arrays.items()))
        # Find the buffers of this shape. The second run of a shape allocates them.
        with self._device.guarded():
            slot = self._slots.get(key)
            if slot is None and used and key in self._output_shapes and not self.refused:
                slot = self._add_slot(key, batch, arrays)
            if slot is None:
                return self._run_plain(key, arrays)
            self._fill(slot, arrays, used, batch)
        # Replay the graph, or capture it. Not guarded: a capture takes the lock exclusively.
        if slot.run.captured:
            slot.run()
        else:
            try:
                slot.run.capture(len(self._slots))
            except GranAlignError as error:
                with self._device.guarded():
                    self._give_up(error)
                    return self._run_plain(key, arrays)
        return {name: output[:used] for name, output in slot.outputs.items()}

    def _fill(self, slot: _Slot, arrays: Arrays, used: int, batch: int) -> None:
        """Copy the rows of a run into the buffers that its graph reads, and pad them."""
        for name, array in arrays.items():
            buffer = slot.inputs[name]
            if self._device.index is not None and on_host(array):
                buffer[:used].set(np.ascontiguousarray(array))
            else:
                buffer[:used] = array
            if used < batch:
                buffer[used:] = buffer[used - 1]
        self._wait()

    def _run_plain(self, key: Any, arrays: Arrays) -> dict[str, Array]:
        """Run without a graph, and remember the shapes of the outputs."""
        inputs = {name: self._device.put(array) for name, array in arrays.items()}
        options = None if self.refused else self._plain_options
        # Without rows, run one row of zeros and return none of its outputs.
        if not all(len(array) for array in inputs.values()):
            zeros = self._device.xp.zeros
            row = {name: zeros((1, *a.shape[1:]), a.dtype) for name, a in inputs.items()}
            outputs = run_bound(self.session, row, self._device.xp, *self._target, options=options)
            return {name: output[:0] for name, output in outputs.items()}
        outputs = run_bound(self.session, inputs, self._device.xp, *self._target, options=options)
        self._output_shapes[key] = {
            name: (output.shape[1:], output.dtype) for name, output in outputs.items()
        }
        return outputs

    def _add_slot(self, key: Any, batch: int, arrays: Arrays) -> _Slot | None:
        """Allocate and bind the buffers of a shape; None if there are `_SLOTS` already."""
        if len(self._slots) >= _SLOTS:
            return None
        empty = self._device.xp.empty
        inputs = {name: empty((batch, *a.shape[1:]), a.dtype) for name, a in arrays.items()}
        outputs = {
            name: empty((batch, *shape), dtype)
            for name, (shape, dtype) in self._output_shapes[key].items()
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
        """Load another session, without graphs: a failed capture leaves this one unusable."""
        self.refused = str(error)
        self._slots.clear()
        self.session = self._load_plain()

    def _wait(self) -> None:
        """Wait for the current stream; does nothing on a CPU."""
        if self._device.index is not None:
            self._device.xp.cuda.get_current_stream().synchronize()
