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
)
from granalign_fast.models.image_layout import ImageLayout
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.vision_language_model import VisionLanguageModel

from .encoder import raise_mismatches
from .language_model import (
    compare_logits,
    compare_values,
    rounding_error,
    static_step,
)
from .vlm_reference import BEFORE, VlmReference

Ids = npt.NDArray[np.int64]


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
        token and the unrounded source; and the errors of logits that `validate_llm` describes.

    Raises:
        GranAlignError: out of tolerance; the message names every run that is.
    """
    # Frames to embeddings, by both vision graphs. One session at a time: each holds its weights.
    images = {
        VISION_GRAPH: open_session(folder / VISION_GRAPH)(**{FRAMES: expected.frames}),
        PATCHES_GRAPH: open_session(folder / PATCHES_GRAPH)(**{PIXEL_VALUES: expected.pixels}),
    }
    embeds = {name: outputs[IMAGE_EMBEDS] for name, outputs in images.items()}
    measured, failures = compare_values(embeds, expected.embeds, tolerance.image)
    rounding, more = rounding_error(expected.embeds, expected.original_embeds, tolerance.image)
    measured["rounding_error"] = rounding
    measured["min_cosine"] = _least_cosine(embeds.values(), expected.original_embeds)
    failures += more
    # Prompts to logits: the graph with a growing cache, then the static one.
    rows = _Rows.read(folder, source, expected.prompts, embeds[VISION_GRAPH])
    decoder = _Decoder(folder / GRAPH, source)
    runs = {"padded": decoder.padded(rows), "after a prefix": decoder.after_prefix(rows)}
    del decoder
    runs |= _static(folder, expected, manifest)
    of_logits, more = compare_logits(runs, expected.logits, tolerance.logits)
    raise_mismatches(failures + more, tolerance)
    return {f"image_{name}": value for name, value in measured.items()} | of_logits


def _least_cosine(runs: Iterable[npt.NDArray[Any]], expected: Float32) -> float:
    """Return the least cosine of a token's embeddings in some runs and those expected."""
    wanted = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    return min(
        float((run / np.linalg.norm(run, axis=-1, keepdims=True) * wanted).sum(axis=-1).min())
        for run in (run.astype(np.float32) for run in runs)
    )


def _text(start: int, count: int) -> Ids:
    """Return the positions (3, count) of text tokens: time, row and column are equal."""
    return np.tile(np.arange(start, start + count), (3, 1))


@dataclass(frozen=True)
class _Rows:
    """Prompts as embeddings, (tokens, hidden) each, and the layout of the frame in each of them."""

    embeds: list[npt.NDArray[Any]]
    layout: ImageLayout

    @classmethod
    def read(
        cls, folder: Path, source: VlmSource, prompts: list[list[int]], frames: npt.NDArray[Any]
    ) -> _Rows:
        """Embed token ids, and put the frames' embeddings in the place of image tokens."""
        session = open_session(folder / EMBEDDING_GRAPH)
        rows = []
        for ids, frame in zip(prompts, frames, strict=True):
            row = session(**{INPUT_IDS: np.array([ids])})[INPUTS_EMBEDS][0]
            row[np.array(ids) == source.image_token] = frame
            rows.append(row)
        return cls(rows, source.layouts[1])

    @property
    def shared(self) -> int:
        """Number of tokens of a row up to the end of its frame; all rows have the same."""
        return BEFORE + self.layout.visual_tokens

    def positions(self) -> list[Ids]:
        """Return the positions of each row, (axes, tokens)."""
        text = -1  # of no placeholder
        return [
            self.layout.expand(
                [text] * BEFORE + list(self.layout.placeholder) + [text] * (len(row) - self.shared)
            ).positions
            for row in self.embeds
        ]


class _Decoder:
    """The decoder graph with a growing cache."""

    def __init__(self, path: Path, source: VlmSource) -> None:
        self._session = open_session(path)
        self._heads = source.shape.kv_heads, source.shape.head_dim

    def padded(self, rows: _Rows) -> Float32:
        """Return the logits of one batch, padded on the left."""
        return self._last(*_left_padded(rows.embeds, rows.positions()))

    def after_prefix(self, rows: _Rows) -> Float32:
        """Return the logits of two runs: text and frame without padding, then the rest."""
        # Run text and frame, and keep their cache.
        cut = rows.shared
        prefix = [positions[:, :cut] for positions in rows.positions()]
        embeds, positions, mask = _left_padded([row[:cut] for row in rows.embeds], prefix)
        outputs = self._step(embeds, positions, mask)
        cache = {name.replace("present", "past_key_values"): outputs[name] for name in outputs}
        del cache[LOGITS]
        # Run the rest, whose positions follow the greatest of the prefix.
        rest = [row[cut:] for row in rows.embeds]
        text = [
            _text(int(before.max()) + 1, len(row)) for before, row in zip(prefix, rest, strict=True)
        ]
        embeds, positions, more = _left_padded(rest, text)
        return self._last(embeds, positions, np.concatenate([mask, more], axis=1), cache)

    def _last(self, *inputs: Any) -> Float32:
        logits: Float32 = self._step(*inputs)[LOGITS][:, 0]
        return logits

    def _step(
        self,
        embeds: npt.NDArray[Any],
        positions: Ids,
        mask: Ids,
        cache: dict[str, npt.NDArray[Any]] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once, after an empty cache unless one is passed."""
        heads, size = self._heads
        inputs = {INPUTS_EMBEDS: embeds, POSITION_IDS: positions, ATTENTION_MASK: mask}
        empty = np.empty((len(embeds), heads, 0, size), embeds.dtype)
        past = {name: empty for name in self._session.inputs if name not in inputs}
        return self._session(**inputs, **(past | (cache or {})))


def _static(folder: Path, expected: VlmReference, manifest: VlmManifest) -> dict[str, Float32]:
    """Return the static graph's logits after prefilled frames: as one batch, and by a step."""
    model = VisionLanguageModel(folder, static_cache=True, manifest=manifest)
    layout = model.layout()
    image, count = model.manifest.image_token, layout.visual_tokens
    # Prefill each prompt up to its frame, and stack the caches.
    prefixes, ends = [], []
    for frame, ids in zip(expected.frames, expected.prompts, strict=True):
        start = ids.index(image)
        before = [*ids[:start], *layout.placeholder]
        prefixes += model.prefill_frames(frame[None], before).unstack()
        ends.append(ids[start + count :])
    prefix = Prefix.stack(prefixes, model.fingerprint, model.position_after(before))
    # Run the text after the frames.
    return {
        "static": model.logits(ends, prefix=prefix),
        "a static step": static_step(model, ends, prefix),
    }


def _left_padded(
    rows: list[npt.NDArray[Any]], positions: list[Ids]
) -> tuple[npt.NDArray[Any], Ids, Ids]:
    """Pad rows on the left; return embeddings, positions (3, rows, tokens) and mask of a batch."""
    longest = max(map(len, rows))
    embeds = np.stack([np.pad(row, ((longest - len(row), 0), (0, 0))) for row in rows])
    padded = [np.pad(axes, ((0, 0), (longest - axes.shape[1], 0))) for axes in positions]
    mask = [np.arange(longest) >= longest - len(row) for row in rows]
    return embeds, np.stack(padded, axis=1), np.array(mask, np.int64)
