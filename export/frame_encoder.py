"""The exporter of frame encoders: CLIP or SigLIP in, a checked folder of two ONNX towers out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.export.checks.encoder import (
    check_precision,
    compare_embeddings,
    raise_mismatches,
)
from granalign_fast.export.checks.encoder_tokens import check_frame_tokens
from granalign_fast.export.checks.sentences import VALIDATION
from granalign_fast.export.checks.transformers_calls import load_image_processor, pooled
from granalign_fast.export.graphs.clip_shapes import ImageShape, Levels, TextShape
from granalign_fast.export.graphs.clip_towers import write_towers
from granalign_fast.export.sources.checkpoint import Checkpoint
from granalign_fast.export.sources.folder import quiet, source_name, tool_versions
from granalign_fast.export.sources.frame_encoder import ROOT, FrameModel
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.files import appearing, sha256_of
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.manifest import FrameEncoderManifest
from granalign_fast.models.sources import resolve_model

from .specs import (
    CLIP_PRECISIONS,
    PRECISIONS,
    ClipFamily,
    Tolerance,
)

_FRAME_SIZES = ((360, 640), (640, 360), (240, 321), (97, 97), (31, 57), (500, 60))
"""Height and width of the validation frames: video, portrait, odd, tiny."""


def export_clip(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "fp32",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Export CLIP or SigLIP to `out`: both towers, ``tokenizer.json``, ``manifest.json``.

    ``image.onnx`` takes `graph_contract.FRAMES`, ``text.onnx`` takes `graph_contract.INPUT_IDS`.
    Both give `graph_contract.EMBEDDINGS`, which the graph normalises. The export is compared with
    transformers, from frames and sentences to embeddings, before the folder gets its name. On
    failure nothing is left behind.

    Args:
        source: a folder as transformers saves it, with safetensors, a fast tokenizer and
            ``preprocessor_config.json``; or a hub id as for `resolve_model`.
        out: a folder to write; it must not exist.
        precision: ``"fp32"`` or ``"fp16"``; embeddings are float32 in both.
        progress: called with the name of each step as it begins.

    Raises:
        GranAlignError: the source is of another kind or damaged, `out` exists, or the exported
            model is too far from its source.
        MissingExtraError: torch or transformers is not installed.
    """
    tell = progress or (lambda step: None)
    check_precision(precision, CLIP_PRECISIONS)
    out = Path(out)
    # Read and check the source's settings.
    tell("reading")
    folder = resolve_model(source)
    model = FrameModel.read(folder)
    with appearing(out) as draft, quiet():
        # Run the source: it gives the settings of our graphs and the expected embeddings.
        reference = _Reference.load(folder, model.family)
        model = check_frame_tokens(model)
        (draft / "tokenizer.json").write_text(model.tokenizer_json, encoding="utf-8")
        expected = reference.embed(model)
        sizes = {tower: rows.shape[1] for tower, rows in expected.items()}
        shapes = reference.shapes(sizes, model.levels)
        # Free the source before the towers need memory. Cycles inside torch hold it until a
        # collection.
        del reference
        gc.collect()
        # Write both towers, and the manifest of all that shapes an embedding.
        tell("writing the graphs")
        weights = Checkpoint(folder).rooted(ROOT)
        write_towers(draft, model.config["model_type"], shapes, weights, precision)
        manifest = FrameEncoderManifest(
            source=source_name(source, folder),
            weights_sha256=model.weights_sha256,
            source_sha256=model.sha256,
            files={path.name: sha256_of(path) for path in sorted(draft.iterdir())},
            precision=precision,
            dim=expected["image"].shape[1],
            max_tokens=model.max_tokens,
            preprocessing=asdict(model.preprocessing),
            tools=tool_versions(),
            validation={},
        )
        manifest.write(draft)
        # Compare; the manifest then gets the measured errors.
        tell("comparing with the source")
        measured = _validate(draft, expected, PRECISIONS[precision].tolerance)
        replace(manifest, validation=measured).write(draft)
    return out


@dataclass(frozen=True)
class _Reference:
    """The source as transformers runs it: its shapes, and the embeddings to compare with."""

    folder: Path
    model: Any
    image_processor: Any

    @classmethod
    def load(cls, folder: Path, family: ClipFamily) -> _Reference:
        """Load model and image processor.

        Raises:
            GranAlignError: transformers cannot load them, or weights are missing.
            MissingExtraError: torch or transformers is not installed.
        """
        try:
            import torch
            import transformers
        except ImportError:
            raise MissingExtraError("exporting CLIP", "optimum") from None
        try:
            with uniform_folder(folder) as uniform:
                model, report = getattr(transformers, family.model).from_pretrained(
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
        return cls(folder, model.eval(), processor)

    def embed(self, model: FrameModel) -> dict[str, npt.NDArray[np.float32]]:
        """Return the source's embeddings of `validation_frames` and `VALIDATION`, of unit length.

        Texts are the ids that `check_frame_tokens` has compared.

        Raises:
            GranAlignError: an embedding is not finite.
        """
        import torch

        pixels = self.image_processor(images=validation_frames(), return_tensors="pt")
        ids = model.tokenise(list(VALIDATION))
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
                    f"{self.folder / 'model.safetensors'}: gives {tower} embeddings with NaN or "
                    f"infinity; copy or download the model again"
                )
        return {tower: x / np.linalg.norm(x, axis=1, keepdims=True) for tower, x in rows.items()}

    def shapes(self, sizes: dict[str, int], levels: Levels) -> tuple[ImageShape, TextShape]:
        """Return the shapes of both towers; `sizes` are those of their embeddings."""
        config = self.model.config
        image = ImageShape.from_config(config.vision_config, sizes["image"], levels)
        return image, TextShape.from_config(config.text_config, sizes["text"])


def validation_frames() -> list[npt.NDArray[np.uint8]]:
    """Return different frames (height, width, 3) of coloured blocks, in several sizes."""
    frames = []
    for seed, (height, width) in enumerate(_FRAME_SIZES):
        blocks = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
        frames.append(
            blocks[np.ix_(np.arange(height) * 5 // height, np.arange(width) * 5 // width)]
        )
    return frames


def _validate(
    draft: Path, expected: dict[str, npt.NDArray[np.float32]], tolerance: Tolerance
) -> dict[str, float]:
    """Compare a folder with its source: frames and sentences in, embeddings out.

    Returns:
        The errors of `compare_embeddings`, by tower.
    """
    encoder = FrameEncoder(draft, device="cpu")
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
