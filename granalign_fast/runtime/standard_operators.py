"""What ONNX Runtime's own operators are in standard ones, for readers that lack them.

On a GPU each of these is fewer launches than its definition, and the CPU has them too: so fp16
graphs have them, and TensorRT gets their definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_EPSILON = 1e-12
"""Of ONNX Runtime's norms, where they name none."""


def standardise(model: Any, kinds: Collection[str] | None = None) -> None:
    """Replace ONNX Runtime's own operators by their definitions; values keep their names.

    Args:
        model: the `onnx.ModelProto`; operators without a definition here stay as they are.
        kinds: names of the operators that are replaced; None for all.
    """
    graph = model.graph
    nodes = [
        part
        for node in graph.node
        for part in (_definition(node) if kinds is None or node.op_type in kinds else [node])
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(node.domain == MICROSOFT for node in nodes):
        kept = [entry for entry in model.opset_import if entry.domain != MICROSOFT]
        del model.opset_import[:]
        model.opset_import.extend(kept)


def standard_bytes(path: Path) -> bytes | None:
    """A file's model in standard operators; None where it has no others, or lies in several files.

    Raises:
        GranAlignError: the file is not an ONNX model.
    """
    from .shapes import load_graph

    model = load_graph(path)
    apart = any(tensor.external_data for tensor in model.graph.initializer)
    if apart or not any(_known(node) for node in model.graph.node):
        return None
    standardise(model)
    data: bytes = model.SerializeToString()
    return data


class _Parts:
    """The nodes that one operator becomes, named after it."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.nodes: list[Any] = []
        self.inputs = list(node.input)
        self.settings = {a.name: a for a in node.attribute}

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        found = self.settings.get(name)
        return default if found is None else float(found.f)

    def whole(self, name: str, default: int) -> int:
        """An attribute."""
        found = self.settings.get(name)
        return default if found is None else int(found.i)

    def constant(self, value: float, like: str) -> str:
        """A number in another value's type."""
        return self.op("CastLike", self.op("Constant", value_float=value), like)

    def given(self, index: int) -> list[str]:
        """An optional input: none, or one."""
        return [name for name in self.inputs[index : index + 1] if name]

    def output(self, index: int) -> str:
        """The name of an output; a new one where the operator's is not asked for."""
        names = list(self.node.output)
        own = names[index] if index < len(names) else ""
        return own or f"{names[0]}.output.{index}"

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; its output's name."""
        from onnx import helper

        output = output or f"{self.node.output[0]}.part.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def sum(self, first: str, others: list[str], output: str = "") -> str:
        """A sum, in the order in which ONNX Runtime adds."""
        for i, other in enumerate(others):
            last = output if i == len(others) - 1 else ""
            first = self.op("Add", first, other, output=last)
        return first


def _skip_layer_normalization(parts: _Parts) -> None:
    x, skip, gamma = parts.inputs[:3]
    total = parts.sum(x, [*parts.given(4), skip], parts.output(3))
    parts.op(
        "LayerNormalization",
        *(total, gamma, *parts.given(3)),
        output=parts.output(0),
        axis=-1,
        epsilon=parts.number("epsilon", _EPSILON),
        stash_type=1,
    )


def _skip_simplified(parts: _Parts) -> None:
    x, skip, gamma = parts.inputs[:3]
    total = parts.sum(x, [*parts.given(3), skip], parts.output(3))
    epsilon = parts.number("epsilon", _EPSILON)
    parts.op(
        "RMSNormalization",
        *(total, gamma),
        output=parts.output(0),
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )


def _quick_gelu(parts: _Parts) -> None:
    x = parts.inputs[0]
    scaled = parts.op("Mul", x, parts.constant(parts.number("alpha", 1.702), x))
    parts.op("Mul", x, parts.op("Sigmoid", scaled), output=parts.output(0))


def _attention(parts: _Parts) -> None:
    """Of query, key and value of one product and as wide as each other."""
    x, weights = parts.inputs[:2]
    joined = parts.sum(parts.op("MatMul", x, weights), parts.given(2))
    split = parts.op("Split", joined, axis=-1, num_outputs=3)
    names = [split, f"{split}.key", f"{split}.value"]
    parts.nodes[-1].output[:] = names
    heads = parts.whole("num_heads", 0)
    settings: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads}
    if parts.number("scale", 0.0):
        settings["scale"] = parts.number("scale", 0.0)
    if parts.whole("unidirectional", 0):
        settings["is_causal"] = 1
    parts.op("Attention", *names, *parts.given(5), output=parts.output(0), **settings)


_DEFINITIONS: dict[str, Callable[[_Parts], None]] = {
    "Attention": _attention,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": _skip_simplified,
}
"""Only of the outputs that our graphs take: a norm's first and its last, which is the sum."""


def _known(node: Any) -> bool:
    return node.domain == MICROSOFT and node.op_type in _DEFINITIONS


def _definition(node: Any) -> list[Any]:
    if not _known(node):
        return [node]
    parts = _Parts(node)
    _DEFINITIONS[node.op_type](parts)
    return parts.nodes
