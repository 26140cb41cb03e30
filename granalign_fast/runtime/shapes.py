"""The shapes that TensorRT engines are built for, and how requests of any size are split to fit.

TensorRT chooses its kernels when an engine is built, for the shapes that are known then. Another
shape would mean minutes of building in the middle of a request. So an engine has one profile for
each batch size of `models.graph_contract.ENGINE_GRAPHS`, and requests are split into these sizes.

The token axis of a profile is a range of lengths, and splitting never pads it. Graphs that take
`INPUT_IDS` have no mask that could hide padding, so the texts of a request must have equal length.
The fp16 sentence encoder takes `PADDED_IDS` instead: its texts may differ in length, and the caller
pads them before the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.parsing.limits import MOST_GRAPH_BYTES
from granalign_fast.reading import read_file

Shape = tuple[int, ...]
NamedShape = tuple[int | str, ...]
"""A shape as a graph declares it: fixed axes by size, dynamic axes by name."""


@dataclass(frozen=True)
class Bounds:
    """The smallest, the usual and the largest shape of one input.

    TensorRT chooses the fastest kernels for the usual shape.

    >>> Bounds((4, 1), (4, 24), (4, 256)).admits((4, 9))
    True
    >>> Bounds((4, 1), (4, 24), (4, 256)).admits((5, 9))
    False
    """

    least: Shape
    usual: Shape
    most: Shape

    def admits(self, shape: Shape) -> bool:
        """Return whether a shape is within the bounds on every axis."""
        return len(shape) == len(self.least) and all(
            low <= size <= high
            for low, size, high in zip(self.least, shape, self.most, strict=True)
        )

    def __str__(self) -> str:
        """Return the bounds for messages, such as ``4 x 1..256``."""
        return " x ".join(
            str(low) if low == high else f"{low}..{high}"
            for low, high in zip(self.least, self.most, strict=True)
        )


Profile = dict[str, Bounds]
"""Bounds of every input; TensorRT calls them an optimisation profile."""


_MAX_PADDING = 128
"""Most rows of padding in one run. More padding costs more time than the launches of another run
of a smaller batch size."""


def runs(rows: int, batches: Sequence[int]) -> list[tuple[int, int]]:
    """Split a request into runs of the given batch sizes.

    The largest batches come first. The remaining rows go into the smallest batch that holds them,
    if it is at least half full and pads no more than `_MAX_PADDING` rows. Otherwise they are split
    into smaller batches. Fewer rows than the smallest batch size are one run of that size.

    Args:
        rows: number of rows of the request.
        batches: batch sizes in ascending order.

    Returns:
        For each run, its number of rows and its batch size; the difference is padding.

    >>> runs(150, (1, 4, 16, 64))
    [(64, 64), (64, 64), (16, 16), (4, 4), (2, 4)]
    >>> runs(40, (1, 4, 16, 64))
    [(40, 64)]
    >>> runs(21, (16, 64))
    [(16, 16), (5, 16)]
    """
    split = []
    while rows > 0:
        # Pad the rest into the smallest batch that holds it, unless that wastes too much.
        padded = next((batch for batch in batches if batch >= rows), None)
        if padded is not None and (
            padded == batches[0] or padded - rows <= min(rows, _MAX_PADDING)
        ):
            split.append((rows, padded))
            break
        # Otherwise fill the largest batch that is not larger than the rest.
        batch = max(batch for batch in batches if batch <= rows)
        split.append((batch, batch))
        rows -= batch
    return split


@dataclass(frozen=True)
class GraphShapes:
    """The shapes and the precision that TensorRT builds a graph's engine for.

    Attributes:
        profiles: one for each batch size, ascending.
        precision: precision of the graph's matrix products, ``"fp32"`` or ``"fp16"``.
        by_provider: whether ONNX Runtime's TensorRT provider can run the whole graph.
    """

    profiles: tuple[Profile, ...]
    precision: str
    by_provider: bool

    @property
    def span(self) -> Profile:
        """One profile over all batch sizes, with the usual shape of the largest."""
        first, last = self.profiles[0], self.profiles[-1]
        return {
            name: Bounds(first[name].least, last[name].usual, last[name].most) for name in first
        }


class GraphContract(Protocol):
    """The facts about a graph that `open_session` needs before it loads the graph."""

    def shapes(self) -> GraphShapes | None:
        """Return the shapes for TensorRT; None for a graph that TensorRT does not run."""
        ...

    def batches(self) -> tuple[int, ...] | None:
        """Return the batch sizes of runs on CUDA, ascending; None if any size will do."""
        ...


def read_inputs(graph: Path) -> dict[str, NamedShape]:
    """Read the names and shapes of an ONNX file's inputs, without its external data.

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
    """Load an ONNX file as an `onnx.ModelProto`, without its external data.

    Raises:
        GranAlignError: the file is not an ONNX model.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("reading a graph", "cpu") from None
    content = read_file(graph, MOST_GRAPH_BYTES, inside=graph.parent)
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's errors have no common base of their own
        raise GranAlignError(
            f"{graph}: not an ONNX model ({one_line(error)}); export the model again"
        ) from None
