"""The shapes that TensorRT is made ready for, and how a request of any size runs in them.

TensorRT chooses its kernels when an engine is built, for shapes that are known then; another shape
would mean minutes of building in the middle of a request. So each batch size of
`export.specs.ENGINE_GRAPHS` has a profile, and requests are cut to fit. The axis of tokens is a
range and never padded: our graphs take texts of one length and have no mask to hide padding with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line

Shape = tuple[int, ...]
NamedShape = tuple[int | str, ...]
"""A shape as a graph states it: dynamic axes by their names."""


@dataclass(frozen=True)
class Bounds:
    """The least, the usual and the greatest shape of one input; kernels are chosen for the usual.

    >>> Bounds((4, 1), (4, 24), (4, 256)).admits((4, 9))
    True
    >>> Bounds((4, 1), (4, 24), (4, 256)).admits((5, 9))
    False
    """

    least: Shape
    usual: Shape
    most: Shape

    def admits(self, shape: Shape) -> bool:
        """Whether a shape lies within."""
        return len(shape) == len(self.least) and all(
            low <= size <= high
            for low, size, high in zip(self.least, shape, self.most, strict=True)
        )

    def __str__(self) -> str:
        """As in messages: ``4 x 1..256``."""
        return " x ".join(
            str(low) if low == high else f"{low}..{high}"
            for low, high in zip(self.least, self.most, strict=True)
        )


Profile = dict[str, Bounds]
"""Bounds of every input; in TensorRT's words, an optimisation profile."""


_WASTED = 128
"""Rows: beyond that another run's launches cost less than its wasted rows."""


def runs(rows: int, batches: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a request into runs of the given batch sizes.

    The largest batches come first. What is left goes into the smallest batch that holds it if that
    is at least half full, with no more than `_WASTED` rows wasted, and otherwise into smaller ones.
    What is less than the least size is one run of it.

    Args:
        rows: of the request.
        batches: sizes in ascending order.

    Returns:
        For each run the rows that it takes and its batch size, of which the rest is filled up.

    >>> runs(150, (1, 4, 16, 64))
    [(64, 64), (64, 64), (16, 16), (4, 4), (2, 4)]
    >>> runs(40, (1, 4, 16, 64))
    [(40, 64)]
    >>> runs(21, (16, 64))
    [(16, 16), (5, 16)]
    """
    found = []
    while rows > 0:
        holding = next((batch for batch in batches if batch >= rows), None)
        if holding is not None and (holding == batches[0] or holding - rows <= min(rows, _WASTED)):
            found.append((rows, holding))
            break
        batch = max(batch for batch in batches if batch <= rows)
        found.append((batch, batch))
        rows -= batch
    return found


@dataclass(frozen=True)
class GraphShapes:
    """What a graph has to be made ready for.

    Attributes:
        profiles: one for each batch size, in ascending order.
        precision: ``"fp32"`` or ``"fp16"``, of the graph's products.
        by_provider: whether ONNX Runtime's TensorRT provider can run the whole graph.
    """

    profiles: tuple[Profile, ...]
    precision: str
    by_provider: bool

    @property
    def span(self) -> Profile:
        """One profile over all batch sizes, the largest the usual one."""
        first, last = self.profiles[0], self.profiles[-1]
        return {
            name: Bounds(first[name].least, last[name].usual, last[name].most) for name in first
        }


class GraphContract(Protocol):
    """What a session has to know about a graph before it loads it."""

    def shapes(self) -> GraphShapes | None:
        """The shapes for TensorRT; None for a graph that TensorRT does not run."""
        ...

    def batches(self) -> tuple[int, ...] | None:
        """The batch sizes of runs on CUDA, ascending; None for a graph that runs at any."""
        ...


def read_inputs(graph: Path) -> dict[str, NamedShape]:
    """The inputs of an ONNX file and their shapes; external data is left where it is.

    Raises:
        GranAlignError: the file is not an ONNX model.
    """
    model = load_graph(graph)
    return {
        value.name: tuple(
            axis.dim_param or int(axis.dim_value) for axis in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }


def load_graph(graph: Path) -> Any:
    """An `onnx.ModelProto` without its external data.

    Raises:
        GranAlignError: the file is not an ONNX model.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("reading a graph", "cpu") from None
    try:
        return onnx.load(graph, load_external_data=False)
    except Exception as error:  # protobuf's errors have no common base of their own
        raise GranAlignError(
            f"{graph}: not an ONNX model ({one_line(error)}); export the model again"
        ) from None
