"""Stores for the tensors of ONNX graphs: inside the graph, in external data, or as the file grows.

The two stores that write to a file take one tensor at a time, so memory never holds all weights.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 4096
"""Bytes, one memory page: tensors begin on pages, so that ONNX Runtime can map the file."""

_INLINE = 1024
"""Bytes: smaller tensors stay inside the graph. Shapes are among them, and shape inference reads
no external data."""


class GraphTensors:
    """Tensors by name, held in memory as initialisers of the graph."""

    def __init__(self) -> None:
        self.tensors: dict[str, Any] = {}
        """`onnx.TensorProto` by name; None for a tensor that is in the file already."""

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Keep a tensor for the graph."""
        from onnx import numpy_helper

        # ascontiguousarray would turn a scalar into a row.
        self.tensors[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)


class TensorFile(GraphTensors):
    """External data of ONNX graphs: several graphs share a tensor that is written once.

    Args:
        file: where the bytes of large tensors go.
        location: the file's name, which the graphs refer to.
    """

    def __init__(self, file: IO[bytes], location: str) -> None:
        super().__init__()
        self._file = file
        self._location = location

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a tensor to the file, or keep a small one for the graph."""
        from onnx import StringStringEntryProto, TensorProto, helper

        array = np.asarray(array, order="C")
        if array.nbytes < _INLINE:
            super().add(name, array)
            return
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        self._file.write(array.data)
        self.tensors[name] = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
            external_data=[
                StringStringEntryProto(key=key, value=str(value))
                for key, value in (
                    ("location", self._location),
                    ("offset", offset),
                    ("length", array.nbytes),
                )
            ],
        )


class EmbeddedTensors(GraphTensors):
    """Tensors inside the ONNX file itself, which is written part by part.

    Protobuf merges messages that stand one after another. So each tensor is written as a model of
    its own, and the graph is the last of these models.

    Args:
        file: the ONNX file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a tensor to the file."""
        from onnx import ModelProto, numpy_helper

        part = ModelProto()
        part.graph.initializer.add().CopyFrom(
            numpy_helper.from_array(np.asarray(array, order="C"), name)
        )
        self._file.write(part.SerializeToString())
        self.tensors[name] = None

    def finish(self, model: Any) -> None:
        """Write the graph, after all of its tensors."""
        self._file.write(model.SerializeToString())
