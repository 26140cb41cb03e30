"""Folders that the installed transformers saves are exported: equal ids and equal outputs.

The layout of the other version is made from the same folder, so each version sees both.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import rename_weights, save_as_version_5
from helpers.tiny_clip import write_tiny_clip
from helpers.tiny_llm import (
    BOS,
    CHAT_TEMPLATE,
    CONTEXT,
    EOS,
    LLAMA3_ROPE,
    VOCABULARY,
    one_thread,
    prompts_of,
    write_tiny_llm,
)
from helpers.tiny_vlm import IMAGE_SIZE, frames_of, write_tiny_vlm
from helpers.tiny_vlm import SAVED as UNTIED

from granalign_fast.bench.peers.clip_answers import TransformersClips
from granalign_fast.export.checks.transformers_calls import load_image_processor
from granalign_fast.export.frame_encoder import export_clip
from granalign_fast.export.llm import export_llm
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel

pytestmark = pytest.mark.needs_torch

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3-tied": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": True},
    ),
    "llama-dynamic": ("llama", {"rope_theta": 3e4, "rope_scaling": DYNAMIC}),
    "qwen2-tied": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"rope_theta": 1e5, "head_dim": 16}),
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, 世界: a man opens a door 🚪"},
]


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


def as_version_5(folder: Path) -> Path:
    """Return a copy of a folder in the layout of version 5."""
    newer = folder.with_name(f"{folder.name}-5")
    shutil.copytree(folder, newer)
    return save_as_version_5(newer)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_language_models(torch: Any, tmp_path: Path, name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    kind, settings = FAMILIES[name]
    torch.manual_seed(0)
    # Version 5 writes to the settings that it is given.
    config = AutoConfig.for_model(kind, **copy.deepcopy(SHAPE | settings))
    model = AutoModelForCausalLM.from_config(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_llm(tmp_path / "tokenizer"))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    ours = CausalLM(export_llm(tmp_path / "saved", tmp_path / "out"))
    # Equal ids, by the tokenizer that wrote the folder.
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ours.chat(MESSAGES) == ids
    # Equal outputs, by the model that wrote it.
    prompts = [*prompts_of(30, 4), ids]
    with torch.inference_mode():
        expected = [model(torch.tensor([row])).logits[0, -1].numpy() for row in prompts]
    np.testing.assert_allclose(ours.logits(prompts), np.stack(expected), atol=1e-4, rtol=0)
    # The export is a folder that either version opens, with the same answers.
    again = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "out"))
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        got = again.eval()(torch.tensor([prompts[0]])).logits[0, -1].numpy()
    np.testing.assert_allclose(got, expected[0], atol=1e-5, rtol=0)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        loaded.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False) == ids
    )


@pytest.mark.parametrize("name", ["llama-gqa-untied", "qwen2-gqa-tied"])
def test_language_models_in_the_layout_of_version_5(torch: Any, tmp_path: Path, name: str) -> None:
    """The comparison with transformers passes, which would show a setting that it overlooks."""
    from helpers.tiny_llm import CONFIGS
    from transformers import AutoModelForCausalLM

    older = write_tiny_llm(tmp_path / "source", CONFIGS[name] | {"rope_theta": 777.0})
    ours = CausalLM(export_llm(as_version_5(older), tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(older).eval()
    (prompt,) = prompts_of(200)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1].numpy()
    np.testing.assert_allclose(ours.logits([prompt])[0], expected, atol=1e-4, rtol=0)


def vision_language_logits(model: Any, folder: Path, ids: list[int], frame: Any) -> Any:
    """Return transformers' logits after a prompt with one image token, by its own placement."""
    import inspect

    import torch

    images = load_image_processor(folder)(images=[frame], do_resize=False, return_tensors="pt")
    position, image = ids.index(model.config.image_token_id), model.config.image_token_id
    count = int(images["image_grid_thw"].prod()) // 4
    row = torch.tensor([[*ids[:position], *[image] * count, *ids[position + 1 :]]])
    more = {}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        more["mm_token_type_ids"] = (row == image).long()
    with torch.inference_mode():
        return model(input_ids=row, **images, **more).logits[0, -1].numpy()


@pytest.mark.parametrize("layout", ["saved", "saved-5", "language_model", "old-names"])
@pytest.mark.parametrize("tied", [True, False])
def test_vision_language_models(torch: Any, tmp_path: Path, tied: bool, layout: str) -> None:
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    source = write_tiny_vlm(tmp_path / "source", None if tied else UNTIED)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    load_image_processor(source).save_pretrained(saved)
    if layout == "saved-5":
        saved = as_version_5(source)
    elif layout == "language_model":
        names = [("model.", "model.language_model."), ("visual.", "model.visual.")]
        rename_weights(saved, *names)
    elif layout == "old-names":
        names = [("model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")]
        rename_weights(saved, *names)
    ours = VisionLanguageModel(export_vlm(saved, tmp_path / "out", image_size=IMAGE_SIZE))
    messages = [
        {"role": "system", "content": "You see."},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "Is it a 犬?"}],
        },
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.chat(messages) == ids
    frames = frames_of(2)
    expected = [vision_language_logits(model, source, ids, frame) for frame in frames]
    prefix = ours.prefill_frames(frames, ids[:-1])
    got = ours.logits([ids[-1:]] * 2, prefix=prefix)
    np.testing.assert_allclose(got, np.stack(expected), atol=1e-4, rtol=0)
    # The peer of the benchmark gives the same tokens: it places images as images.
    steps = 12
    theirs = TransformersClips(source, IMAGE_SIZE)
    arguments = theirs.prepare(frames[:, None], ours.layout().expand(ids).ids)
    answers = ours.generate([ids[-1:]] * 2, prefix=prefix, max_new_tokens=steps, stop_ids=())
    assert answers == theirs.captions(arguments, steps)


@pytest.mark.parametrize("version_5", [False, True])
@pytest.mark.parametrize("name", ["clip-given-id", "clip-highest-id", "siglip-pad-pads"])
def test_frame_encoders(torch: Any, tmp_path: Path, name: str, version_5: bool) -> None:
    from transformers import AutoModel, AutoTokenizer

    source = write_tiny_clip(tmp_path / "source", name)
    model = AutoModel.from_pretrained(source).eval()
    folder = as_version_5(source) if version_5 else source
    ours = FrameEncoder(export_clip(folder, tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(source)
    padding = "max_length" if name.startswith("siglip") else False
    frames = frames_of(2)
    pixels = load_image_processor(source)(list(frames), return_tensors="pt")["pixel_values"]
    for text in ("a dog", "The naïve 🐕 runs. " * 9, ""):
        encoded = tokenizer([text], padding=padding, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            row = model.get_text_features(encoded["input_ids"])
        row = getattr(row, "pooler_output", row)
        row = (row / row.norm(dim=-1, keepdim=True)).numpy()
        np.testing.assert_allclose(ours.encode_texts([text]), row, atol=1e-5, rtol=0)
    with torch.inference_mode():
        rows = model.get_image_features(pixels)
    rows = getattr(rows, "pooler_output", rows)
    rows = (rows / rows.norm(dim=-1, keepdim=True)).numpy()
    np.testing.assert_allclose(ours.encode_frames(list(frames)), rows, atol=1e-5, rtol=0)


def test_a_processor_saved_as_one(torch: Any, tmp_path: Path) -> None:
    """Version 5 puts the settings of images into ``processor_config.json``."""
    from transformers import AutoTokenizer, CLIPProcessor

    source = write_tiny_clip(tmp_path / "source", "clip-given-id")
    images, tokenizer = load_image_processor(source), AutoTokenizer.from_pretrained(source)
    (source / "preprocessor_config.json").unlink()
    CLIPProcessor(images, tokenizer).save_pretrained(source)
    assert export_clip(source, tmp_path / "out").is_dir()
