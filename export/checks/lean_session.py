"""Sessions of ONNX Runtime that keep no copy of the weights, for the self-check of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line


class LeanSession:
    """An ONNX file on the CPU whose weights stay in the mapped file.

    Kernels get no copies of weights in a layout of their own, and no constants are folded: ONNX
    Runtime's CPU kernels lack float16, and would keep a float32 copy of every weight.

    Args:
        path: the file.
        quantised: whether its products have 4-bit weights. These kernels need their own layout,
            which is small: without it they would unpack the weights to float32.

    Raises:
        GranAlignError: the file cannot be loaded.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, *, quantised: bool) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("checking an export", "cpu") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        options.enable_cpu_mem_arena = False  # what is freed goes back to the system
        if not quantised:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise GranAlignError(
                f"{path}: ONNX Runtime cannot load it ({one_line(error)}); report this model"
            ) from None
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, **arrays: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph; return its outputs by name.

        Raises:
            GranAlignError: the run fails.
        """
        try:
            results = self._session.run(self._outputs, arrays)
        except Exception as error:
            raise GranAlignError(
                f"the self-check: ONNX Runtime cannot run the graph ({one_line(error)}); report "
                f"this model"
            ) from None
        return dict(zip(self._outputs, results, strict=True))
