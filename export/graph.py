"""What every graph that we write node by node ends in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .specs import IR_VERSION, OPSET


def make_model(
    name: str,
    *,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    tensors: Iterable[Any],
) -> Any:
    """An `onnx.ModelProto` of our opset, and of version 1 of each other domain in use."""
    from onnx import helper

    graph = helper.make_graph(nodes, name, inputs, outputs, list(tensors))
    domains = {"": OPSET} | {node.domain: 1 for node in nodes if node.domain}
    return helper.make_model(
        graph,
        producer_name="granalign-fast",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
    )
