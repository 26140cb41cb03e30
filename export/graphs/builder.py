"""The graph builder: nodes, constants and the final `onnx.ModelProto` of every graph we write.

`GraphBuilder` knows nothing of where weights come from; `CheckpointGraph` adds the layers whose
weights are read from a checkpoint by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Float32, Tensors
from granalign_fast.export.specs import INT8_PRODUCTS, Rounding
from granalign_fast.models.graph_contract import IR_VERSION, OPSET
from granalign_fast.runtime.standard_operators import MICROSOFT

from .block_quantization import quantise_slices
from .tensor_file import GraphTensors, converted

Slices = Callable[[], Iterable[Float32]]
"""Reads a weight in slices of rows."""

_TILE = 256
"""Rows and columns that are transposed at once."""


def make_model(
    name: str,
    *,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    tensors: Iterable[Any],
    opset: int = OPSET,
) -> Any:
    """Return an `onnx.ModelProto` of an opset, and of version 1 of each other domain in use."""
    from onnx import helper

    graph = helper.make_graph(nodes, name, inputs, outputs, list(tensors))
    domains = {"": opset} | {node.domain: 1 for node in nodes if node.domain}
    return helper.make_model(
        graph,
        producer_name="granalign-fast",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
    )


class GraphBuilder:
    """A graph under construction. Values are known by name, and every node gets a new name.

    Args:
        tensors: the store of weights and constants; several graphs may share it.
        dtype: of weights and activations.
    """

    def __init__(self, tensors: GraphTensors, dtype: type[np.generic]) -> None:
        self.tensors = tensors
        self.dtype = dtype
        self.opset = OPSET
        self.nodes: list[Any] = []
        self.used: dict[str, None] = {}
        """Names of the tensors that this graph uses, in order of first use."""

    def _model(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """Return the `onnx.ModelProto`; tensors that the store wrote to a file are not in it."""
        return make_model(
            name,
            nodes=self.nodes,
            inputs=inputs,
            outputs=outputs,
            tensors=[t for t in map(self.tensors.tensors.get, self.used) if t is not None],
            opset=self.opset,
        )

    # Nodes.

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; return the output's name."""
        output = self._new_name(kind)
        self._add(kind, list(inputs), [output], **attributes)
        return output

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node, named after its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))

    def _new_name(self, kind: str) -> str:
        return f"{kind}.{len(self.nodes)}"

    def _cast(self, x: str, dtype: type[np.generic]) -> str:
        return self._op("Cast", x, to=self._tensor_type(dtype))

    def _sum_and_norm(self, kind: str, inputs: list[str], epsilon: float) -> tuple[str, str]:
        """Add and normalise with one operator of ONNX Runtime, which is one launch on a GPU.

        Args:
            kind: the operator.
            inputs: two summands, the norm's learnt parameters, and possibly a bias of the sum.
            epsilon: of the norm.

        Returns:
            Names of the sum and of the normalised sum.
        """
        summed, normed = f"sum.{len(self.nodes)}", f"normed.{len(self.nodes)}"
        self._add(kind, inputs, [normed, "", "", summed], domain=MICROSOFT, epsilon=epsilon)
        return summed, normed

    # Weights that are rounded in blocks.

    def _rounded_product(
        self, x: str, name: str, size: tuple[int, int], slices: Slices, rounding: Rounding
    ) -> str:
        """Multiply by a rounded weight (outputs, inputs), whose slices of rows are read once."""
        parts = self._rounded(name, size, slices, rounding)
        return self._op(
            "MatMulNBits",
            x,
            *map(self._use, parts),
            domain=MICROSOFT,
            N=size[0],
            K=size[1],
            bits=rounding.bits,
            block_size=rounding.block,
            accuracy_level=INT8_PRODUCTS,
        )

    def _rounded_rows(
        self, ids: str, name: str, size: tuple[int, int], slices: Slices, rounding: Rounding
    ) -> str:
        """Look up rows of a table (rows, columns) of 8 bits: float32 (*ids.shape, columns).

        A last product with the same table shares its bytes in the file.
        """
        values, scales, zeros = self._rounded(name, size, slices, rounding)
        # The operator takes whole blocks as one axis, and the product takes them as two.
        rows, columns = f"{values}.rows", -(-size[1] // rounding.block) * rounding.block
        if rows not in self.tensors:
            self.tensors.add_reshaped(rows, values, (size[0], columns))
        found = self._op(
            "GatherBlockQuantized",
            *(self._use(rows), ids, self._use(scales), self._use(zeros)),
            domain=MICROSOFT,
            bits=rounding.bits,
            block_size=rounding.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if columns == size[1]:
            return found
        # The last block is padded.
        bounds = [self._constant(f"columns.{bound}", [bound]) for bound in (0, size[1])]
        return self._op("Slice", found, *bounds, self._constant("columns.axis", [-1]))

    def _rounded(
        self, name: str, size: tuple[int, int], slices: Slices, rounding: Rounding
    ) -> list[str]:
        """Store a rounded weight; return the names of its values, scales and zero points."""
        parts = [f"{name}.{part}" for part in ("packed", "scales", "zeros")]
        if parts[0] not in self.tensors:
            arrays: tuple[npt.NDArray[Any], ...] = quantise_slices(slices(), size, rounding)
            for part, array in zip(parts, arrays, strict=True):
                self.tensors.add(part, array)
        return parts

    # Tensors, inputs and outputs.

    def _constant(self, name: str, value: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """Store an array that is not in the checkpoint; graphs of one store share it by name."""
        name = f"constant.{name}"
        if name not in self.tensors:
            self.tensors.add(name, np.array(value, dtype))
        return self._use(name)

    def _use(self, name: str) -> str:
        """Note that this graph uses a stored tensor; return its name."""
        self.used[name] = None
        return name

    def _value(self, name: str, dtype: type[np.generic], *shape: str | int) -> Any:
        """Describe an input or output of the graph."""
        from onnx import helper

        return helper.make_tensor_value_info(name, self._tensor_type(dtype), shape)

    @staticmethod
    def _tensor_type(dtype: type[np.generic]) -> int:
        """Return ONNX's number of a dtype."""
        from onnx import helper

        number: int = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return number


def transposed_weight(
    checkpoint: Tensors, weight: str, dtype: type[np.generic]
) -> npt.NDArray[Any]:
    """Return a weight (outputs, inputs) as (inputs, outputs), in another type."""
    rows, columns = checkpoint.shape(weight)
    result = np.empty((columns, rows), dtype)
    start = 0
    for part in checkpoint.slices(weight):
        values = converted(weight, part, dtype)
        # Tile by tile: rows and columns of a tile stay in the cache, which doubles the speed.
        for row in range(0, len(values), _TILE):
            tile = slice(start + row, start + min(row + _TILE, len(values)))
            for column in range(0, columns, _TILE):
                some = slice(column, column + _TILE)
                result[some, tile] = values[row : row + _TILE, some].T
        start += len(values)
    return result


class CheckpointGraph(GraphBuilder):
    """A graph whose weights stream from a checkpoint to the tensor store, under the same names.

    Args:
        checkpoint: where weights come from.
        tensors: where they go. A weight that is in the store already is not read again.
        dtype: of weights and activations.
    """

    def __init__(self, checkpoint: Tensors, tensors: GraphTensors, dtype: type[np.generic]) -> None:
        super().__init__(tensors, dtype)
        self.checkpoint = checkpoint

    def _tensor(self, name: str, dtype: type[np.generic] | None = None) -> str:
        """Use a tensor of the checkpoint, by default in the graph's dtype."""
        if name not in self.tensors:
            shape, slices = self.checkpoint.shape(name), self.checkpoint.slices(name)
            self.tensors.add_slices(name, shape, dtype or self.dtype, slices)
        return self._use(name)

    def _rounded_weight(self, name: str) -> tuple[str, tuple[int, int], Slices]:
        """Return the name, size and slices of a weight for a rounded product or table."""
        rows, columns = self.checkpoint.shape(name)
        return name, (rows, columns), lambda: self.checkpoint.slices(name)

    def _norm(self, x: str, weight: str, epsilon: float) -> str:
        # stash_type 1: the mean square is computed in float32, as in the source.
        return self._op(
            "RMSNormalization", x, self._tensor(weight), axis=-1, epsilon=epsilon, stash_type=1
        )

    def _product(self, x: str, weight: str) -> str:
        transposed = f"{weight}.transposed"
        if transposed not in self.tensors:
            self.tensors.add(transposed, transposed_weight(self.checkpoint, weight, self.dtype))
        return self._op("MatMul", x, self._use(transposed))

    def _linear(self, x: str, name: str) -> str:
        """Multiply by `name`.weight, and add `name`.bias if the checkpoint has it."""
        y = self._product(x, f"{name}.weight")
        bias = f"{name}.bias"
        return self._op("Add", y, self._tensor(bias)) if bias in self.checkpoint else y

    def _silu(self, x: str) -> str:
        return self._op("Mul", x, self._op("Sigmoid", x))

    def _gated_mlp(self, x: str, prefix: str) -> str:
        """Apply the gated multi-layer perceptron: down(silu(gate(x)) * up(x))."""
        gate = self._silu(self._linear(x, f"{prefix}.gate_proj"))
        wide = self._op("Mul", gate, self._linear(x, f"{prefix}.up_proj"))
        return self._linear(wide, f"{prefix}.down_proj")
