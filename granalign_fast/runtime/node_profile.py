"""What ONNX Runtime's own profile says of where each node ran."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json

_KERNEL = "_kernel_time"


class NodeRun(NamedTuple):
    """A node of a graph that has run.

    Attributes:
        name: of the node, after ONNX Runtime has optimised the graph.
        operator: such as ``Attention``; copies that ONNX Runtime has put in are ``MemcpyToHost``
            and ``MemcpyFromHost``.
        provider: that ran it.
        runs: how often.
        seconds: on the host, of all its runs; on a GPU that is the time it took to queue it.
    """

    name: str
    operator: str
    provider: str
    runs: int
    seconds: float


def read_profile(path: Path) -> list[NodeRun]:
    """The nodes of a profile that ONNX Runtime has written, in the order of their first run.

    Raises:
        GranAlignError: the file is missing, or is no such profile.
    """
    record = read_json(path)
    if not isinstance(record, list):
        raise GranAlignError(f"{path}: got no list of events, expected a profile of ONNX Runtime")
    found: dict[tuple[str, str, str], tuple[int, float]] = {}
    for event in record:
        if not isinstance(event, dict) or event.get("cat") != "Node":
            continue
        name, about = str(event.get("name", "")), event.get("args") or {}
        if not name.endswith(_KERNEL) or "provider" not in about:
            continue
        key = (name.removesuffix(_KERNEL), str(about.get("op_name", "")), about["provider"])
        runs, seconds = found.get(key, (0, 0.0))
        found[key] = runs + 1, seconds + float(event.get("dur", 0)) / 1e6
    return [NodeRun(*key, *counts) for key, counts in found.items()]


def nodes_by_provider(nodes: Iterable[NodeRun]) -> dict[str, list[NodeRun]]:
    """The nodes of each provider, by its name."""
    found: dict[str, list[NodeRun]] = {}
    for node in nodes:
        found.setdefault(node.provider, []).append(node)
    return found


_SHAPES = frozenset({"Shape", "Size", "Concat", "Gather", "Unsqueeze", "Squeeze", "Slice", "Range"})
"""Operators that compute with shapes, for which the values are on the host to begin with."""


def strays(nodes: Iterable[NodeRun], provider: str) -> list[NodeRun]:
    """Nodes that another provider than the wanted one ran, and copies to it and back.

    Arithmetic on shapes, which ONNX Runtime puts on the CPU by design, is none.
    """
    return [
        node
        for node in nodes
        if node.operator.startswith("Memcpy")
        or (node.provider != provider and node.operator not in _SHAPES)
    ]
