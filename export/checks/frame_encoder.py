"""Comparison of an exported CLIP or SigLIP with its source: NumPy's towers, and transformers'."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.sources.clip import ClipSource
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.specs import CLIP_FAMILIES, Tolerance
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.manifest import FrameEncoderManifest

from .encoder import compare_embeddings, raise_mismatches
from .float64_clip import embed_images, embed_texts
from .sentences import VALIDATION
from .transformers_calls import load_image_processor, pooled

Embeddings = dict[str, npt.NDArray[Any]]
"""Embeddings of `validation_frames` and `VALIDATION`, of unit length, by tower: image and text."""

_FRAME_SIZES = ((360, 640), (640, 360), (240, 321), (97, 97), (31, 57), (500, 60))
"""Height and width of the validation frames: video, portrait, odd, tiny."""


def validation_frames() -> list[npt.NDArray[np.uint8]]:
    """Return different frames (height, width, 3) of coloured blocks, in several sizes."""
    frames = []
    for seed, (height, width) in enumerate(_FRAME_SIZES):
        blocks = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
        frames.append(
            blocks[np.ix_(np.arange(height) * 5 // height, np.arange(width) * 5 // width)]
        )
    return frames


def numpy_embeddings(source: ClipSource) -> Embeddings:
    """Return the source's embeddings, computed by NumPy in float64.

    Args:
        source: the model; its shapes may have fewer layers than the weights.
    """
    frames = [source.preprocessing(frame) for frame in validation_frames()]
    tokens = source.tokenise(VALIDATION)
    return {
        "image": embed_images(source.family, source.image, source.checkpoint, frames),
        "text": embed_texts(source.family, source.text, source.checkpoint, tokens),
    }


def transformers_embeddings(source: ClipSource) -> Embeddings:
    """Return the source's embeddings as transformers computes them.

    Raises:
        GranAlignError: transformers cannot load the source, weights are missing, or an embedding is
            not finite.
    """
    with quiet():
        return _Reference.load(source).embed()


@dataclass(frozen=True)
class _Reference:
    """The source as transformers runs it."""

    source: ClipSource
    model: Any
    image_processor: Any

    @classmethod
    def load(cls, source: ClipSource) -> _Reference:
        """Load model and image processor."""
        import torch
        import transformers

        folder = source.folder
        try:
            with uniform_folder(folder) as uniform:
                kind = getattr(transformers, CLIP_FAMILIES[source.family].model)
                model, report = kind.from_pretrained(
                    uniform,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
                processor = load_image_processor(uniform, local_files_only=True)
        except Exception as error:  # a damaged or foreign file can raise anything in transformers
            raise GranAlignError(
                f"{folder}: transformers cannot load it ({one_line(error)}); "
                f"copy or download the model again"
            ) from None
        # transformers would fill missing weights with random numbers.
        if absent := sorted(report["missing_keys"]):
            raise GranAlignError(
                f"{folder / 'model.safetensors'}: lacks {len(absent)} tensors, such as "
                f"{absent[0]}; copy or download the model again"
            )
        return cls(source, model.eval(), processor)

    def embed(self) -> Embeddings:
        """Return the embeddings of `validation_frames` and `VALIDATION`, of unit length.

        Texts are the ids that `check_frame_tokens` has compared.
        """
        import torch

        pixels = self.image_processor(images=validation_frames(), return_tensors="pt")
        ids = self.source.tokenise(VALIDATION)
        with torch.inference_mode():
            rows = {
                "image": pooled(self.model.get_image_features(pixels["pixel_values"])).numpy(),
                "text": np.concatenate(
                    [
                        pooled(self.model.get_text_features(torch.tensor([row]))).numpy()
                        for row in ids
                    ]
                ),
            }
        for tower, x in rows.items():
            if not np.isfinite(x).all():
                raise GranAlignError(
                    f"{self.source.folder / 'model.safetensors'}: gives {tower} embeddings with "
                    f"NaN or infinity; copy or download the model again"
                )
        return {tower: x / np.linalg.norm(x, axis=1, keepdims=True) for tower, x in rows.items()}


def validate_clip(
    folder: Path, expected: Embeddings, tolerance: Tolerance, manifest: FrameEncoderManifest
) -> dict[str, float]:
    """Compare a folder, which has no manifest yet: frames and sentences in, embeddings out.

    Returns:
        The errors of `compare_embeddings`, by tower.

    Raises:
        GranAlignError: out of tolerance; the message names every frame and sentence that is.
    """
    encoder = FrameEncoder(folder, device="cpu", manifest=manifest)
    frames = validation_frames()
    towers = {
        "image": ([f"{f.shape[1]} x {f.shape[0]}" for f in frames], encoder.encode_frames(frames)),
        "text": (VALIDATION, encoder.encode_texts(VALIDATION)),
    }
    measured: dict[str, float] = {}
    failures: list[str] = []
    for tower, (labels, got) in towers.items():
        errors, mismatches = compare_embeddings(labels, got, expected[tower], tolerance)
        measured |= {f"{tower}_{name}": value for name, value in errors.items()}
        failures += [f"{tower} {line}" for line in mismatches]
    raise_mismatches(failures, tolerance)
    return measured
