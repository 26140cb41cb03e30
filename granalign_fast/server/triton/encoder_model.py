"""An encoder in Triton's Python back end, for servers without the one of ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.models.exported_graph import open_session


class TritonPythonModel:
    """A graph that ONNX Runtime runs, with the inputs and outputs of the graph.

    Triton calls `initialize` once, and `execute` with the requests of a batch.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph that the configuration names.

        Args:
            args: of Triton: the configuration, and the folder of the model.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        version = Path(args["model_repository"]) / args["model_version"]
        graph = parameters["graph"]["string_value"]
        device = parameters["device"]["string_value"]
        self._session = open_session(version / graph, device=device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch; Triton joins only those of equal shapes."""
        import triton_python_backend_utils as pb_utils

        def given(name: str) -> list[np.ndarray[Any, Any]]:
            tensors = (pb_utils.get_input_tensor_by_name(request, name) for request in requests)
            return [tensor.as_numpy() for tensor in tensors]

        arrays = {name: given(name) for name in self._session.inputs}
        ends = np.cumsum([len(rows) for rows in next(iter(arrays.values()))])[:-1]
        try:
            joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
            outputs = self._session(**joined)
        except GranAlignError as error:
            failed = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        split = {name: np.split(rows, ends) for name, rows in outputs.items()}
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, parts[number]) for name, parts in split.items()]
            )
            for number in range(len(requests))
        ]
