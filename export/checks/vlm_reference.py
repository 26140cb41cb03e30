"""Runs a vision-language model's source with transformers, for comparison with an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.families import family_of
from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import HEAD
from granalign_fast.models.chat import ChatTokenizer
from granalign_fast.models.image_layout import ImageLayout
from granalign_fast.reading import checked_file
from granalign_fast.video.images import cut_tiles

from .language_model import (
    ReferenceLogits,
    check_frequencies,
    require_weights,
    round_products,
    round_weights,
)
from .transformers_calls import grid_times, image_tokens, load_image_processor
from .vlm_peers import VlmPeer, video_patches

_SIZES = ((97, 161), (180, 320), (320, 180))
"""Heights and widths of the validation frames before they are resized."""
BEFORE = 5
"""Tokens before the frame of each prompt."""
CLIP_SECONDS = 0.5
"""Seconds from a frame of the validation clip to the next. Those of two frames are whole, because
transformers 4.57 cuts them to whole ones."""
_AFTER = (2, 17, 9)
"""Tokens after the frame of each prompt: ragged, so that rows are padded."""


@dataclass(frozen=True)
class ClipReference:
    """A prompt about a clip of several frames, and the source's logits after it.

    Attributes:
        frames: bytes of the image size, (frames, height, width, 3).
        seconds: from a frame to the next.
        before: token ids up to the clip, whose placeholder ends them.
        after: token ids behind it.
        logits: of one prompt.
    """

    frames: npt.NDArray[np.uint8]
    seconds: float
    before: list[int]
    after: list[int]
    logits: ReferenceLogits


@dataclass(frozen=True)
class VlmReference:
    """The source's inputs and its float32 outputs.

    Attributes:
        frames: bytes of the frames' size, (frames, height, width, 3).
        images: the same frames as images of the vision tower: themselves, or their tiles and each
            whole frame behind them.
        pixels: the same images after the source's image processor, as `PATCHES_GRAPH` takes them.
        outputs: what the source's vision tower gives for the images, by the names of the vision
            graph's outputs; its weights are rounded as in the export.
        original: the same of the source as it is.
        prompts: token ids, one prompt for each frame, in which a placeholder stands for it.
        logits: the source's logits after each prompt.
        clip: the same of a clip of several frames; None if the export takes none.
    """

    frames: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint8]
    pixels: Float32
    outputs: dict[str, Float32]
    original: dict[str, Float32]
    prompts: list[list[int]]
    logits: ReferenceLogits
    clip: ClipReference | None = None


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
            peer = family_of(source).peer
            model, missing = _load(folder, source)
            peer.prepare(model)
            # Frames to pixels to embeddings.
            processor = load_image_processor(folder, local_files_only=True)
            tiles = source.layouts[1].tiles
            images = peer.process(processor, list(frames), tiles=tiles is not None)
            decoder = peer.decoder(model)
            prompts = validation_prompts(source, model.config)
            tokens = [source.layouts[1].expand(ids).ids for ids in prompts]
            clip = _Clip.of(source, frames, prompts, images)

            def run() -> tuple[dict[str, Float32], Float32, Float32 | None]:
                outputs = peer.run_tower(model, images)
                arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
                about_clip = None if clip is None else clip.logits(model)
                return arrays, _logits(peer, model, tokens, images), about_clip

            # Embeddings and logits of the source's weights, then of the weights as exported.
            original = rounded = run()
            if precision == "int4":
                round_weights(model.lm_head, decoder)
                for tower in peer.towers(model):
                    round_products(tower, HEAD)
                rounded = run()
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
    rotary = getattr(decoder.config, "rope_parameters", None) or decoder.config.rope_scaling or {}
    sections = rotary.get("mrope_section", [])
    if tuple(sections) != source.sections:
        raise GranAlignError(
            f"{source.folder}: got mrope_section {sections} from transformers, expected "
            f"{list(source.sections)}, as config.json says; report this model"
        )
    return VlmReference(
        frames=frames,
        images=frames if tiles is None else _cut(frames, tiles, source),
        pixels=peer.pixels(images),
        outputs=rounded[0],
        original=original[0],
        prompts=prompts,
        logits=ReferenceLogits(rounded[1], original[1]),
        clip=None if clip is None else clip.reference(rounded[2], original[2]),
    )


@dataclass(frozen=True)
class _Clip:
    """A prompt about a clip, as transformers takes it.

    Attributes:
        frames: of the clip.
        before: token ids up to the clip's placeholder, and this.
        after: token ids behind it.
        ids: the prompt with all of its tokens.
        pixels: patches of the clip, (patches, values).
        grid: times, rows and columns of its patches.
        video: the id of the visual tokens.
        grid_seconds: from a grid to the next.
    """

    frames: npt.NDArray[np.uint8]
    before: list[int]
    after: list[int]
    ids: list[int]
    pixels: Float32
    grid: tuple[int, int, int]
    video: int
    grid_seconds: float

    @classmethod
    def of(
        cls,
        source: VlmSource,
        frames: npt.NDArray[np.uint8],
        prompts: list[list[int]],
        images: Any,
    ) -> _Clip | None:
        """Make a clip of the validation frames, as long as the export takes."""
        span = source.vision.temporal
        longer = [layout for layout in source.layouts.values() if layout.span > 1]
        # transformers 4.57 lets text follow the greatest position of a clip, and version 5 that of
        # its rows and columns: compare where the times are no greater.
        longer = [one for one in longer if _last_time(one) < max(source.grid)]
        if not longer:
            return None
        layout = max(longer, key=lambda one: one.frames)
        chosen = np.arange(layout.images * span) % len(frames)
        # Some placeholders begin with the token that stands before a frame, the last of `BEFORE`.
        first = prompts[0][BEFORE - 1]
        opened = [] if layout.placeholder[0] == first else [first]
        before = [*prompts[0][: BEFORE - 1], *opened, *layout.placeholder]
        after = prompts[1][BEFORE + len(source.layouts[1].placeholder) :]
        timed = layout.timed(CLIP_SECONDS, ChatTokenizer(source.folder, processor=True).encode)
        rows, columns = (side * source.vision.merge for side in source.grid)
        return cls(
            frames[chosen[: layout.frames]],
            before,
            after,
            timed.expand([*before, *after]).ids,
            video_patches(images, chosen.reshape(-1, span)).numpy(),
            (layout.images, rows, columns),
            layout.runs[0].token,
            span * CLIP_SECONDS,
        )

    def logits(self, model: Any) -> Float32:
        """Return the source's logits after the prompt, (1, vocabulary)."""
        import torch

        model.model.rope_deltas = None  # the model keeps those of the last prompt
        row = torch.tensor([self.ids])
        outputs = model(
            input_ids=row,
            pixel_values_videos=torch.from_numpy(self.pixels),
            video_grid_thw=torch.tensor([self.grid]),
            logits_to_keep=1,
            **image_tokens(model, row),
            **grid_times(model, [self.grid_seconds]),
        )
        logits: Float32 = outputs.logits[0, -1:].numpy()
        return logits

    def reference(self, rounded: Float32 | None, original: Float32 | None) -> ClipReference:
        """Return the prompt with its logits, of rounded and original weights."""
        assert rounded is not None and original is not None
        logits = ReferenceLogits(rounded, original)
        return ClipReference(self.frames, CLIP_SECONDS, self.before, self.after, logits)


def _last_time(layout: ImageLayout) -> float:
    """Return the time of a clip's last grid, in positions from its first."""
    return (layout.images - 1) * layout.span * CLIP_SECONDS * layout.positions_per_second


def _load(folder: Path, source: VlmSource) -> tuple[Any, list[str]]:
    """Load a folder with transformers; return the float32 model and the names of absent weights."""
    import torch
    import transformers
    from safetensors import safe_open

    def names(file: Path) -> list[str]:
        with safe_open(checked_file(file), "pt") as tensors:
            return list(tensors.keys())

    files, kind = source.checkpoint.files, getattr(transformers, source.shape.architecture)
    if not any(name.startswith(_OTHER_DECODER) for file in files for name in names(file)):
        model, report = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        return model.eval(), sorted(report["missing_keys"])
    # Names that transformers does not look for: give it the weights under its own.
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    model = kind(config).float()
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


def validation_frames(source: VlmSource) -> npt.NDArray[np.uint8]:
    """Return frames of coloured blocks under noise, resized like a user's to the image size."""
    from PIL import Image

    height, width = source.layouts[1].frame_size(source.image_size)
    frames = []
    for seed, (rows, columns) in enumerate(_SIZES):
        random = np.random.default_rng(seed)
        blocks = random.integers(0, 192, (7, 7, 3))
        frame = blocks[np.ix_(np.arange(rows) * 7 // rows, np.arange(columns) * 7 // columns)]
        frame = (frame + random.integers(0, 64, frame.shape)).astype(np.uint8)
        image = Image.fromarray(frame)
        frames.append(np.asarray(image.resize((width, height), source.pixels.resample)))
    return np.stack(frames)


def _cut(
    frames: npt.NDArray[np.uint8], tiles: tuple[int, int], source: VlmSource
) -> npt.NDArray[np.uint8]:
    """Return the tiles of each frame, and the whole frame behind them."""
    size, resample = source.image_size, source.pixels.resample
    cut = (cut_tiles(frame, tiles, size, resample) for frame in frames)
    return np.stack([image for images in cut for image in images])


def validation_prompts(source: VlmSource, config: Any) -> list[list[int]]:
    """Return token ids of one prompt for each frame: text, its placeholder, text.

    They never change.
    """
    ends, special = family_of(source).peer.special(config)
    words = np.setdiff1d(np.arange(source.shape.vocabulary), special)
    random = np.random.default_rng(0)
    start, end = ends[:1], ends[1:]
    before = [*random.choice(words, BEFORE - len(start)).tolist(), *start]
    return [
        [*before, *source.layouts[1].placeholder, *end, *random.choice(words, length).tolist()]
        for length in _AFTER
    ]


def _logits(peer: VlmPeer, model: Any, prompts: list[list[int]], images: Any) -> Float32:
    """Return the source's logits after each prompt; each prompt runs alone."""
    import torch

    rows = []
    for number, ids in enumerate(prompts):
        arguments = peer.arguments(model, torch.tensor([ids]), images, number)
        rows.append(model(**arguments, logits_to_keep=1).logits[0, -1].numpy())
    return np.stack(rows)
