"""Read ONNX Runtime's profile: which execution provider ran each node, how often and how long.

It shows whether a model runs on the GPU as a whole, or has nodes that ONNX Runtime put on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json

_KERNEL = "_kernel_time"
"""Ending of an event's name if the event is the run of a node's kernel."""


class NodeRun(NamedTuple):
    """All runs of one node of a graph.

    Attributes:
        name: the node's name in the graph as ONNX Runtime has optimised it.
        operator: such as ``Attention``. Copies that ONNX Runtime inserted are ``MemcpyToHost`` and
            ``MemcpyFromHost``.
        provider: the execution provider that ran it.
        runs: the number of runs.
        seconds: the host's time for all runs; for a GPU, the time to queue them.
    """

    name: str
    operator: str
    provider: str
    runs: int
    seconds: float


def read_profile(path: Path) -> list[NodeRun]:
    """Read the nodes of a profile that ONNX Runtime has written, in the order of their first run.

    Raises:
        GranAlignError: the file is missing, or is not such a profile.
    """
    record = read_json(path)
    if not isinstance(record, list):
        raise GranAlignError(f"{path}: got no list of events, expected a profile of ONNX Runtime")
    totals: dict[tuple[str, str, str], tuple[int, float]] = {}
    for event in record:
        if not isinstance(event, dict) or event.get("cat") != "Node":
            continue
        name, arguments = str(event.get("name", "")), event.get("args") or {}
        if not name.endswith(_KERNEL) or "provider" not in arguments:
            continue
        operator = str(arguments.get("op_name", ""))
        key = (name.removesuffix(_KERNEL), operator, arguments["provider"])
        runs, seconds = totals.get(key, (0, 0.0))
        totals[key] = runs + 1, seconds + float(event.get("dur", 0)) / 1e6  # dur: microseconds
    return [NodeRun(*key, *total) for key, total in totals.items()]


def nodes_by_provider(nodes: Iterable[NodeRun]) -> dict[str, list[NodeRun]]:
    """Group nodes by the name of the provider that ran them."""
    groups: dict[str, list[NodeRun]] = {}
    for node in nodes:
        groups.setdefault(node.provider, []).append(node)
    return groups


_SHAPES = frozenset({"Shape", "Size", "Concat", "Gather", "Unsqueeze", "Squeeze", "Slice", "Range"})
"""Operators that compute with shapes. ONNX Runtime runs them on the CPU by design, because shapes
are known on the host."""


def strays(nodes: Iterable[NodeRun], provider: str) -> list[NodeRun]:
    """Return the nodes that another provider ran, and copies between host and device.

    Operators of `_SHAPES` are left out: they run on the CPU by design.
    """
    return [
        node
        for node in nodes
        if node.operator.startswith("Memcpy")
        or (node.provider != provider and node.operator not in _SHAPES)
    ]
