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

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import HEAD, VlmTolerance
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
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.vision_language_model import VisionLanguageModel, frame_positions
from granalign_fast.reading import checked_file

from .encoder import raise_mismatches
from .language_model import (
    ReferenceLogits,
    check_frequencies,
    compare_logits,
    compare_values,
    require_weights,
    round_products,
    round_weights,
    rounding_error,
    static_step,
)
from .transformers_calls import image_tokens, load_image_processor, pooled

Ids = npt.NDArray[np.int64]

_SIZES = ((97, 161), (180, 320), (320, 180))
"""Heights and widths of the validation frames before they are resized."""
_BEFORE = 5
"""Tokens before the frame of each prompt."""
_AFTER = (2, 17, 9)
"""Tokens after the frame of each prompt: ragged, so that rows are padded."""


@dataclass(frozen=True)
class VlmReference:
    """The source's inputs and its float32 outputs.

    Attributes:
        frames: bytes of the image size, (frames, height, width, 3).
        pixels: the same frames after the source's image processor, (frames, patches, values).
        embeds: embeddings of the source, its weights rounded as in the export, (frames, image
            tokens, hidden).
        original_embeds: those of the source as it is.
        prompts: token ids, one prompt for each frame.
        logits: the source's logits after each prompt.
    """

    frames: npt.NDArray[np.uint8]
    pixels: Float32
    embeds: Float32
    original_embeds: Float32
    prompts: list[list[int]]
    logits: ReferenceLogits


def run_vlm_source(source: VlmSource, precision: str) -> VlmReference:
    """Run the source with transformers on the validation frames and prompts.

    Raises:
        GranAlignError: transformers cannot load the source, or has other rotary positions than the
            graph that we write.
    """
    import torch

    frames = validation_frames(source)
    with quiet(), uniform_folder(source.folder) as folder, torch.inference_mode():
        try:
            model, missing = _load(folder, source.checkpoint.files)
            # Frames to pixels to embeddings.
            processor = load_image_processor(folder, local_files_only=True)
            images = processor(images=list(frames), do_resize=False, return_tensors="pt")
            visual, decoder = model.model.visual, model.model.language_model
            grids = images["pixel_values"], images["image_grid_thw"]
            original_embeds = embeds = pooled(visual(*grids))
            # Logits of the source's weights.
            prompts = validation_prompts(source, model.config)
            original = logits = _logits(model, prompts, images)
            # The same of the weights as exported.
            if precision == "int4":
                round_weights(model.lm_head, decoder)
                round_products(visual.blocks, HEAD)
                round_products(visual.merger, HEAD)
                embeds = pooled(visual(*grids))
                logits = _logits(model, prompts, images)
        except Exception as error:  # a damaged file can raise anything in transformers
            raise GranAlignError(
                f"{source.folder}: transformers cannot run it ({one_line(error)}); "
                f"copy or download the model again"
            ) from None
    require_weights(source.folder, missing)
    # Short prompts and small frames would hardly show wrong frequencies of the slow pairs, or a
    # slow pair that follows the wrong one of time, row and column: compare the settings as well.
    check_frequencies(decoder.rotary_emb.inv_freq.numpy(), source)
    # Version 5 has rope_parameters in the place of rope_scaling.
    rotary = getattr(decoder.config, "rope_parameters", None) or decoder.config.rope_scaling
    sections = rotary["mrope_section"]
    if tuple(sections) != source.sections:
        raise GranAlignError(
            f"{source.folder}: got mrope_section {sections} from transformers, expected "
            f"{list(source.sections)}, as config.json says; report this model"
        )
    pixels = images["pixel_values"].numpy()
    return VlmReference(
        frames=frames,
        pixels=pixels.reshape(len(frames), -1, pixels.shape[-1]),
        embeds=embeds.numpy().reshape(len(frames), -1, embeds.shape[-1]),
        original_embeds=original_embeds.numpy().reshape(len(frames), -1, embeds.shape[-1]),
        prompts=prompts,
        logits=ReferenceLogits(logits, original),
    )


def _load(folder: Path, files: list[Path]) -> tuple[Any, list[str]]:
    """Load a folder with transformers; return the float32 model and the names of absent weights."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    def names(file: Path) -> list[str]:
        with safe_open(checked_file(file), "pt") as tensors:
            return list(tensors.keys())

    if not any(name.startswith(_OTHER_DECODER) for file in files for name in names(file)):
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        return model.eval(), sorted(report["missing_keys"])
    # Names that transformers does not look for: give it the weights under its own.
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    unread = set(model.state_dict())
    for file in files:
        with safe_open(checked_file(file), "pt") as tensors:
            for name in names(file):
                own = name.removeprefix(_OTHER_DECODER)
                own = f"model.language_model.{own[6:]}" if own.startswith("model.") else own
                own = f"model.{own}" if own.startswith("visual.") else own
                model.load_state_dict({own: tensors.get_tensor(name).float()}, strict=False)
                unread.discard(own)
    model.tie_weights()
    if config.tie_word_embeddings:
        unread.discard("lm_head.weight")
    return model.eval(), sorted(unread)


_OTHER_DECODER = "language_model."
"""Prefixes of the names of a decoder's weights in folders of other libraries."""


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


def validation_frames(source: VlmSource) -> npt.NDArray[np.uint8]:
    """Return frames of coloured blocks under noise, resized like a user's to the image size."""
    from PIL import Image

    height, width = source.image_size
    frames = []
    for seed, (rows, columns) in enumerate(_SIZES):
        random = np.random.default_rng(seed)
        blocks = random.integers(0, 192, (7, 7, 3))
        frame = blocks[np.ix_(np.arange(rows) * 7 // rows, np.arange(columns) * 7 // columns)]
        frame = (frame + random.integers(0, 64, frame.shape)).astype(np.uint8)
        image = Image.fromarray(frame)
        frames.append(np.asarray(image.resize((width, height), source.pixels.resample)))
    return np.stack(frames)


def validation_prompts(source: VlmSource, config: Any) -> list[list[int]]:
    """Return token ids of one prompt for each frame: text, the frame, text. They never change."""
    start, end = config.vision_start_token_id, config.vision_end_token_id
    special = [start, end, source.image_token, config.video_token_id]
    words = np.setdiff1d(np.arange(source.shape.vocabulary), special)
    random = np.random.default_rng(0)
    rows, columns = source.grid
    frame = [start, *[source.image_token] * (rows * columns), end]
    before = random.choice(words, _BEFORE - 1).tolist()
    return [before + frame + random.choice(words, length).tolist() for length in _AFTER]


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
    """Prompts as embeddings, (tokens, hidden) each, and the grid of the frame in each of them."""

    embeds: list[npt.NDArray[Any]]
    grid: tuple[int, int]

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
        return cls(rows, source.grid)

    @property
    def shared(self) -> int:
        """Number of tokens of a row up to the end of its frame; all rows have the same."""
        return _BEFORE + self.grid[0] * self.grid[1]

    def positions(self) -> list[Ids]:
        """Return the positions of each row, (3, tokens)."""
        return [frame_positions(_BEFORE, self.grid, len(row) - self.shared) for row in self.embeds]


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
    image, count = model.manifest.image_token, model.manifest.image_tokens
    # Prefill each prompt up to its frame, and stack the caches.
    prefixes, ends = [], []
    for frame, ids in zip(expected.frames, expected.prompts, strict=True):
        start = ids.index(image)
        prefixes += model.prefill_frames(frame[None], ids[: start + 1]).unstack()
        ends.append(ids[start + count :])
    before = expected.prompts[0][: _BEFORE + 1]
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


def _logits(model: Any, prompts: list[list[int]], images: Any) -> Float32:
    """Return the source's logits after each prompt; each prompt runs alone."""
    import torch

    rows = []
    pixels = images["pixel_values"].reshape(len(prompts), -1, images["pixel_values"].shape[-1])
    for ids, values, grid in zip(prompts, pixels, images["image_grid_thw"], strict=True):
        model.model.rope_deltas = None  # the model keeps those of the last prompt
        row = torch.tensor([ids])
        outputs = model(
            input_ids=row,
            pixel_values=values,
            image_grid_thw=grid[None],
            logits_to_keep=1,
            **image_tokens(model, row),
        )
        rows.append(outputs.logits[0, -1].numpy())
    return np.stack(rows)
