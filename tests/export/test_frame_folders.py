"""CLIP and SigLIP folders of every form that real ones have, against transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sentence_folders import Edit, drop, edit, shard, together
from helpers.siglip2 import write_published_siglip2
from helpers.tiny_bert import write_json
from helpers.tiny_clip import SIZES, random_frames, write_bare_source, write_tiny_clip
from safetensors.numpy import load_file, save_file

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.encoder_tokens import HARD_TEXTS, TokenJudge, check_frame_tokens
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.sources.clip import ClipSource
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.sources import INDEX

SETTINGS, IMAGES, PROCESSOR = (
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
QUERY = "The Woman opens a RED Umbrella in Zürich."


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "source", "clip-given-id")


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SigLIP 2 as version 4.57 saves it."""
    pytest.importorskip("transformers")
    return write_published_siglip2(tmp_path_factory.mktemp("siglip2") / "source")


def embed(source: Path, texts: list[str], lower: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return frames' and texts' embeddings by transformers, from its processors to its model."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(source).eval()
    images = transformers.AutoImageProcessor.from_pretrained(source, use_fast=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    length = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    texts = [text.lower() for text in texts] if lower else texts
    padded = "max_length" if model.config.model_type == "siglip" else False
    rows = [
        tokenizer(text, padding=padded, truncation=True, max_length=length)["input_ids"]
        for text in texts
    ]
    pixels = images(random_frames(SIZES), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        image = getattr(image := model.get_image_features(pixels), "pooler_output", image)
        found = [model.get_text_features(torch.tensor([row])) for row in rows]
    text = torch.cat([getattr(one, "pooler_output", one) for one in found])
    both = [(x / x.norm(dim=-1, keepdim=True)).numpy() for x in (image, text)]
    return both[0], both[1]


def prefix(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    named = {f"clip.{name}": value for name, value in tensors.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})


def nest(folder: Path) -> None:
    """Move the image processor's settings to where version 5 keeps them."""
    settings = json.loads((folder / IMAGES).read_text())
    settings.pop("processor_class", None)
    write_json(
        folder / PROCESSOR, {"image_processor": settings, "processor_class": "CLIPProcessor"}
    )
    (folder / IMAGES).unlink()


FOLDERS: dict[str, Edit] = {
    "as saved": together(),
    "sharded": shard,
    "a stale index": lambda folder: write_json(folder / INDEX, {"weight_map": {"x": "no"}}),
    "a prefix": prefix,
    "vocabulary alone": drop("tokenizer.json"),
    "a shorter length": edit(SETTINGS, model_max_length=11),
    "left truncation": edit(SETTINGS, truncation_side="left"),
    "a crop as a number": edit(IMAGES, crop_size=30, size=37),
    "a fast image processor": edit(IMAGES, image_processor_type="CLIPImageProcessorFast"),
    "a feature extractor": edit(
        IMAGES, image_processor_type=..., feature_extractor_type="CLIPFeatureExtractor"
    ),
    "no image processor's name": edit(IMAGES, image_processor_type=...),
    "no levels": edit(IMAGES, image_mean=..., image_std=..., rescale_factor=..., resample=...),
}


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOLDERS)
def test_clip_folders(clip: Path, tmp_path: Path, name: str) -> None:
    source = shutil.copytree(clip, tmp_path / "source")
    FOLDERS[name](source)
    texts = [QUERY, "the the", "<|endoftext|> a", "x " * 40 + "end"]
    image, text = embed(source, texts, lower=False)
    encoder = FrameEncoder(export_clip(source, tmp_path / "out"))
    np.testing.assert_allclose(encoder.encode_frames(random_frames(SIZES)), image, 0, 1e-5)
    np.testing.assert_allclose(encoder.encode_texts(texts), text, 0, 1e-5)


@pytest.mark.needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("padding", ["left", "right", None])
def test_siglip_2_lower_cases_its_text(siglip2: Path, tmp_path: Path, padding: str | None) -> None:
    source = shutil.copytree(siglip2, tmp_path / "source")
    edit(SETTINGS, padding_side=padding or ...)(source)
    texts = [QUERY, "the the", "x " * 100 + "end", ""]
    image, text = embed(source, texts, lower=True)
    encoder = FrameEncoder(export_clip(source, tmp_path / "out"))
    np.testing.assert_allclose(encoder.encode_frames(random_frames(SIZES)), image, 0, 1e-5)
    np.testing.assert_allclose(encoder.encode_texts(texts), text, 0, 1e-5)
    rows = encoder.encode_texts([QUERY, QUERY.lower()])
    assert rows[0] @ rows[1] > 1 - 1e-6
    cased = embed(source, [QUERY], lower=False)[1]
    assert np.abs(cased[0] - text[0]).max() > 1e-2, "the case must matter to the model"


@pytest.mark.needs_optimum
@pytest.mark.parametrize(
    "change",
    [
        edit(SETTINGS, add_eos_token=False, add_bos_token=True),
        edit(SETTINGS, add_eos_token=..., add_bos_token=...),
        edit(SETTINGS, additional_special_tokens=["the"]),
        edit(SETTINGS, model_max_length=30),
        edit(SETTINGS, tokenizer_class="PreTrainedTokenizerFast"),
        edit(SETTINGS, tokenizer_class="GemmaTokenizerFast"),
        edit(SETTINGS, do_lower_case=False),
    ],
)
def test_siglip_2_ids(siglip2: Path, tmp_path: Path, change: Edit) -> None:
    """The settings alone give transformers' ids, with padding and length."""
    source = shutil.copytree(siglip2, tmp_path / "source")
    change(source)
    model = ClipSource.read(source)
    judge = TokenJudge.load(source, None)
    assert judge is not None
    if model.lower:
        judge.lower_case()
    texts = list(HARD_TEXTS)
    limit = min(64, judge.tokenizer.model_max_length)
    assert model.tokenise(texts) == judge.ids(texts, limit, padded=True)
    assert check_frame_tokens(model) is model


@pytest.mark.needs_optimum
@pytest.mark.parametrize("kind", ["GemmaTokenizer", "Siglip2Tokenizer", "TokenizersBackend"])
def test_siglip_2_of_transformers_5(siglip2: Path, tmp_path: Path, kind: str) -> None:
    """Its settings name no tokens around a text, and classes that version 4.57 lacks."""
    source = shutil.copytree(siglip2, tmp_path / "source")
    before = ClipSource.read(source)
    nest(source)
    (source / "special_tokens_map.json").unlink()
    settings = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    more = {"backend": "tokenizers", "model_max_length": 10**30, "extra_special_tokens": ["Th"]}
    more["padding_side"] = "right"
    write_json(source / SETTINGS, settings | more | {"tokenizer_class": kind})
    model = check_frame_tokens(ClipSource.read(source))
    assert model.preprocessing == before.preprocessing
    assert model.image.levels == before.image.levels
    texts = ["A Dog.", "x " * 100]
    assert model.tokenise(texts) == before.tokenise(texts)
    assert model.tokenise(["Th"]) != model.tokenise(["th"]), "a token of its own keeps its case"


def sizes(**settings: Any) -> Edit:
    return edit(IMAGES, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("config.json"), "no config.json; expected a transformers folder of CLIP or SigLIP"),
        (
            together(drop("config.json"), edit("open_clip_config.json")),
            "got a folder of open_clip; choose the model's folder for transformers",
        ),
        (drop(IMAGES), "no preprocessor_config.json"),
        (
            together(
                drop("tokenizer.json"),
                edit("spiece.model"),
                edit(SETTINGS, tokenizer_class="SiglipTokenizer"),
            ),
            "no fast tokenizer of the first SigLIP .*choose a copy with tokenizer.json",
        ),
        (sizes(image_processor_type="ViTImageProcessor"), "the image processor ViTImageProcessor"),
        (sizes(size={"longest_edge": 224}), "resized to {'longest_edge': 224}"),
        (sizes(size="big"), "resized to .*big"),
        (sizes(crop_size={"height": 30}), r"cut to .*30"),
        (sizes(do_resize=False), "expected pixels of 224 x 224"),
        (sizes(image_mean=[1, 2]), r"image_mean \[1, 2\]"),
        (sizes(image_std=["a"] * 3), r"image_std \['a', 'a', 'a'\]"),
        (
            edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
            r"quantised by GPTQ \(4 bits\).*--precision fp16",
        ),
        (
            edit("config.json", text_config={"max_position_embeddings": "x"}),
            "max_position_embeddings 'x'",
        ),
        (edit("config.json", model_type="siglip2"), "got a SigLIP 2 of the variant NaFlex"),
        (edit("adapter_config.json", base_model_name_or_path="b"), "an adapter of PEFT for b"),
    ],
)
def test_refused(tmp_path: Path, change: Edit, message: str) -> None:
    source = write_bare_source(tmp_path / "bare")
    change(source)
    with pytest.raises(GranAlignError, match=message) as error:
        export_clip(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_a_folder_of_folders_is_named(tmp_path: Path) -> None:
    source = write_bare_source(tmp_path / "outer" / "0_CLIPModel").parent
    with pytest.raises(GranAlignError, match=f"name {source / '0_CLIPModel'}; no config.json"):
        export_clip(source, tmp_path / "out")
