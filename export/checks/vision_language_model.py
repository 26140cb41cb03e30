"""Comparison of an exported vision-language model with its source, which transformers runs.

Two things are compared. The embeddings of frames: from bytes, and from the pixels of the source's
own processor. The logits after prompts that hold one frame each: by every graph, with and without a
prefix. All mismatches are collected and raised at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import VlmTolerance
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.graph_contract import (
    ATTENTION_MASK,
    DEEPSTACK,
    EMBEDDING_GRAPH,
    FRAMES,
    GRAPH,
    IMAGE_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    PATCHES_GRAPH,
    PIXEL_VALUES,
    POSITION_IDS,
    VISION_GRAPH,
    is_past,
)
from granalign_fast.models.image_layout import Expanded
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.vision_language_model import VisionLanguageModel, by_clip

from .encoder import raise_mismatches
from .language_model import (
    compare_logits,
    compare_values,
    rounding_error,
    static_step,
)
from .vlm_reference import BEFORE, ClipReference, VlmReference

Ids = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


def validate_vlm(
    folder: Path,
    source: VlmSource,
    expected: VlmReference,
    tolerance: VlmTolerance,
    manifest: VlmManifest,
) -> dict[str, float]:
    """Compare an exported folder, which has no manifest yet, with its source.

    Frames and token ids go in, logits come out.

    Returns:
        ``image_max_abs_error`` and ``image_relative_error`` of embeddings, the worst of both vision
        graphs; ``image_rounding_error``, as `validate_llm` describes it; ``image_min_cosine`` of a
        token and the unrounded source; the errors of logits that `validate_llm` describes; and
        ``clip_...``, those of logits after a clip.

    Raises:
        GranAlignError: out of tolerance; the message names every run that is.
    """
    # Frames to embeddings, by both vision graphs. One session at a time: each holds its weights.
    images = {
        VISION_GRAPH: open_session(folder / VISION_GRAPH)(**{FRAMES: expected.images}),
        PATCHES_GRAPH: open_session(folder / PATCHES_GRAPH)(**{PIXEL_VALUES: expected.pixels}),
    }
    measured: dict[str, float] = {}
    failures: list[str] = []
    for output, values in expected.outputs.items():
        shown = "" if output == IMAGE_EMBEDS else f" ({output})"
        found = {f"{name}{shown}": outputs[output] for name, outputs in images.items()}
        errors, wrong = compare_values(found, values, tolerance.image)
        errors["rounding_error"], more = rounding_error(
            values, expected.original[output], tolerance.image
        )
        measured = {name: max(error, measured.get(name, 0.0)) for name, error in errors.items()}
        failures += wrong + more
    embeds = [outputs[IMAGE_EMBEDS] for outputs in images.values()]
    measured["min_cosine"] = _least_cosine(embeds, expected.original[IMAGE_EMBEDS])
    # Prompts to logits: the graph with a growing cache, then the static one.
    rows = _Rows.read(folder, source, expected.prompts, images[VISION_GRAPH])
    decoder = _Decoder(folder / GRAPH, source)
    runs = {"padded": decoder.padded(rows), "after a prefix": decoder.after_prefix(rows)}
    del decoder
    runs |= _static(folder, expected, manifest)
    of_logits, more = compare_logits(runs, expected.logits, tolerance.logits)
    failures += more
    # A clip of several frames, with both caches.
    if expected.clip is not None:
        of_clip, more = compare_values(
            _clip_runs(folder, expected.clip, manifest),
            expected.clip.logits.logits,
            tolerance.logits,
        )
        of_logits |= {f"clip_{name}": error for name, error in of_clip.items()}
        failures += more
    raise_mismatches(failures, tolerance)
    return {f"image_{name}": value for name, value in measured.items()} | of_logits


def _clip_runs(folder: Path, clip: ClipReference, manifest: VlmManifest) -> dict[str, Float32]:
    """Return the logits (1, vocabulary) after a prompt about a clip, by each kind of cache."""
    runs = {}
    for name, static in (("a clip", False), ("a clip, static", True)):
        model = VisionLanguageModel(folder, static_cache=static, manifest=manifest)
        prefix = model.prefill_clips(clip.frames[None], clip.before, seconds=clip.seconds)
        runs[name] = model.logits([clip.after], prefix=prefix)
    return runs


def _least_cosine(runs: Iterable[npt.NDArray[Any]], expected: Float32) -> float:
    """Return the least cosine of a token's embeddings in some runs and those expected."""
    wanted = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    return min(
        float((run / np.linalg.norm(run, axis=-1, keepdims=True) * wanted).sum(axis=-1).min())
        for run in (run.astype(np.float32) for run in runs)
    )


def _text(start: int, count: int) -> Ids:
    """Return the positions (count,) of text tokens, which are the same on every axis."""
    return np.arange(start, start + count)


@dataclass(frozen=True)
class _Rows:
    """Prompts with a frame each.

    Attributes:
        prompts: with all of their tokens.
        embeds: of each prompt, (tokens, hidden).
        features: of each prompt, (layers, tokens, hidden); none without deepstack.
        shared: number of tokens of a row up to the end of its frame, the same for all rows.
    """

    prompts: list[Expanded]
    embeds: list[npt.NDArray[Any]]
    features: list[npt.NDArray[Any]]
    shared: int

    @classmethod
    def read(
        cls,
        folder: Path,
        source: VlmSource,
        prompts: list[list[int]],
        images: dict[str, npt.NDArray[Any]],
    ) -> _Rows:
        """Embed token ids, and put what the tower gave in the place of image tokens."""
        session, layout = open_session(folder / EMBEDDING_GRAPH), source.layouts[1]
        expanded = [layout.expand(ids) for ids in prompts]
        seen = {name: by_clip(array, len(prompts)) for name, array in images.items()}
        rows, features = [], []
        for number, prompt in enumerate(expanded):
            row = session(**{INPUT_IDS: np.array([prompt.ids])})[INPUTS_EMBEDS][0]
            row[prompt.visual] = seen[IMAGE_EMBEDS][number]
            rows.append(row)
            if DEEPSTACK in images:
                layers = np.zeros((source.deepstack, *row.shape), row.dtype)
                layers[:, prompt.visual] = seen[DEEPSTACK][number]
                features.append(layers)
        start = prompts[0][: BEFORE + len(layout.placeholder)]
        return cls(expanded, rows, features, len(layout.expand(start).ids))

    def positions(self) -> list[Ids]:
        """Return the positions of each row, (axes, tokens)."""
        return [prompt.positions for prompt in self.prompts]


class _Decoder:
    """The decoder graph with a growing cache."""

    def __init__(self, path: Path, source: VlmSource) -> None:
        self._session = open_session(path)
        self._heads = source.shape.kv_heads, source.shape.head_dim

    def padded(self, rows: _Rows) -> Float32:
        """Return the logits of one batch, padded on the left."""
        return self._last(_batch(rows.embeds, rows.positions(), rows.features))

    def after_prefix(self, rows: _Rows) -> Float32:
        """Return the logits of two runs: text and frame without padding, then the rest."""
        # Run text and frame, and keep their cache.
        cut = rows.shared
        prefix = [positions[:, :cut] for positions in rows.positions()]
        first = _batch(
            [row[:cut] for row in rows.embeds],
            prefix,
            [layers[:, :cut] for layers in rows.features],
        )
        outputs = self._step(first)
        cache = {name.replace("present", "past_key_values"): outputs[name] for name in outputs}
        del cache[LOGITS]
        # Run the rest, whose positions follow the greatest of the prefix.
        rest = [row[cut:] for row in rows.embeds]
        text = [
            np.tile(_text(int(before.max()) + 1, len(row)), (len(before), 1))
            for before, row in zip(prefix, rest, strict=True)
        ]
        second = _batch(rest, text, [layers[:, cut:] for layers in rows.features])
        masks = [first[ATTENTION_MASK], second[ATTENTION_MASK]]
        return self._last(second | {ATTENTION_MASK: np.concatenate(masks, axis=1)}, cache)

    def _last(self, inputs: Arrays, cache: Arrays | None = None) -> Float32:
        logits: Float32 = self._step(inputs, cache)[LOGITS][:, 0]
        return logits

    def _step(self, inputs: Arrays, cache: Arrays | None = None) -> Arrays:
        """Run the graph once, after an empty cache unless one is passed."""
        (heads, size), embeds = self._heads, inputs[INPUTS_EMBEDS]
        empty = np.empty((len(embeds), heads, 0, size), embeds.dtype)
        past = {name: empty for name in self._session.inputs if is_past(name)}
        return self._session(**inputs, **(past | (cache or {})))


def _static(folder: Path, expected: VlmReference, manifest: VlmManifest) -> dict[str, Float32]:
    """Return the static graph's logits after prefilled frames: as one batch, and by a step."""
    model = VisionLanguageModel(folder, static_cache=True, manifest=manifest)
    cut = BEFORE + len(model.layout().placeholder)
    # Prefill each prompt up to its frame, and stack the caches.
    prefixes, ends = [], []
    for frame, ids in zip(expected.frames, expected.prompts, strict=True):
        before = ids[:cut]
        prefixes += model.prefill_frames(frame[None], before).unstack()
        ends.append(ids[cut:])
    prefix = Prefix.stack(prefixes, model.fingerprint, model.position_after(before))
    # Run the text after the frames.
    return {
        "static": model.logits(ends, prefix=prefix),
        "a static step": static_step(model, ends, prefix),
    }


def _batch(
    rows: list[npt.NDArray[Any]], positions: list[Ids], features: list[npt.NDArray[Any]]
) -> Arrays:
    """Pad rows on the left, and return them as inputs of the decoder's graph.

    Args:
        rows: embeddings, (tokens, hidden) each.
        positions: (axes, tokens) each.
        features: (layers, tokens, hidden) each; none without deepstack.
    """
    longest = max(map(len, rows))
    missing = [(longest - len(row), 0) for row in rows]

    def padded(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Pad the last axis but one of embeddings and features."""
        before = [(0, 0)] * (arrays[0].ndim - 2)
        pads = [[*before, pad, (0, 0)] for pad in missing]
        return np.stack([np.pad(one, pad) for one, pad in zip(arrays, pads, strict=True)])

    axes = [np.pad(one, ((0, 0), pad)) for one, pad in zip(positions, missing, strict=True)]
    placed = np.stack(axes, axis=1)
    mask = [np.arange(longest) >= longest - len(row) for row in rows]
    inputs: Arrays = {
        INPUTS_EMBEDS: padded(rows),
        POSITION_IDS: placed if len(placed) > 1 else placed[0],
        ATTENTION_MASK: np.array(mask, np.int64),
    }
    return inputs | ({DEEPSTACK: padded(features)} if features else {})
