"""Replace ONNX Runtime's own operators by standard ONNX operators, for TensorRT.

On a GPU, each of ONNX Runtime's own operators is fewer launches than its definition in standard
operators, and the CPU provider runs them too. So fp16 graphs use them. TensorRT does not know them,
and gets their definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_EPSILON = 1e-12
"""Default epsilon of ONNX Runtime's norms; added to the variance."""


def standardise(model: Any, kinds: Collection[str] | None = None) -> None:
    """Replace ONNX Runtime's own operators by their definitions; outputs keep their names.

    Args:
        model: the `onnx.ModelProto`, changed in place. Operators without a definition here stay.
        kinds: names of the operators to replace; None for all.
    """
    graph = model.graph
    nodes = [
        replacement
        for node in graph.node
        for replacement in (_replace(node) if kinds is None or node.op_type in kinds else [node])
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    # Without operators of ONNX Runtime's domain, the model must not declare the domain.
    if not any(node.domain == MICROSOFT for node in nodes):
        opsets = [opset for opset in model.opset_import if opset.domain != MICROSOFT]
        del model.opset_import[:]
        model.opset_import.extend(opsets)


def standard_bytes(path: Path) -> bytes | None:
    """Return a file's model in standard operators, serialised.

    Returns:
        None if the model has no operator to replace, or keeps weights in other files.

    Raises:
        GranAlignError: the file is not an ONNX model.
    """
    from .shapes import load_graph

    model = load_graph(path)
    external = any(tensor.external_data for tensor in model.graph.initializer)
    if external or not any(_known(node) for node in model.graph.node):
        return None
    standardise(model)
    data: bytes = model.SerializeToString()
    return data


class _Definition:
    """The standard nodes that replace one operator; they are named after its first output."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.nodes: list[Any] = []
        self.inputs = list(node.input)
        self.settings = {a.name: a for a in node.attribute}

    def number(self, name: str, default: float) -> float:
        """Return an attribute that is a float."""
        attribute = self.settings.get(name)
        return default if attribute is None else float(attribute.f)

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is an integer."""
        attribute = self.settings.get(name)
        return default if attribute is None else int(attribute.i)

    def constant(self, value: float, like: str) -> str:
        """Add a scalar of another value's type; return its name."""
        return self.op("CastLike", self.op("Constant", value_float=value), like)

    def optional(self, index: int) -> list[str]:
        """Return an optional input as a list of one name, or an empty list if it is absent."""
        return [name for name in self.inputs[index : index + 1] if name]

    def output(self, index: int) -> str:
        """Return the name of an output; a new name if the operator leaves it out."""
        names = list(self.node.output)
        name = names[index] if index < len(names) else ""
        return name or f"{names[0]}.output.{index}"

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        from onnx import helper

        output = output or f"{self.node.output[0]}.part.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def sum(self, first: str, others: list[str], output: str = "") -> str:
        """Add values in the order in which ONNX Runtime adds them; return the sum's name."""
        for i, other in enumerate(others):
            last = output if i == len(others) - 1 else ""
            first = self.op("Add", first, other, output=last)
        return first


def _skip_layer_normalization(definition: _Definition) -> None:
    """LayerNorm of the sum of the input, the skip connection and an optional bias."""
    x, skip, gamma = definition.inputs[:3]
    total = definition.sum(x, [*definition.optional(4), skip], definition.output(3))
    definition.op(
        "LayerNormalization",
        *(total, gamma, *definition.optional(3)),
        output=definition.output(0),
        axis=-1,
        epsilon=definition.number("epsilon", _EPSILON),
        stash_type=1,
    )


def _skip_simplified(definition: _Definition) -> None:
    """RMSNorm of the sum of the input, the skip connection and an optional bias."""
    x, skip, gamma = definition.inputs[:3]
    total = definition.sum(x, [*definition.optional(3), skip], definition.output(3))
    epsilon = definition.number("epsilon", _EPSILON)
    definition.op(
        "RMSNormalization",
        *(total, gamma),
        output=definition.output(0),
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )


def _quick_gelu(definition: _Definition) -> None:
    """QuickGELU: x * sigmoid(alpha * x)."""
    x = definition.inputs[0]
    scaled = definition.op("Mul", x, definition.constant(definition.number("alpha", 1.702), x))
    definition.op("Mul", x, definition.op("Sigmoid", scaled), output=definition.output(0))


def _attention(definition: _Definition) -> None:
    """Attention whose query, key and value have equal widths and come from one projection."""
    x, weights = definition.inputs[:2]
    joined = definition.sum(definition.op("MatMul", x, weights), definition.optional(2))
    split = definition.op("Split", joined, axis=-1, num_outputs=3)
    names = [split, f"{split}.key", f"{split}.value"]
    definition.nodes[-1].output[:] = names
    heads = definition.integer("num_heads", 0)
    settings: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads}
    if definition.number("scale", 0.0):
        settings["scale"] = definition.number("scale", 0.0)
    if definition.integer("unidirectional", 0):
        settings["is_causal"] = 1
    definition.op(
        "Attention", *names, *definition.optional(5), output=definition.output(0), **settings
    )


def _multi_head_attention(definition: _Definition) -> None:
    """Attention of query, key and value, each (batch, sequence, width), with an optional bias."""
    heads = definition.integer("num_heads", 0)
    settings: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads}
    if definition.number("scale", 0.0):
        settings["scale"] = definition.number("scale", 0.0)
    definition.op(
        "Attention",
        *(*definition.inputs[:3], *definition.optional(5)),
        output=definition.output(0),
        **settings,
    )


_DEFINITIONS: dict[str, Callable[[_Definition], None]] = {
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": _skip_simplified,
}
"""Definitions by operator. Of a norm, only the outputs that our graphs use are defined: the first,
and the last, which is the sum."""


def _known(node: Any) -> bool:
    """Return whether a node is an operator that has a definition here."""
    return node.domain == MICROSOFT and node.op_type in _DEFINITIONS


def _replace(node: Any) -> list[Any]:
    """Return the nodes that replace a node; the node itself if it has no definition here."""
    if not _known(node):
        return [node]
    definition = _Definition(node)
    _DEFINITIONS[node.op_type](definition)
    return definition.nodes
