"""Settings of a SmolVLM2, read and checked: its vision tower, its prompts, its tensors.

A frame is one square image of the size that the tower has positions for. transformers' processor
treats the frames of a video so. It cuts still images into tiles besides: an export does so with
single frames if their size is several times the tower's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.export.graphs.clip_shapes import ImageShape, Levels
from granalign_fast.export.sources.folder import read_object, read_tokenizer
from granalign_fast.export.sources.language_model import DecoderShape, number, positive
from granalign_fast.export.sources.layouts import DEFAULTS
from granalign_fast.export.sources.pixels import Pixels
from granalign_fast.export.sources.tensors import check_shapes
from granalign_fast.export.sources.vision_language_model import (
    TEXT_TOKENS,
    VlmFolder,
    VlmSource,
    json_object,
)
from granalign_fast.export.specs import CLIP_FRAMES
from granalign_fast.models.image_layout import ImageLayout, Piece, VisualRun

_PROCESSORS = ("SmolVLMImageProcessor", "SmolVLMImageProcessorFast")
"""Image processors whose arithmetic ``vision.onnx`` contains."""

_HALF = ([0.5] * 3, [0.5] * 3)
"""Means and standard deviations where the processor's settings leave them out."""

_NAMES = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
"""Tokens around an image: the attributes of transformers' tokenizer, and their defaults."""

PROJECTION = "visual.modality_projection"
"""Name of the linear layer from joined patches to the decoder's embeddings."""

_TILE_EDGE = 364
"""The processor's ``max_image_size`` where its settings leave it out."""

_MOST_TILES = 4
"""Tiles in a row or a column at most, as in the published processors: ``size`` is 4 times
``max_image_size``, and the models were trained with no more."""


@dataclass(frozen=True)
class SmolVision:
    """The numbers of a vision tower.

    Attributes:
        image: those of its patches and layers; `image.out` is the size of a token.
        merge: edge of a token in patches.
    """

    image: ImageShape
    merge: int

    temporal = 1
    """Frames that a patch spans."""

    @property
    def patch(self) -> int:
        """Edge of a patch in pixels."""
        return self.image.patch

    @property
    def out(self) -> int:
        """Values of a token."""
        return self.image.out

    @property
    def edge(self) -> int:
        """Tokens in a row, and rows of tokens."""
        return self.image.grid // self.merge

    def first(self, layers: int) -> SmolVision:
        """Return the tower with its first layers alone."""
        stack = self.image.layers
        stack = replace(stack, layers=min(layers, stack.layers))
        return replace(self, image=replace(self.image, layers=stack))

    @classmethod
    def read(cls, folder: VlmFolder, out: int, pixels: Pixels) -> SmolVision:
        """Read the ``vision_config`` and the ``scale_factor`` of a folder.

        Args:
            folder: the settings.
            out: values of the decoder's embeddings.
            pixels: the image processor's arithmetic.

        Raises:
            GranAlignError: a setting that the graph lacks, or a senseless value.
        """
        path, config = folder.path, folder.vision(DEFAULTS["smolvlm_vision"])
        for key in _NUMBERS:
            positive(config, key, path)
        number(config, "layer_norm_eps", path, default=1e-6)
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        if hidden % heads:
            raise GranAlignError(
                f"{path}: got {heads} heads of {hidden} values in vision_config, expected heads "
                f"of equal size"
            )
        levels = Levels(pixels.rescale, pixels.mean, pixels.std)
        image = ImageShape.from_config(config, out, levels)
        merge = positive(folder.config, "scale_factor", path, default=2)
        if not image.grid or image.grid % merge:
            raise GranAlignError(
                f"{path}: got {image.grid} patches in a row and scale_factor {merge}, expected a "
                f"multiple of it"
            )
        return cls(image, merge)


_NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)


def read(folder: VlmFolder, image_size: tuple[int, int] | None) -> VlmSource:
    """Read a folder for an export.

    Args:
        folder: the settings.
        image_size: height and width of single frames, in multiples of the tower's size. None for
            this size itself; larger frames are cut into tiles of it.

    Raises:
        GranAlignError: a setting that the graphs lack, or that does not fit the others.
    """
    path = folder.path
    text = json_object(folder.config, "text_config", path)
    if text.get("model_type", "llama") != "llama":
        raise GranAlignError(
            f"{path}: got model_type {short_repr(text['model_type'])} in text_config, expected "
            f"'llama'; choose a model of this family"
        )
    shape = DecoderShape.parse(folder.text, folder.architecture, path)
    pixels = Pixels.of(folder.processor, folder.processor_path, _PROCESSORS, _HALF, resample=1)
    vision = SmolVision.read(folder, shape.hidden, pixels)
    side = vision.image.side
    tiles = _tiles(side, image_size)
    _check_processor(folder, vision)
    source = folder.open(
        shape,
        vision=vision,
        image_size=(side, side),
        layouts=_layouts(folder, shape, vision, tiles),
        sections=(),
        pixels=pixels,
    )
    _check_tensors(source, vision, path)
    return source


def _tiles(side: int, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the rows and columns of the tiles of a frame; None if it is a single image."""
    if image_size in (None, (side, side)):
        return None
    counts = [edge // side for edge in image_size or ()]
    exact = [count * side for count in counts] == [*(image_size or ())]
    if len(counts) != 2 or not exact or not all(0 < count <= _MOST_TILES for count in counts):
        shown, most = "x".join(map(str, image_size or ())), _MOST_TILES * side
        raise GranAlignError(
            f"image size: got {shown}, expected {side}x{side}, which this model's tower has "
            f"positions for, or multiples of it up to {most}x{most}, which are cut into tiles; "
            f"leave the size out for one image"
        )
    return counts[0], counts[1]


def _check_processor(folder: VlmFolder, vision: SmolVision) -> None:
    """Raise unless the processor makes images of the tower's size, and as many tokens of them."""
    path, side = folder.processor_path, vision.image.side
    size = folder.processor.get("max_image_size", {"longest_edge": _TILE_EDGE})
    got = size.get("longest_edge") if isinstance(size, dict) else size
    if got != side:
        raise GranAlignError(
            f"{path}: got max_image_size {short_repr(size)}, expected {side} pixels, as "
            f"config.json says; copy or download the model again"
        )
    path = folder.folder / "processor_config.json"
    settings = read_object(path) if path.is_file() else {}
    tokens = settings.get("image_seq_len", 169)
    if tokens != vision.edge**2:
        raise GranAlignError(
            f"{path}: got image_seq_len {short_repr(tokens)}, expected {vision.edge**2}, as "
            f"config.json says; copy or download the model again"
        )


def _layouts(
    folder: VlmFolder, shape: DecoderShape, vision: SmolVision, tiles: tuple[int, int] | None
) -> dict[int, ImageLayout]:
    """Return how a prompt holds a frame, and the clips that leave room for text in the context.

    A clip has an image for each frame; a single frame may have tiles besides.
    """
    image = folder.token("image_token_id", shape, 128257)
    run = VisualRun(image, (1, vision.edge, vision.edge))

    def layout(frames: int, tiles: tuple[int, int] | None) -> ImageLayout:
        first, *others = _around(folder, image, tiles)
        pieces: list[Piece] = [first]
        for text in others:
            pieces += [run, text]
        return ImageLayout(
            content="image" if frames == 1 else "images",
            placeholder=(image,),
            pieces=tuple(pieces),
            frames=frames,
            axes=1,
            tiles=tiles,
        )

    clips = {frames: layout(frames, None) for frames in CLIP_FRAMES}
    most = shape.context - TEXT_TOKENS
    tokens = {n: len(clip.expand((image,) * clip.places).ids) for n, clip in clips.items()}
    return {1: layout(1, tiles)} | {n: clip for n, clip in clips.items() if tokens[n] <= most}


def image_text(fake: str, whole: str, word: str, tiles: tuple[int, int] | None) -> str:
    """Return the text of an image in a prompt, as transformers' processor writes it.

    Args:
        fake: the token before each image and behind the last.
        whole: the token that stands for a whole image.
        word: what stands for the visual tokens of an image.
        tiles: rows and columns of tiles before the whole image; None without tiles.
    """
    rows, columns = tiles or (0, 0)
    lines = [
        "".join(f"{fake}<row_{row + 1}_col_{column + 1}>{word}" for column in range(columns))
        for row in range(rows)
    ]
    ends = [f"{line}\n" for line in lines] + ["\n"] * bool(lines)
    return f"{''.join(ends)}{fake}{whole}{word}{fake}"


def _around(folder: VlmFolder, image: int, tiles: tuple[int, int] | None) -> list[tuple[int, ...]]:
    """Return the ids of the texts before, between and behind the images of a frame.

    Raises:
        GranAlignError: the tokenizer has other tokens than the settings say.
    """
    tokenizer = read_tokenizer(folder.folder)
    path = folder.folder / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    named: dict[str, Any] = {}
    for key in ("extra_special_tokens", "model_specific_special_tokens"):
        value = settings.get(key)
        named |= value if isinstance(value, dict) else {}
    words = {
        name: str(named.get(name, settings.get(name, usual))) for name, usual in _NAMES.items()
    }
    fake, whole = words.values()
    word = tokenizer.id_to_token(image)
    text = image_text(fake, whole, str(word), tiles)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    images = 1 if tiles is None else tiles[0] * tiles[1] + 1
    if word is None or ids.count(image) != images:
        raise GranAlignError(
            f"{folder.path}: got image_token_id {image}, which the tokenizer does not write as one "
            f"token; copy or download the model again"
        )
    at = [-1, *(i for i, token in enumerate(ids) if token == image), len(ids)]
    return [tuple(ids[start + 1 : end]) for start, end in itertools.pairwise(at)]


def _check_tensors(source: VlmSource, vision: SmolVision, path: Path) -> None:
    """Raise unless the tower's tensors have the shapes that its settings say."""
    image, stack = vision.image, vision.image.layers
    hidden, wide = stack.hidden, stack.wide
    patches = "visual.embeddings.patch_embedding"
    expected: dict[str, tuple[int, ...]] = {
        f"{patches}.weight": (hidden, 3, image.patch, image.patch),
        f"{patches}.bias": (hidden,),
        "visual.embeddings.position_embedding.weight": (image.grid**2, hidden),
        f"{PROJECTION}.weight": (vision.out, hidden * vision.merge**2),
    }
    norms = ["visual.post_layernorm"]
    linear = {}
    for layer in range(stack.layers):
        block = f"visual.encoder.layers.{layer}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear[f"{block}.self_attn.{part}"] = (hidden, hidden)
        linear[f"{block}.mlp.fc1"], linear[f"{block}.mlp.fc2"] = (wide, hidden), (hidden, wide)
    expected |= {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}
    for name, size in linear.items():
        expected |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    check_shapes(source.checkpoint, expected, path)
