"""Stores for the tensors of ONNX graphs: inside the graph, in external data, or as the file grows.

The stores that write to a file take one tensor at a time, in slices, so memory never holds all
weights, and a protobuf message never holds any but the smallest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

_ALIGNMENT = 4096
"""Bytes, one memory page: tensors begin on pages, so that ONNX Runtime can map the file."""

_ABOVE_FLOAT16 = 65520
"""From here on numbers are rounded to infinity."""

_INLINE = 1024
"""Bytes: smaller tensors stay inside the graph. Shapes are among them, and shape inference reads
no external data."""


def converted(name: str, array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return finite values in another type; nothing is copied if it is theirs.

    Raises:
        GranAlignError: float16 cannot hold a value.
    """
    if np.dtype(dtype) == np.float16 and array.size:
        greatest = max(float(array.max()), -float(array.min()))
        if greatest >= _ABOVE_FLOAT16:
            raise GranAlignError(
                f"{name}: got values of up to {greatest:.3g}, expected at most 65504, float16's "
                f"greatest number; export in another precision"
            )
    return array.astype(dtype, copy=False)


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

    def add_slices(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        slices: Iterable[npt.NDArray[Any]],
    ) -> None:
        """Keep a tensor that comes in slices of rows; stores that write to a file hold one only."""
        parts = [converted(name, part, dtype) for part in slices]
        self.add(name, np.concatenate(parts).reshape(shape))

    def add_reshaped(self, name: str, stored: str, shape: tuple[int, ...]) -> None:
        """Add a second name and shape for the bytes of a stored tensor; they are not copied."""
        from onnx import TensorProto

        view = TensorProto()
        view.CopyFrom(self.tensors[stored])
        view.name, view.dims[:] = name, shape
        self.tensors[name] = view


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
        array = np.asarray(array, order="C")
        if array.nbytes < _INLINE:
            super().add(name, array)
        else:
            self.add_slices(name, array.shape, array.dtype, [array])

    def add_slices(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        slices: Iterable[npt.NDArray[Any]],
    ) -> None:
        """Write a tensor to the file slice by slice, or keep a small one for the graph."""
        from onnx import StringStringEntryProto, TensorProto, helper

        dtype = np.dtype(dtype)
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if length < _INLINE:
            super().add_slices(name, shape, dtype, slices)
            return
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        for part in slices:
            self._file.write(np.asarray(converted(name, part, dtype), order="C").data)
        if self._file.tell() - offset != length:
            raise GranAlignError(
                f"{name}: got {self._file.tell() - offset} bytes, expected {length}; "
                f"copy or download the model again"
            )
        self.tensors[name] = TensorProto(
            name=name,
            dims=shape,
            data_type=helper.np_dtype_to_tensor_dtype(dtype),
            data_location=TensorProto.EXTERNAL,
            external_data=[
                StringStringEntryProto(key=key, value=str(value))
                for key, value in (
                    ("location", self._location),
                    ("offset", offset),
                    ("length", length),
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
        self.add_slices(name, array.shape, array.dtype, [array])

    def add_slices(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        slices: Iterable[npt.NDArray[Any]],
    ) -> None:
        """Write a tensor to the file slice by slice."""
        header, length = _tensor_header(name, shape, dtype)
        graph = _field(_INITIALIZER, len(header) + length)
        self._file.write(_field(_GRAPH, len(graph) + len(header) + length) + graph + header)
        for part in slices:
            self._file.write(np.asarray(converted(name, part, dtype), order="C").data)
        self.tensors[name] = None

    def finish(self, model: Any) -> None:
        """Write the graph, after all of its tensors.

        Raises:
            GranAlignError: the file is larger than ONNX Runtime can read.
        """
        self._file.write(model.SerializeToString())
        _check_size(self._file.tell())


class SpooledTensors(GraphTensors):
    """Tensors of one `onnx.ModelProto` that is written as protobuf itself would write it.

    A message begins with its length, which is known when all tensors are. Until then they wait in
    a file of their own.

    Args:
        spool: a file to write to and to read from.
    """

    def __init__(self, spool: IO[bytes]) -> None:
        super().__init__()
        self._spool = spool
        self._headers: list[tuple[bytes, int]] = []

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a tensor to the spool."""
        self._headers.append(_tensor_header(name, array.shape, array.dtype))
        self._spool.write(np.asarray(array, order="C").data)
        self.tensors[name] = None

    def save(self, model: Any, file: IO[bytes]) -> None:
        """Write a model with all tensors, in the order in which they were added.

        Raises:
            GranAlignError: the file is larger than ONNX Runtime can read.
        """
        # Fields are in the order of their numbers: those before and behind the tensors.
        first, last = _split(model.graph, _INITIALIZER)
        inner = [_field(_INITIALIZER, len(header) + size) for header, size in self._headers]
        size = len(first) + len(last) + sum(map(len, inner))
        size += sum(len(header) + length for header, length in self._headers)
        before, after = _split(model, _GRAPH)
        _check_size(size)
        file.write(before + _field(_GRAPH, size) + first)
        self._spool.seek(0)
        for field, (header, length) in zip(inner, self._headers, strict=True):
            file.write(field + header)
            while length:
                part = self._spool.read(min(length, _COPIED))
                file.write(part)
                length -= len(part)
        file.write(last + after)


_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of protobuf's fields: a model's graph, a graph's tensors, and a tensor's bytes."""
_COPIED = 1 << 23
"""Bytes that are copied at once."""
_LARGEST = 2**31 - 1
"""Bytes of the largest message that protobuf, and so ONNX Runtime, reads."""


def _field(number: int, length: int) -> bytes:
    """Return what stands before a protobuf field of this many bytes: its number and length."""
    key = bytearray([number << 3 | 2])
    while length > 127:
        key.append(length & 127 | 128)
        length >>= 7
    key.append(length)
    return bytes(key)


def _tensor_header(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> tuple[bytes, int]:
    """Return all of an `onnx.TensorProto` up to its bytes, and the number of these."""
    from onnx import TensorProto, helper

    kind = np.dtype(dtype)
    proto = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(kind))
    length = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    return proto.SerializeToString() + _field(_RAW_DATA, length), length


def _split(message: Any, number: int) -> tuple[bytes, bytes]:
    """Return the fields of a message before and after a field, serialised."""
    before, after = type(message)(), type(message)()
    for part in (before, after):
        part.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return before.SerializeToString(), after.SerializeToString()


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise GranAlignError(
            f"got a graph of {size / 1e9:.1f} GB, expected at most 2.1 GB, the most that an ONNX "
            f"file of an encoder can hold; choose precision 'fp16', or a smaller model"
        )
