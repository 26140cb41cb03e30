"""Is an exported vision-language model still its source? Every mismatch is collected, then raised.

The embeddings of frames are compared, from bytes and from the pixels of the source's own processor;
and the logits after prompts with a frame in each, computed in every way that the graphs allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.vlm_specs import VlmTolerance
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
from granalign_fast.models.prefix import Prefix
from granalign_fast.models.vision_language_model import VisionLanguageModel, frame_positions

from .encoder import refuse
from .language_model import (
    Judge,
    check_frequencies,
    compare_logits,
    compare_values,
    refuse_missing,
    round_weights,
    static_step,
)

Ids = npt.NDArray[np.int64]

_SIZES = ((97, 161), (180, 320), (320, 180))
"""Heights and widths of the frames that are compared, before they are resized."""
_BEFORE = 5
"""Tokens before each frame."""
_AFTER = (2, 17, 9)
"""Tokens after each frame: ragged, so that rows are padded."""


@dataclass(frozen=True)
class VlmJudge:
    """What the source gives in float32, and for what.

    Attributes:
        frames: (frames, height, width, 3), of the image size.
        pixels: the same from the source's own image processor (frames, patches, values).
        embeds: (frames, image tokens, hidden).
        prompts: token ids, one prompt a frame.
        judge: logits after each prompt.
    """

    frames: npt.NDArray[np.uint8]
    pixels: Float32
    embeds: Float32
    prompts: list[list[int]]
    judge: Judge


def judge_vlm(source: VlmSource, precision: str) -> VlmJudge:
    """Run the source with transformers.

    Raises:
        GranAlignError: transformers cannot load the source, or turns positions otherwise.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

    frames = validation_frames(source)
    with quiet(), torch.inference_mode():
        try:
            model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                source.folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            model.eval()
            processor = Qwen2VLImageProcessor.from_pretrained(source.folder, local_files_only=True)
            seen = processor(images=list(frames), do_resize=False, return_tensors="pt")
            embeds = model.model.visual(seen["pixel_values"], seen["image_grid_thw"])
            prompts = validation_prompts(source, model.config)
            original = logits = _logits(model, prompts, seen)
            decoder = model.model.language_model
            if precision == "int4":
                round_weights(model.lm_head, decoder)
                logits = _logits(model, prompts, seen)
        except Exception as error:  # whatever stops a loader
            raise GranAlignError(
                f"{source.folder}: transformers cannot run it ({one_line(error)}); "
                f"copy or download the model again"
            ) from None
    refuse_missing(source.folder, sorted(report["missing_keys"]))
    check_frequencies(decoder.rotary_emb.inv_freq.numpy(), source)
    # Nor would small frames show pairs that turn slowly with the wrong one of the three.
    sections = decoder.config.rope_scaling["mrope_section"]
    if tuple(sections) != source.sections:
        raise GranAlignError(
            f"{source.folder}: got mrope_section {sections} from transformers, expected "
            f"{list(source.sections)}, as config.json says; report this model"
        )
    pixels = seen["pixel_values"].numpy()
    return VlmJudge(
        frames=frames,
        pixels=pixels.reshape(len(frames), -1, pixels.shape[-1]),
        embeds=embeds.numpy().reshape(len(frames), -1, embeds.shape[-1]),
        prompts=prompts,
        judge=Judge(logits, original),
    )


def validate_vlm(
    folder: Path, source: VlmSource, expected: VlmJudge, tolerance: VlmTolerance
) -> dict[str, float]:
    """Compare an exported folder with its source, frames and token ids in, logits out.

    Returns:
        What was measured: ``image_max_abs_error`` and ``image_relative_error`` of embeddings, the
        worst of both vision graphs; of logits, what `validate_llm` measures.

    Raises:
        GranAlignError: out of tolerance; the message holds everything that is.
    """
    # One session at a time: each holds its weights.
    images = {
        VISION_GRAPH: open_session(folder / VISION_GRAPH)(**{FRAMES: expected.frames}),
        PATCHES_GRAPH: open_session(folder / PATCHES_GRAPH)(**{PIXEL_VALUES: expected.pixels}),
    }
    embeds = {name: outputs[IMAGE_EMBEDS] for name, outputs in images.items()}
    measured, failures = compare_values(embeds, expected.embeds, tolerance.image)
    rows = _Rows.read(folder, source, expected.prompts, embeds[VISION_GRAPH])
    decoder = _Decoder(folder / GRAPH, source)
    ways = {"padded": decoder.padded(rows), "after a prefix": decoder.after_prefix(rows)}
    del decoder
    ways |= _static(folder, expected)
    of_logits, more = compare_logits(ways, expected.judge, tolerance.logits)
    refuse(failures + more, tolerance)
    return {f"image_{name}": value for name, value in measured.items()} | of_logits


def validation_frames(source: VlmSource) -> npt.NDArray[np.uint8]:
    """Frames of the image size, resized as a user's are: coloured blocks under noise."""
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
    """Token ids of one prompt a frame, the same for every run: text, the frame, text."""
    start, end = config.vision_start_token_id, config.vision_end_token_id
    special = [start, end, source.image_token, config.video_token_id]
    words = np.setdiff1d(np.arange(source.shape.vocabulary), special)
    random = np.random.default_rng(0)
    rows, columns = source.grid
    frame = [start, *[source.image_token] * (rows * columns), end]
    before = random.choice(words, _BEFORE - 1).tolist()
    return [before + frame + random.choice(words, length).tolist() for length in _AFTER]


def _text(start: int, count: int) -> Ids:
    return np.tile(np.arange(start, start + count), (3, 1))


@dataclass(frozen=True)
class _Rows:
    """Prompts as embeddings, (tokens, hidden) each, and the shape that they have in common."""

    embeds: list[npt.NDArray[Any]]
    grid: tuple[int, int]

    @classmethod
    def read(
        cls, folder: Path, source: VlmSource, prompts: list[list[int]], frames: npt.NDArray[Any]
    ) -> _Rows:
        session = open_session(folder / EMBEDDING_GRAPH)
        rows = []
        for ids, frame in zip(prompts, frames, strict=True):
            row = session(**{INPUT_IDS: np.array([ids])})[INPUTS_EMBEDS][0]
            row[np.array(ids) == source.image_token] = frame
            rows.append(row)
        return cls(rows, source.grid)

    @property
    def shared(self) -> int:
        """Tokens up to the last of the frame's, of each row."""
        return _BEFORE + self.grid[0] * self.grid[1]

    def positions(self) -> list[Ids]:
        """Of each row, (3, tokens)."""
        return [frame_positions(_BEFORE, self.grid, len(row) - self.shared) for row in self.embeds]


class _Decoder:
    """A decoder graph and the ways to run it."""

    def __init__(self, path: Path, source: VlmSource) -> None:
        self._session = open_session(path)
        self._heads = source.shape.kv_heads, source.shape.head_dim

    def padded(self, rows: _Rows) -> Float32:
        """One batch, padded on the left."""
        return self._last(*_left_padded(rows.embeds, rows.positions()))

    def after_prefix(self, rows: _Rows) -> Float32:
        """Text and frame first, as one batch without padding; the rest after their cache."""
        cut = rows.shared
        begun = [place[:, :cut] for place in rows.positions()]
        embeds, places, mask = _left_padded([row[:cut] for row in rows.embeds], begun)
        outputs = self._step(embeds, places, mask)
        cache = {name.replace("present", "past_key_values"): outputs[name] for name in outputs}
        del cache[LOGITS]
        rest = [row[cut:] for row in rows.embeds]
        follow = [
            _text(int(place.max()) + 1, len(row)) for place, row in zip(begun, rest, strict=True)
        ]
        embeds, places, more = _left_padded(rest, follow)
        return self._last(embeds, places, np.concatenate([mask, more], axis=1), cache)

    def _last(self, *inputs: Any) -> Float32:
        logits: Float32 = self._step(*inputs)[LOGITS][:, 0]
        return logits

    def _step(
        self,
        embeds: npt.NDArray[Any],
        places: Ids,
        mask: Ids,
        cache: dict[str, npt.NDArray[Any]] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        heads, size = self._heads
        inputs = {INPUTS_EMBEDS: embeds, POSITION_IDS: places, ATTENTION_MASK: mask}
        empty = np.empty((len(embeds), heads, 0, size), embeds.dtype)
        past = {name: empty for name in self._session.inputs if name not in inputs}
        return self._session(**inputs, **(past | (cache or {})))


def _static(folder: Path, expected: VlmJudge) -> dict[str, Float32]:
    """Behind frames that are known, as one batch; and with the last token of each appended."""
    model = VisionLanguageModel(folder, static_cache=True)
    image, count = model.manifest.image_token, model.manifest.image_tokens
    kept, ends = [], []
    for frame, ids in zip(expected.frames, expected.prompts, strict=True):
        at = ids.index(image)
        kept += model.prefill_frames(frame[None], ids[: at + 1]).unstack()
        ends.append(ids[at + count :])
    begun = expected.prompts[0][: _BEFORE + 1]
    prefix = Prefix.stack(kept, model.fingerprint, model.position_after(begun))
    return {
        "static": model.logits(ends, prefix=prefix),
        "a static step": static_step(model, ends, prefix),
    }


def _left_padded(
    rows: list[npt.NDArray[Any]], places: list[Ids]
) -> tuple[npt.NDArray[Any], Ids, Ids]:
    """Embeddings, positions (3, rows, tokens) and mask of one batch."""
    longest = max(map(len, rows))
    embeds = np.stack([np.pad(row, ((longest - len(row), 0), (0, 0))) for row in rows])
    padded = [np.pad(place, ((0, 0), (longest - place.shape[1], 0))) for place in places]
    mask = [np.arange(longest) >= longest - len(row) for row in rows]
    return embeds, np.stack(padded, axis=1), np.array(mask, np.int64)


def _logits(model: Any, prompts: list[list[int]], seen: Any) -> Float32:
    import torch

    rows = []
    pixels = seen["pixel_values"].reshape(len(prompts), -1, seen["pixel_values"].shape[-1])
    for ids, values, grid in zip(prompts, pixels, seen["image_grid_thw"], strict=True):
        model.model.rope_deltas = None  # it would remember those of the prompt before
        outputs = model(
            input_ids=torch.tensor([ids]),
            pixel_values=values,
            image_grid_thw=grid[None],
            logits_to_keep=1,
        )
        rows.append(outputs.logits[0, -1].numpy())
    return np.stack(rows)
