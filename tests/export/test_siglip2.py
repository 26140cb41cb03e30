"""SigLIP 2 of fixed sizes against transformers: its own processor and its own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.siglip2 import LENGTH, SIZES, write_published_siglip2
from helpers.tiny_bert import edit_json, write_json
from helpers.tiny_clip import random_frames
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.transformers_calls import load_image_processor
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.sources.clip import ClipSource
from granalign_fast.export.specs import PRECISIONS
from granalign_fast.models.frame_encoder import FrameEncoder

TEXTS = [
    "The Woman opens a RED Umbrella in Z\u00fcrich.",
    "the the",
    "",
    "\u6771\u4eac \u00c9T\u00c9 <eos> x",
    "X " * 100 + "end",
]
FRAMES = random_frames([(360, 640), (97, 131), (400, 384)])

pytestmark = [pytest.mark.needs_torch, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=SIZES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the form of each published size."""
    pytest.importorskip("transformers")
    return write_published_siglip2(tmp_path_factory.mktemp("siglip2") / "source", request.param)


def of_transformers(source: Path, texts: list[str]) -> tuple[Any, Any, Any]:
    """Return ids, frames' embeddings and texts' by AutoProcessor and AutoModel."""
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(source)
    model = transformers.AutoModel.from_pretrained(source).eval()
    # The image processor that resizes with Pillow, whichever AutoProcessor has chosen.
    pixels = load_image_processor(source)(FRAMES, return_tensors="pt")["pixel_values"]
    ids = processor(
        text=texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )["input_ids"]
    with torch.inference_mode():
        found = model(input_ids=ids, pixel_values=pixels)
    return ids.tolist(), found.image_embeds.numpy(), found.text_embeds.numpy()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_embeddings(source: Path, tmp_path: Path, precision: str) -> None:
    """Frames and cased texts in, embeddings out; transformers gets the texts in lower case."""
    ids, image, text = of_transformers(source, [text.lower() for text in TEXTS])
    assert ClipSource.read(source).tokenise(TEXTS) == ids
    encoder = FrameEncoder(export_clip(source, tmp_path / "out", precision=precision))
    tolerance = PRECISIONS[precision].tolerance
    frames, texts = encoder.encode_frames(FRAMES), encoder.encode_texts(TEXTS)
    for got, expected in ((frames, image), (texts, text)):
        np.testing.assert_allclose(got, expected, 0, tolerance.max_abs_error)
        assert (got * expected).sum(1).min() > tolerance.min_cosine
        # Different inputs have different embeddings, or the comparison would be empty.
        assert (expected @ expected.T)[0, 1:].max() < 0.999
    # One by one as in a batch.
    if precision == "fp32":
        alone = np.concatenate([encoder.encode_texts([one]) for one in TEXTS])
        np.testing.assert_allclose(alone, texts, 0, 1e-6)
        alone = np.concatenate([encoder.encode_frames([one]) for one in FRAMES])
        np.testing.assert_allclose(alone, frames, 0, 1e-6)


def test_the_case_is_lowered_as_in_transformers_5(tmp_path: Path) -> None:
    """Its class `Siglip2Tokenizer` lowers the case itself; 4.57 leaves that to the caller."""
    transformers = pytest.importorskip("transformers")
    source = write_published_siglip2(tmp_path / "source", "base-patch16-224")
    cased = of_transformers(source, TEXTS)[0]
    assert ClipSource.read(source).tokenise(TEXTS) != cased
    if int(transformers.__version__.partition(".")[0]) < 5:
        return
    edit_json(
        source / "tokenizer_config.json", tokenizer_class="Siglip2Tokenizer", backend="tokenizers"
    )
    assert ClipSource.read(source).tokenise(TEXTS) == of_transformers(source, TEXTS)[0]


@pytest.mark.parametrize("name", ["so400m-patch14-384"])
def test_a_wrong_model_is_found(tmp_path: Path, name: str) -> None:
    """Patches in another order, or a pooling head of another query, do not pass the comparison."""
    pytest.importorskip("transformers")
    source = write_published_siglip2(tmp_path / "source", name)
    _, image, _ = of_transformers(source, TEXTS)
    path = source / "model.safetensors"
    right = load_file(path)
    positions = "vision_model.embeddings.position_embedding.weight"
    grid = right[positions].reshape(27, 27, -1)
    wrong = {
        positions: np.ascontiguousarray(grid.transpose(1, 0, 2)).reshape(27 * 27, -1),
        "vision_model.head.probe": -right["vision_model.head.probe"],
    }
    for number, (tensor, value) in enumerate(wrong.items()):
        save_file(right | {tensor: value}, path, {"format": "pt"})
        encoder = FrameEncoder(export_clip(source, tmp_path / f"out{number}", check=False))
        assert np.abs(encoder.encode_frames(FRAMES) - image).max() > 1e-3, tensor


def test_naflex_is_refused_by_name(tmp_path: Path) -> None:
    """Its images keep their shape; the fixed sizes are named as the remedy."""
    (tmp_path / "source").mkdir()
    write_json(tmp_path / "source" / "config.json", {"model_type": "siglip2"})
    with pytest.raises(GranAlignError, match=r"NaFlex.*such as google/siglip2-base-patch16-224"):
        export_clip(tmp_path / "source", tmp_path / "out")


def test_a_tower_without_its_head_is_refused(tmp_path: Path) -> None:
    """It has no embedding of a frame: transformers returns none either."""
    pytest.importorskip("transformers")
    source = write_published_siglip2(tmp_path / "source")
    vision = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "vision_use_head": False}
    edit_json(source / "config.json", vision_config=vision)
    with pytest.raises(GranAlignError, match="got vision_use_head False, expected true"):
        ClipSource.read(source)
