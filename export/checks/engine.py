"""Is an engine still its ONNX? Compared on the CPU's results, at every batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import ENGINE_PRECISIONS
from granalign_fast.export.vlm_specs import VISION_ENGINES
from granalign_fast.models.encoder import equal_length_batches, load_tokenizer, tokenise
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.graph_contract import (
    EMBEDDINGS,
    FRAMES,
    IMAGE_EMBEDS,
    INPUT_IDS,
    PADDED_IDS,
)
from granalign_fast.runtime.engine import Engine
from granalign_fast.runtime.shapes import read_inputs

from .encoder import compare, refuse
from .language_model import compare_values
from .sentences import VALIDATION

_FRAMES = 3
"""Frames that are compared; large towers take seconds for each on a CPU."""

Arrays = dict[str, npt.NDArray[Any]]


def validate_engine(path: Path, graph: Path, device: int) -> dict[str, float]:
    """Compare an engine with the graph that it was built from.

    Every batch size runs twice, so that the second run of each shape is its CUDA graph's.

    Returns:
        What was measured: of embeddings the worst ``max_abs_error`` and ``min_cosine`` and
        ``mean_cosine``; of a vision tower ``max_abs_error`` and ``relative_error``.

    Raises:
        GranAlignError: out of tolerance; the message names every batch size that is.
    """
    engine = Engine(path, graph.parent, device=device)
    judge = open_session(graph, device="cpu")
    cases = sample_inputs(graph)
    judged = [judge(**case) for case in cases]
    del judge
    tolerances: dict[str, Any] = ENGINE_PRECISIONS if EMBEDDINGS in judged[0] else VISION_ENGINES
    tolerance = tolerances[engine.stamp.precision]
    worst: dict[str, float] = {}
    failures: list[str] = []
    for profile in engine.stamp.profiles:
        batch = next(iter(profile.values())).most[0]
        for again in ("", ", again"):
            got = [engine(_repeated(case, batch)) for case in cases]
            rows = [
                {name: result[: len(want[name])] for name, result in found.items()}
                for found, want in zip(got, judged, strict=True)
            ]
            measured, wrong = _compare(rows, judged, tolerance)
            if wrong:
                summary = f"{len(wrong)} mismatches, such as {wrong[0]}"
                failures.append(f"batches of {batch}{again}: {summary}")
            worst = _worst(worst, measured)
    refuse(failures, tolerance)
    return worst


def sample_inputs(graph: Path) -> list[Arrays]:
    """Inputs for a graph: texts of many lengths, each a batch, or frames.

    Raises:
        GranAlignError: the graph takes something else.
    """
    inputs = read_inputs(graph)
    if {INPUT_IDS, PADDED_IDS} & inputs.keys():
        return _texts(graph, set(inputs))
    for name, shape in inputs.items():
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        if name == FRAMES:
            return [{name: _blocks(sizes[0], sizes[1])}]
    raise GranAlignError(f"{graph}: got inputs {sorted(inputs)}, expected texts or frames")


def _texts(graph: Path, names: set[str]) -> list[Arrays]:
    tokens = tokenise(load_tokenizer(graph.parent), list(VALIDATION))
    cases: list[Arrays] = []
    for batch in equal_length_batches(tokens, 1 << 30):
        ids = np.array([tokens[i] for i in batch], np.int32)
        if names == {INPUT_IDS}:
            cases.append({INPUT_IDS: ids})
            continue
        if names == {PADDED_IDS}:
            cases.append({PADDED_IDS: ids + 1})
            continue
        wide = ids.astype(np.int64)  # optimum's graphs
        arrays: Arrays = {
            INPUT_IDS: wide,
            "attention_mask": np.ones_like(wide),
            "token_type_ids": np.zeros_like(wide),
        }
        cases.append({name: arrays[name] for name in names})
    return cases


def _blocks(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Frames of coloured blocks under noise (frames, height, width, 3), no two alike."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 192, (_FRAMES, 7, 7, 3))
    frames = blocks[:, np.arange(height) * 7 // height][:, :, np.arange(width) * 7 // width]
    return (frames + random.integers(0, 64, frames.shape)).astype(np.uint8)


def _repeated(case: Arrays, batch: int) -> Arrays:
    """The rows again and again: as many as fill a batch, and no fewer than there are."""
    rows = len(next(iter(case.values())))
    order = np.arange(max(rows, batch)) % rows
    return {name: array[order] for name, array in case.items()}


def _compare(
    got: list[Arrays], expected: list[Arrays], tolerance: Any
) -> tuple[dict[str, float], list[str]]:
    if EMBEDDINGS in expected[0]:
        found, wanted = (
            _unit(np.concatenate([arrays[EMBEDDINGS] for arrays in side]))
            for side in (got, expected)
        )
        labels = [f"row {i}" for i in range(len(wanted))]
        return compare(labels, found, wanted, tolerance)
    found, wanted = (
        np.concatenate([arrays[IMAGE_EMBEDS] for arrays in side]).astype(np.float32)
        for side in (got, expected)
    )
    return compare_values({"frames": found}, wanted, tolerance)


def _unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Unit length, which some models leave to the caller."""
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def _worst(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    pick = {True: min, False: max}
    return other | {
        name: pick["cosine" in name](value, other[name])
        for name, value in one.items()
        if name in other
    }
