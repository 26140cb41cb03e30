"""ONNX external data, written a tensor at a time: memory holds one of them, not all."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 4096
"""Bytes: tensors begin on pages, so that ONNX Runtime can map them instead of reading them."""


_INLINE = 1024
"""Bytes: smaller tensors, shapes among them, stay inside the graph, which shape inference reads."""


class TensorFile:
    """External data of ONNX graphs: every tensor is written once, whichever graphs use it."""

    def __init__(self, file: IO[bytes], location: str) -> None:
        self._file = file
        self._location = location
        self.tensors: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a tensor, or keep it for the graph itself if it is small."""
        from onnx import StringStringEntryProto, TensorProto, helper, numpy_helper

        array = np.asarray(array, order="C")  # ascontiguousarray would turn a scalar into a row
        if array.nbytes < _INLINE:
            self.tensors[name] = numpy_helper.from_array(array, name)
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


class EmbeddedTensors(TensorFile):
    """Tensors within the ONNX file itself, which is written part by part.

    In protobuf messages merge when they stand one after another: each tensor is a model of its own,
    and the graph is the last.

    Args:
        file: the ONNX file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, "")

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a tensor."""
        from onnx import ModelProto, numpy_helper

        part = ModelProto()
        part.graph.initializer.add().CopyFrom(
            numpy_helper.from_array(np.asarray(array, order="C"), name)
        )
        self._file.write(part.SerializeToString())
        self.tensors[name] = None

    def finish(self, model: Any) -> None:
        """Write the graph."""
        self._file.write(model.SerializeToString())
