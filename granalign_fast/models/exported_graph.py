"""ONNX files of exported folders: read their shapes from the manifest and open sessions."""

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

from .graph_contract import DYNAMIC_AXES, ENGINE_GRAPHS, EngineGraph

_FEW_TEXTS = 16
"""Least batch size of texts. A run of 16 texts takes as long as a run of one: some 400 tokens are a
fraction of a wave on a GPU, and the launches are the same."""

_log = logging.getLogger(__name__)


class ExportedGraph:
    """The shapes of an ONNX file, by the manifest in its folder; a `GraphContract`.

    Args:
        path: the ONNX file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def shapes(self) -> GraphShapes | None:
        """Return the same as `graph_shapes`."""
        return graph_shapes(self.path)

    def batches(self) -> tuple[int, ...] | None:
        """Return the batch sizes of an exported encoder; None for any other file."""
        manifest = self.path.parent / "manifest.json"
        if not manifest.is_file():
            return None
        record = read_json(manifest)
        return fixed_batches(record, self.path.name) if isinstance(record, dict) else None


def open_session(path: str | Path, **options: Any) -> Session:
    """Load a file of an exported folder.

    Args:
        path: the ONNX file.
        options: as for `runtime.session.open_session`.

    Raises:
        GranAlignError: as for `runtime.session.open_session`.
    """
    path = Path(path)
    begin = time.perf_counter()
    opened = session.open_session(path, contract=ExportedGraph(path), **options)
    _log.info("loaded %s by %s in %.2f s", path, opened.backend, time.perf_counter() - begin)
    if opened.graphs_refused:
        _log.info("%s runs without CUDA graphs: %s", path, opened.graphs_refused)
    return opened


def graph_shapes(graph: Path) -> GraphShapes | None:
    """Return the shapes of an exported folder's graph; None if TensorRT does not run the graph.

    TensorRT does not run decoders, as these have caches, nor weights that are rounded in blocks;
    CUDA runs both.

    Raises:
        GranAlignError: there is no manifest beside the graph, or one of its axes is not known.
    """
    manifest = graph.parent / "manifest.json"
    if not manifest.is_file():
        raise GranAlignError(
            f"{graph}: no manifest.json beside it, expected one with the shapes that TensorRT "
            f"needs; name a folder that `granalign export` wrote, or use device 'cuda'"
        )
    record = read_json(manifest)
    spec = _engine_graph(record, graph.name) if isinstance(record, dict) else None
    if spec is None or record.get("precision") in ("int8", "int4"):
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
    """Make the TensorRT profile of one batch size.

    Args:
        graph: for error messages.
        inputs: the shape of each input, with the names of dynamic axes.
        batch: rows of every input.
        tokens: the least, usual and greatest length of texts; None for a graph without texts.

    Raises:
        GranAlignError: an axis has an unknown name, or the first one is not the batch.
    """
    sizes = {"batch": (batch,) * 3} | ({"tokens": tokens} if tokens else {})
    profile = {}
    for name, shape in inputs.items():
        # The least, usual and greatest size of each axis. A fixed axis has one size.
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
    """Return the least, usual and greatest length of texts; None for a graph without texts.

    A tokenizer that pads makes all texts equally long.
    """
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
    """Return the batch sizes that a graph runs at on CUDA; None if it runs at any size.

    Args:
        manifest: the manifest of the graph's folder.
        graph: the graph's file name.
    """
    spec = _engine_graph(manifest, graph)
    if spec is None:
        return None
    if spec.tokens is None:
        return spec.batches
    # One larger size than for TensorRT, where each size takes minutes to build.
    sizes = (*spec.batches, 4 * spec.batches[-1])
    return tuple(size for size in sizes if size >= _FEW_TEXTS)


def _engine_graph(manifest: Mapping[str, Any], graph: str) -> EngineGraph | None:
    """Return the entry of `ENGINE_GRAPHS` for a file, or None."""
    specs = ENGINE_GRAPHS.get(str(manifest.get("kind")), ())
    return next((spec for spec in specs if spec.file == graph), None)
