"""The self-check of an export: the first layers of its graphs against NumPy in float64.

It needs neither torch nor transformers. The builder that wrote the export's graphs also writes
these, over the same file of weights, and with few layers, so a check needs little memory whatever
the model's size. Settings that we misread are wrong on both sides: only the comparison with
transformers finds those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.families import family_of, tower_graphs
from granalign_fast.export.graphs.decoder import DecoderGraph
from granalign_fast.export.graphs.tensor_file import GraphTensors
from granalign_fast.export.graphs.vlm_decoder import EmbeddingGraph, VlmDecoderGraph
from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.language_model import DecoderShape, LlmSource
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import LlmTolerance, VlmTolerance
from granalign_fast.models.graph_contract import (
    ATTENTION_MASK,
    CACHED_TOKENS,
    CLIPS_GRAPH,
    DEEPSTACK,
    FRAMES,
    IMAGE_AT,
    IMAGE_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LAST,
    LOGITS,
    PATCHES_GRAPH,
    PIXEL_VALUES,
    POSITION_IDS,
    VISION_GRAPH,
    WRITE_INDICES,
    is_past,
    present_of,
)

from .encoder import raise_mismatches
from .float64_decoder import decoder_logits, token_embeddings
from .language_model import compare_values
from .lean_session import LeanSession

LAYERS = 2
"""Layers that are checked."""

_TOKENS, _PREFIX = 13, 5
"""Tokens of the prompt, and how many of them run before the others."""

_AT = 2
"""Tokens of the prompt before an image."""

Arrays = dict[str, npt.NDArray[Any]]


def check_decoder(
    source: LlmSource,
    folder: Path,
    tensors: GraphTensors,
    *,
    precision: str,
    tolerance: LlmTolerance,
) -> dict[str, float]:
    """Check the first layers of a language model's graphs.

    The tokens stand at the end of the context, where wrong rotary positions show most.

    Args:
        source: the model.
        folder: the draft, with the file of weights.
        tensors: the store of the graphs' weights.
        precision: of the export.
        tolerance: as for the comparison with transformers.

    Returns:
        ``max_abs_error`` and ``relative_error`` of the logits, the worst of all runs; ``layers``.

    Raises:
        GranAlignError: out of tolerance; the message names every run that is.
    """
    few = replace(source, shape=_first(source.shape))
    ids = np.random.default_rng(0).integers(source.shape.vocabulary, size=_TOKENS).tolist()
    ids = ids[: source.shape.context - 1]
    positions = source.shape.context - 1 - len(ids) + np.arange(len(ids))
    runs = _Runs(few, positions[None], precision)
    inputs = {INPUT_IDS: np.array([ids])}
    growing = DecoderGraph(few, tensors, precision=precision).model()
    static = DecoderGraph(few, tensors, precision=precision, static=True).model()
    with _session(growing, folder, precision) as session:
        found = runs.growing(session, inputs)
    with _session(static, folder, precision) as session:
        found |= runs.static(session, inputs)
    # The same in float64. The graphs' angles are float32's products, as in the source.
    quantised = precision == "int4"
    embeds = token_embeddings(few, ids, quantised=quantised)
    angles = positions.astype(np.float32)[:, None] * source.shape.frequencies
    expected = decoder_logits(few, embeds, angles, quantised=quantised)
    return _judged(found, expected, tolerance, few)


def check_vlm(
    source: VlmSource,
    folder: Path,
    vision: GraphTensors,
    decoder: GraphTensors,
    *,
    precision: str,
    tolerance: VlmTolerance,
) -> dict[str, float]:
    """Check the first layers of a vision-language model's graphs, from a frame to logits.

    Args:
        source: the model.
        folder: the draft, with both files of weights.
        vision: the store of the vision tower's weights.
        decoder: the store of the decoder's weights.
        precision: of the export.
        tolerance: as for the comparison with transformers.

    Returns:
        The errors of `check_decoder`, and those of the frame's embeddings as ``image_...``.

    Raises:
        GranAlignError: as for `check_decoder`.
    """
    shape = _first(source.shape, max(LAYERS, source.deepstack + 1))
    few = replace(source, shape=shape, vision=source.vision.first(LAYERS))
    measured, images = _check_towers(few, folder, vision, precision, tolerance)
    embeds = images[IMAGE_EMBEDS]
    quantised = precision == "int4"
    # A prompt with the frame, and the positions of its tokens.
    layout = source.layouts[1]
    words = np.random.default_rng(0).integers(source.shape.vocabulary, size=_TOKENS)
    words[words == source.image_token] = source.image_token - 1
    prompt = layout.expand([*words[:_AT].tolist(), *layout.placeholder, *words[_AT:].tolist()])
    # The first image, if the frame has tiles: the check of all would take a lot of memory.
    at = int(prompt.visual[0])
    ids = prompt.ids[: min(source.shape.context - 1, at + len(embeds) + _TOKENS - _AT)]
    positions = prompt.positions[:, : len(ids)]
    runs = _Runs(few, positions, precision)
    with _session(
        EmbeddingGraph(few, decoder, precision=precision).model(), folder, precision
    ) as session:
        rows = session(**{INPUT_IDS: np.array([ids])})[INPUTS_EMBEDS]
    rows[0, at : at + len(embeds)] = embeds
    # Features that the decoder adds at the frame's tokens, and none at the text.
    more: Arrays = {}
    if source.deepstack:
        features = np.zeros((1, source.deepstack, len(ids), source.shape.hidden), rows.dtype)
        features[0, :, at : at + len(embeds)] = images[DEEPSTACK]
        more[DEEPSTACK] = features
    growing = VlmDecoderGraph(few, decoder, precision=precision).model()
    static = VlmDecoderGraph(few, decoder, precision=precision, static=True).model()
    with _session(growing, folder, precision) as session:
        found = runs.growing(session, {INPUTS_EMBEDS: rows, **more})
    with _session(static, folder, precision) as session:
        inputs = {INPUT_IDS: np.array([ids]), **more}
        image = {IMAGE_EMBEDS: embeds[None], IMAGE_AT: np.array([at])}
        found |= runs.static(session, inputs, image)
    # The same in float64, from the embeddings that the decoder got.
    tokens = token_embeddings(few, ids, quantised=quantised)
    tokens[at : at + len(embeds)] = embeds
    axes = list(source.axes) or [0] * len(source.shape.frequencies)
    angles = positions[axes].T.astype(np.float32) * source.shape.frequencies
    added = [features.astype(np.float64) for features in more[DEEPSTACK][0]] if more else []
    logits = decoder_logits(few, tokens, angles, quantised=quantised, features=added)
    measured = {f"image_{name}": value for name, value in measured.items()}
    return measured | _judged(found, logits, tolerance.logits, few)


def _check_towers(
    few: VlmSource,
    folder: Path,
    vision: GraphTensors,
    precision: str,
    tolerance: VlmTolerance,
) -> tuple[dict[str, float], Arrays]:
    """Check the graphs of a vision tower; return their errors, and the outputs for a frame."""
    height, width = few.image_size
    span, shape = few.vision.temporal, (height, width, 3)
    clip = np.random.default_rng(0).integers(0, 256, (span, *shape), np.uint8)
    # A frame as bytes, a clip as bytes, and a frame as the pixels of transformers' processor.
    frame = clip[:1]
    family, quantised = family_of(few), precision == "int4"
    pixels = family.pixels(few, frame).astype(np.float32)
    inputs: dict[str, tuple[Arrays, npt.NDArray[np.uint8]]] = {
        VISION_GRAPH: ({FRAMES: frame}, frame),
        CLIPS_GRAPH: ({FRAMES: clip[None]}, clip),
        PATCHES_GRAPH: ({PIXEL_VALUES: pixels}, frame),
    }
    outputs: dict[str, Arrays] = {}
    measured: dict[str, float] = {}
    failures: list[str] = []
    for name in tower_graphs(few):
        given, seen = inputs[name]
        graph = family.vision_graph(few, vision, precision=precision, graph=name).model()
        with _session(graph, folder, precision) as session:
            outputs[name] = {output: rows[0] for output, rows in session(**given).items()}
        for output, expected in family.images(few, seen, quantised=quantised).items():
            label = name if output == IMAGE_EMBEDS else f"{output} of {name}"
            values = {label: outputs[name][output]}
            errors, wrong = compare_values(values, expected.astype(np.float32), tolerance.image)
            measured = {key: max(error, measured.get(key, 0)) for key, error in errors.items()}
            failures += wrong
    raise_mismatches(failures, tolerance)
    return measured, outputs[VISION_GRAPH]


class _Runs:
    """The runs of a decoder's graphs on one prompt.

    Args:
        source: the model with few layers.
        positions: (1, tokens), or (3, tokens) of a vision-language model.
        precision: of the export.
    """

    def __init__(self, source: LlmSource, positions: npt.NDArray[np.int64], precision: str) -> None:
        self.shape = source.shape
        self.positions = positions if len(positions) == 1 else positions[:, None]
        self.tokens = positions.shape[1]
        self.dtype = np.float16 if precision == "fp16" else np.float32

    def growing(self, session: LeanSession, inputs: Arrays) -> dict[str, Float32]:
        """Return the logits after the whole prompt, and after a prefix and the rest."""
        empty = np.empty((1, self.shape.kv_heads, 0, self.shape.head_dim), self.dtype)
        past = {name: empty for name in session.inputs if is_past(name)}

        def step(part: slice, past: Arrays) -> Arrays:
            mask = {ATTENTION_MASK: np.ones((1, part.stop), np.int64)}
            return session(**self._part(inputs, part), **mask, **past)

        cut = min(_PREFIX, self.tokens - 1)
        prefix = step(slice(0, cut), past)
        rest = step(slice(cut, self.tokens), {name: prefix[present_of(name)] for name in past})
        whole = step(slice(0, self.tokens), past)
        return {"whole": whole[LOGITS][0], "after a prefix": rest[LOGITS][0]}

    def static(
        self, session: LeanSession, inputs: Arrays, first: Arrays | None = None
    ) -> dict[str, Float32]:
        """Return the logits of the static graph: after the whole prompt, and of a decode step.

        Args:
            session: of the graph.
            inputs: token ids.
            first: inputs of the run that begins the prompt: an image.
        """
        later = {}
        if first:  # no image
            hidden = first[IMAGE_EMBEDS].shape[2]
            later = {
                IMAGE_EMBEDS: np.empty((1, 0, hidden), self.dtype),
                IMAGE_AT: np.zeros(1, np.int64),
            }
        width = self.shape.kv_heads * self.shape.head_dim
        empty = np.zeros((1, self.tokens + 3, width), self.dtype)  # with room for more
        past = {name: empty for name in session.inputs if is_past(name)}

        def step(part: slice, past: Arrays, more: Arrays) -> Arrays:
            last = np.zeros((1, 1, part.stop - part.start), self.dtype)
            last[..., -1] = 1
            state = {
                WRITE_INDICES: np.array([part.start]),
                CACHED_TOKENS: np.array([part.stop]),
                LAST: last,
            }
            return session(**self._part(inputs, part), **state, **more, **past)

        whole = step(slice(0, self.tokens), past, first or {})
        before = step(slice(0, self.tokens - 1), past, first or {})
        cache = {name: before[present_of(name)] for name in past}
        after = step(slice(self.tokens - 1, self.tokens), cache, later)
        return {"static": whole[LOGITS][0], "a static step": after[LOGITS][0]}

    def _part(self, inputs: Arrays, part: slice) -> Arrays:
        """Return the inputs of some tokens, and their positions."""
        parts = {
            name: values[:, :, part] if name == DEEPSTACK else values[:, part]
            for name, values in inputs.items()
        }
        return parts | {POSITION_IDS: self.positions[..., part]}


def _judged(
    found: dict[str, Float32],
    expected: npt.NDArray[np.float64],
    tolerance: LlmTolerance,
    source: LlmSource,
) -> dict[str, float]:
    """Return the measured errors; raise if a run is out of tolerance."""
    measured, failures = compare_values(found, expected[None].astype(np.float32), tolerance)
    raise_mismatches(failures, tolerance)
    return measured | {"layers": source.shape.layers}


def _first(shape: DecoderShape, layers: int = LAYERS) -> DecoderShape:
    return replace(shape, layers=min(layers, shape.layers))


@contextmanager
def _session(model: Any, folder: Path, precision: str) -> Iterator[LeanSession]:
    """Open a graph whose weights are in a folder's files; its own file is deleted at the end."""
    path = folder / "check.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        yield LeanSession(path, quantised=precision == "int4")
    finally:
        path.unlink()
