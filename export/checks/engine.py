"""Comparison of a TensorRT engine with its ONNX graph, which runs on the CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.export.specs import ENGINE_PRECISIONS, VISION_ENGINES
from granalign_fast.files import read_json
from granalign_fast.models.encoder import equal_length_batches, tokenise
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.graph_contract import (
    EMBEDDINGS,
    FRAMES,
    INPUT_IDS,
    PADDED_IDS,
)
from granalign_fast.models.tokenizer_file import fit, load_tokenizer
from granalign_fast.runtime.engine import Engine
from granalign_fast.runtime.shapes import read_inputs

from .encoder import compare_embeddings, raise_mismatches
from .language_model import compare_values
from .sentences import VALIDATION

_FRAMES = 3
"""Frames or clips to compare: few, because large towers take seconds for each on a CPU."""

Arrays = dict[str, npt.NDArray[Any]]


def validate_engine(path: Path, graph: Path, device: int) -> dict[str, float]:
    """Compare an engine with the graph that it was built from, at every batch size.

    Every batch size runs twice: the second run of each shape is that of its CUDA graph.

    Args:
        path: the engine.
        graph: the ONNX graph.
        device: number of the GPU.

    Returns:
        The worst errors over all batch sizes: for embeddings ``max_abs_error``, ``min_cosine``
        and ``mean_cosine``; for a vision tower ``max_abs_error`` and ``relative_error``.

    Raises:
        GranAlignError: out of tolerance; the message names every batch size that is.
    """
    engine = Engine(path, graph.parent, device=device)
    # Run the ONNX graph on the CPU, once for each case.
    session = open_session(graph, device="cpu")
    cases = sample_inputs(graph)
    expected = [session(**case) for case in cases]
    del session
    tolerances: dict[str, Any] = ENGINE_PRECISIONS if EMBEDDINGS in expected[0] else VISION_ENGINES
    tolerance = tolerances[engine.stamp.precision]
    worst: dict[str, float] = {}
    failures: list[str] = []
    # Run the engine at the greatest batch size of each profile, and compare the first rows.
    for profile in engine.stamp.profiles:
        batch = next(iter(profile.values())).most[0]
        for again in ("", ", again"):
            outputs = [engine(_fill_batch(case, batch)) for case in cases]
            rows = [
                {name: array[: len(reference[name])] for name, array in output.items()}
                for output, reference in zip(outputs, expected, strict=True)
            ]
            measured, mismatches = _compare(rows, expected, tolerance)
            if mismatches:
                summary = f"{len(mismatches)} mismatches, such as {mismatches[0]}"
                failures.append(f"batches of {batch}{again}: {summary}")
            worst = _worst(worst, measured)
    raise_mismatches(failures, tolerance)
    return worst


def sample_inputs(graph: Path) -> list[Arrays]:
    """Return inputs for a graph: one batch of texts for each length, or one batch of frames.

    Raises:
        GranAlignError: the graph takes neither texts nor frames.
    """
    inputs = read_inputs(graph)
    if {INPUT_IDS, PADDED_IDS} & inputs.keys():
        return _sample_texts(graph, set(inputs))
    for name, shape in inputs.items():
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        if name == FRAMES:
            # (batch, height, width, 3), or clips: (batch, frames, height, width, 3).
            clip, (height, width) = sizes[:-3], sizes[-3:-1]
            frames = _sample_frames(_FRAMES * math.prod(clip), height, width)
            return [{name: frames.reshape(_FRAMES, *clip, height, width, 3)}]
    raise GranAlignError(f"{graph}: got inputs {sorted(inputs)}, expected texts or frames")


def _sample_texts(graph: Path, names: set[str]) -> list[Arrays]:
    """Return the validation texts in batches of equal length, as the inputs of these names."""
    longest = int(read_json(graph.parent / "manifest.json")["max_tokens"])
    tokens = tokenise(fit(load_tokenizer(graph.parent), longest), list(VALIDATION))
    cases: list[Arrays] = []
    for batch in equal_length_batches(tokens, 1 << 30):
        ids = np.array([tokens[i] for i in batch], np.int32)
        if names == {INPUT_IDS}:
            cases.append({INPUT_IDS: ids})
            continue
        if names == {PADDED_IDS}:
            cases.append({PADDED_IDS: ids + 1})
            continue
        # Graphs that optimum wrote take int64, and may take a mask and token types.
        int64_ids = ids.astype(np.int64)
        arrays: Arrays = {
            INPUT_IDS: int64_ids,
            "attention_mask": np.ones_like(int64_ids),
            "token_type_ids": np.zeros_like(int64_ids),
        }
        cases.append({name: arrays[name] for name in names})
    return cases


def _sample_frames(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return different frames of coloured blocks under noise, (count, height, width, 3)."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 192, (count, 7, 7, 3))
    frames = blocks[:, np.arange(height) * 7 // height][:, :, np.arange(width) * 7 // width]
    return (frames + random.integers(0, 64, frames.shape)).astype(np.uint8)


def _fill_batch(case: Arrays, batch: int) -> Arrays:
    """Repeat the rows until they fill a batch; a case with more rows keeps all of them."""
    rows = len(next(iter(case.values())))
    order = np.arange(max(rows, batch)) % rows
    return {name: array[order] for name, array in case.items()}


def _compare(
    got: list[Arrays], expected: list[Arrays], tolerance: Any
) -> tuple[dict[str, float], list[str]]:
    """Compare the outputs of all cases; return the errors by name and a line for each mismatch."""
    if EMBEDDINGS in expected[0]:
        ours, reference = (
            _unit_rows(np.concatenate([arrays[EMBEDDINGS] for arrays in side]))
            for side in (got, expected)
        )
        labels = [f"row {i}" for i in range(len(reference))]
        return compare_embeddings(labels, ours, reference, tolerance)
    # A vision tower: its tokens, and the features that a decoder adds behind its first layers.
    measured: dict[str, float] = {}
    mismatches: list[str] = []
    for name in expected[0]:
        ours, reference = (
            np.concatenate([arrays[name] for arrays in side]).astype(np.float32)
            for side in (got, expected)
        )
        errors, lines = compare_values({name: ours}, reference, tolerance)
        measured, mismatches = _worst(errors, measured), mismatches + lines
    return measured, mismatches


def _unit_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Scale rows to unit length, which some models leave to the caller."""
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def _worst(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Merge two measurements: the lesser cosine and the greater error of each name.

    A name that only one of them has keeps its value.
    """
    pick = {True: min, False: max}
    return other | {
        name: pick["cosine" in name](value, other.get(name, value)) for name, value in one.items()
    }
