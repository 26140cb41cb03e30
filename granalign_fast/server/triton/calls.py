"""Calls of Triton's models from another one: the server joins them with those of other requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.session import Session


class CalledModel(Session):
    """A session whose runs are requests to a model of the same server.

    Args:
        name: of the model.
        path: of the graph that it runs, for messages.
        inputs: names of its inputs.
        outputs: names of its outputs.
    """

    backend = "Triton"

    def __init__(
        self, name: str, path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        super().__init__(path)
        self.name, self.inputs, self.outputs = name, inputs, outputs

    def _call(self, arrays: Any) -> dict[str, Any]:
        import triton_python_backend_utils as pb_utils

        request = pb_utils.InferenceRequest(
            model_name=self.name,
            requested_output_names=list(self.outputs),
            inputs=[pb_utils.Tensor(name, array) for name, array in arrays.items()],
            # The results are compared on the host: a GPU's memory would have to be copied again.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise GranAlignError(f"{self.name}: {response.error().message()}")
        found = {}
        for name in self.outputs:
            tensor = pb_utils.get_output_tensor_by_name(response, name)
            # A copy: the memory belongs to the response.
            found[name] = tensor.as_numpy().copy()
        return found
