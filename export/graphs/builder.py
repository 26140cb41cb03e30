"""What the graphs that we write node by node have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Tensors
from granalign_fast.models.graph_contract import IR_VERSION, OPSET
from granalign_fast.runtime.standard_operators import MICROSOFT

from .tensor_file import TensorFile


def make_model(
    name: str,
    *,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    tensors: Iterable[Any],
    opset: int = OPSET,
) -> Any:
    """An `onnx.ModelProto` of an opset, and of version 1 of each other domain in use."""
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
    """A graph under construction, over weights that stream from a checkpoint to a `TensorFile`.

    Args:
        checkpoint: where weights come from.
        tensors: where they go, those that are not there yet; several graphs may share it.
        dtype: of weights and activations.
    """

    def __init__(
        self,
        checkpoint: Tensors,
        tensors: TensorFile,
        dtype: type[np.generic],
    ) -> None:
        self.checkpoint = checkpoint
        self.tensors = tensors
        self.dtype = dtype
        self.opset = OPSET
        self.nodes: list[Any] = []
        self.used: dict[str, None] = {}  # in order of use

    def _model(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The `onnx.ModelProto`, whose large tensors lie in the `TensorFile`."""
        return make_model(
            name,
            nodes=self.nodes,
            inputs=inputs,
            outputs=outputs,
            tensors=[t for t in map(self.tensors.tensors.get, self.used) if t is not None],
            opset=self.opset,
        )

    def _norm(self, x: str, weight: str, epsilon: float) -> str:
        # stash_type 1: the mean square is taken in float32, as in the source
        return self._op(
            "RMSNormalization", x, self._tensor(weight), axis=-1, epsilon=epsilon, stash_type=1
        )

    def _sum_and_norm(self, kind: str, inputs: list[str], epsilon: float) -> tuple[str, str]:
        """A sum, and it normalised, by an operator of ONNX Runtime's that is one launch on a GPU.

        Args:
            kind: the operator.
            inputs: two summands, what the norm has learnt, and perhaps a bias that is added too.
            epsilon: of the norm.
        """
        summed, normed = f"sum.{len(self.nodes)}", f"normed.{len(self.nodes)}"
        self._add(kind, inputs, [normed, "", "", summed], domain=MICROSOFT, epsilon=epsilon)
        return summed, normed

    def _linear(self, x: str, name: str) -> str:
        """A product with `name`.weight, and `name`.bias added where the checkpoint has it."""
        y = self._product(x, f"{name}.weight")
        bias = f"{name}.bias"
        return self._op("Add", y, self._tensor(bias)) if bias in self.checkpoint else y

    def _product(self, x: str, weight: str) -> str:
        transposed = f"{weight}.transposed"
        if transposed not in self.tensors:
            array = self.checkpoint.read(weight)
            self.tensors.add(transposed, array.T.astype(self.dtype, copy=False))
        return self._op("MatMul", x, self._use(transposed))

    def _silu(self, x: str) -> str:
        return self._op("Mul", x, self._op("Sigmoid", x))

    def _gated(self, x: str, prefix: str) -> str:
        """The multi-layer perceptron of both towers: down(silu(gate(x)) * up(x))."""
        gate = self._silu(self._linear(x, f"{prefix}.gate_proj"))
        wide = self._op("Mul", gate, self._linear(x, f"{prefix}.up_proj"))
        return self._linear(wide, f"{prefix}.down_proj")

    def _tensor(self, name: str, dtype: type[np.generic] | None = None) -> str:
        """A tensor of the checkpoint, in the graph's dtype unless another is named."""
        if name not in self.tensors:
            array = self.checkpoint.read(name)
            self.tensors.add(name, array.astype(dtype or self.dtype, copy=False))
        return self._use(name)

    def _constant(self, name: str, value: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """An array that is not the checkpoint's; graphs that share a file share it by its name."""
        name = f"constant.{name}"
        if name not in self.tensors:
            self.tensors.add(name, np.array(value, dtype))
        return self._use(name)

    def _use(self, name: str) -> str:
        self.used[name] = None
        return name

    def _cast(self, x: str, dtype: type[np.generic]) -> str:
        return self._op("Cast", x, to=self._kind(dtype))

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; the output's name."""
        output = f"{kind}.{len(self.nodes)}"
        self._add(kind, list(inputs), [output], **attributes)
        return output

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))

    def _value(self, name: str, dtype: type[np.generic], *shape: str | int) -> Any:
        """An input or output of the graph."""
        from onnx import helper

        return helper.make_tensor_value_info(name, self._kind(dtype), shape)

    @staticmethod
    def _kind(dtype: type[np.generic]) -> int:
        from onnx import helper

        kind: int = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return kind
