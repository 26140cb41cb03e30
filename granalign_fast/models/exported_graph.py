"""An ONNX file in an exported folder: its shapes, and a session that knows them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json
from granalign_fast.runtime import session
from granalign_fast.runtime.session import Session
from granalign_fast.runtime.shapes import Bounds, GraphShapes, NamedShape, Profile, read_inputs

_log = logging.getLogger(__name__)


class ExportedGraph:
    """What the manifest beside an ONNX file says of its shapes; a `GraphContract`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def shapes(self) -> GraphShapes | None:
        """As `graph_shapes`."""
        return graph_shapes(self.path)

    def batches(self) -> tuple[int, ...] | None:
        """The batch sizes of an exported encoder; None for any other file."""
        manifest = self.path.parent / "manifest.json"
        if not manifest.is_file():
            return None
        record = read_json(manifest)
        return fixed_batches(record, self.path.name) if isinstance(record, dict) else None


def open_session(path: str | Path, **options: Any) -> Session:
    """Load a file of an exported folder; all else is as in `runtime.session.open_session`."""
    path = Path(path)
    begin = time.perf_counter()
    opened = session.open_session(path, contract=ExportedGraph(path), **options)
    _log.info("loaded %s by %s in %.2f s", path, opened.backend, time.perf_counter() - begin)
    if opened.graphs_refused:
        _log.info("%s runs without CUDA graphs: %s", path, opened.graphs_refused)
    return opened


def graph_shapes(graph: Path) -> GraphShapes | None:
    """The shapes of a graph in an exported folder; None of one that is not TensorRT's to run.

    Decoders are such, with their caches, and CUDA runs them.

    Raises:
        GranAlignError: there is no manifest beside the graph, or an axis of it is not known.
    """
    from granalign_fast.models.graph_contract import ENGINE_GRAPHS

    manifest = graph.parent / "manifest.json"
    if not manifest.is_file():
        raise GranAlignError(
            f"{graph}: no manifest.json beside it to say its shapes, which TensorRT has to know; "
            f"name a folder that `granalign export` wrote, or ask for 'cuda'"
        )
    record = read_json(manifest)
    kind = record.get("kind") if isinstance(record, dict) else None
    spec = next((g for g in ENGINE_GRAPHS.get(str(kind), ()) if g.file == graph.name), None)
    if spec is None:
        return None
    inputs = read_inputs(graph)
    tokens = _tokens(graph.parent, record, spec.tokens)
    return GraphShapes(
        profiles=tuple(make_profile(graph, inputs, batch, tokens) for batch in spec.batches),
        precision="fp16" if record.get("precision") == "fp16" else "fp32",
        by_provider=spec.by_provider,
    )


def make_profile(
    graph: Path,
    inputs: Mapping[str, NamedShape],
    batch: int,
    tokens: tuple[int, int, int] | None,
) -> Profile:
    """The profile of one batch size.

    Args:
        graph: for messages.
        inputs: shapes as the graph states them.
        batch: rows of every input.
        tokens: the least, usual and greatest length of texts, where there are any.

    Raises:
        GranAlignError: an axis has a name that is not known.
    """
    from granalign_fast.models.graph_contract import DYNAMIC_AXES

    sizes = {"batch": (batch,) * 3} | ({"tokens": tokens} if tokens else {})
    profile = {}
    for name, shape in inputs.items():
        axes = [
            (axis,) * 3 if isinstance(axis, int) else sizes.get(DYNAMIC_AXES.get(axis, ""))
            for axis in shape
        ]
        known = [axis for axis in axes if axis is not None]
        if len(known) != len(axes) or not shape or DYNAMIC_AXES.get(str(shape[0])) != "batch":
            raise GranAlignError(
                f"{graph}: got the input {name} {list(shape)}, expected axes of "
                f"{sorted(DYNAMIC_AXES)}, the batch first; export the model again"
            )
        least, usual, most = zip(*known, strict=True)
        profile[name] = Bounds(least, usual, most)
    return profile


def _tokens(
    folder: Path, manifest: dict[str, Any], usual: int | None
) -> tuple[int, int, int] | None:
    """The range of text lengths; a tokenizer that pads leaves only one."""
    if usual is None:
        return None
    longest = int(manifest.get("max_tokens", 0))
    if longest < 1:
        raise GranAlignError(f"{folder / 'manifest.json'}: no max_tokens; export the model again")
    tokenizer = read_json(folder / "tokenizer.json")
    if isinstance(tokenizer, dict) and tokenizer.get("padding"):
        return longest, longest, longest
    return 1, min(usual, longest), longest


def fixed_batches(manifest: Mapping[str, Any], graph: str) -> tuple[int, ...] | None:
    """The batch sizes in which an exported folder's graph is run; None where it has none.

    Args:
        manifest: of the folder.
        graph: the file's name.
    """
    from granalign_fast.models.graph_contract import ENGINE_GRAPHS

    specs = ENGINE_GRAPHS.get(str(manifest.get("kind")), ())
    spec = next((spec for spec in specs if spec.file == graph), None)
    if spec is None:
        return None
    if spec.tokens is None:
        return spec.batches
    # One size more than TensorRT, to which each is minutes of building.
    sizes = (*spec.batches, 4 * spec.batches[-1])
    return tuple(size for size in sizes if size >= _FEW_TEXTS)


_FEW_TEXTS = 16
"""Rows of texts that a run takes as long for as for one: some 400 tokens are a fraction of a wave
on a GPU, and the launches are the same."""
