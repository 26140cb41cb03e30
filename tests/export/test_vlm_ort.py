"""Exported vision-language models under transformers' own `generate`, against their sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_qwen3_vl
from helpers.tiny_llm import one_thread
from helpers.tiny_smolvlm import write_tiny_smolvlm
from helpers.tiny_vlm import (
    CONFIGS,
    IMAGE,
    IMAGE_SIZE,
    PAD,
    VISION_END,
    VISION_START,
    frames_of,
    write_tiny_vlm,
    write_unchecked_vlm,
)

from granalign_fast.errors import GranAlignError
from granalign_fast.export.vlm import export_vlm

pytestmark = pytest.mark.needs_optimum

RAGGED = (17, 5, 0, 30, 17, 8)
"""Tokens of text after each frame."""
SIZES = [(224, 224), (168, 280), (84, 140), (112, 112)]

Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers", "optimum")


@pytest.fixture(scope="module")
def exported(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a function that writes a folder with ``source`` and ``out`` once for all tests."""
    root = tmp_path_factory.mktemp("exported")

    def get(name: str, size: tuple[int, int] = IMAGE_SIZE, precision: str = "fp32") -> Path:
        folder = root / f"{name}-{size[0]}-{precision}"
        if not folder.exists():
            write_unchecked_vlm(folder, CONFIGS[name], image_size=size, precision=precision)
        return folder

    return get


def source_of(folder: Path) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "source").eval()
    model.generation_config.eos_token_id = None
    return model


def opened(folder: Path, **options: Any) -> Any:
    from onnxruntime import SessionOptions

    from granalign_fast.export.optimum.ort_vlm import ORTModelForImageTextToText

    one = SessionOptions()
    one.intra_op_num_threads = 1
    model = ORTModelForImageTextToText.from_pretrained(
        folder / "out", session_options=one, **options
    )
    model.generation_config.eos_token_id = None
    return model


def prompts_of(size: tuple[int, int], *lengths: int, images: int = 1) -> list[list[int]]:
    """Return prompts of text, frames and text."""
    random = np.random.default_rng(1)
    frame = [VISION_START, *[IMAGE] * (size[0] * size[1] // 784), VISION_END]
    return [
        random.integers(PAD, size=4).tolist()
        + frame * images
        + random.integers(PAD, size=length).tolist()
        for length in lengths
    ]


def text_inputs(prompts: list[list[int]]) -> dict[str, Any]:
    import torch

    longest = max(map(len, prompts))
    rows = [[PAD] * (longest - len(ids)) + ids for ids in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def image_inputs(folder: Path, size: tuple[int, int], count: int) -> dict[str, Any]:
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor.from_pretrained(folder / "out")
    return dict(
        processor(images=list(frames_of(count, size)), do_resize=False, return_tensors="pt")
    )


def tokens(model: Any, inputs: dict[str, Any], steps: int = 40, **options: Any) -> list[list[int]]:
    if hasattr(model, "model"):
        model.model.rope_deltas = None  # transformers' class keeps those of the last call
    ids = model.generate(
        **inputs, do_sample=False, max_new_tokens=steps, pad_token_id=PAD, **options
    )
    answers: list[list[int]] = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return answers


@pytest.mark.parametrize("lengths", [(11,), RAGGED], ids=["one", "six"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tokens_and_logits_are_those_of_transformers(
    torch: Any, exported: Exported, name: str, size: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    folder = exported(name, size)
    model, source = opened(folder, use_io_binding=False), source_of(folder)
    prompts, images = prompts_of(size, *lengths), image_inputs(folder, size, len(lengths))
    answers = tokens(model, text_inputs(prompts) | images)
    assert answers == tokens(source, text_inputs(prompts) | images)
    assert len(set(answers[0])) > 8, "tokens must vary to mean anything"
    # The prompts with their answers; an image token in an answer would have no image.
    plain = [[token if token < PAD else 0 for token in answer] for answer in answers]
    whole = [ids + answer for ids, answer in zip(prompts, plain, strict=True)]
    for texts in (prompts, whole):
        source.model.rope_deltas = None
        with torch.inference_mode():
            expected = source(**text_inputs(texts), **images, logits_to_keep=1).logits
        got = model(**text_inputs(texts), **images).logits
        assert got.shape == expected.shape
        np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_bound_buffers_change_nothing(exported: Exported, name: str, precision: str) -> None:
    folder = exported(name, precision=precision)
    inputs = text_inputs(prompts_of(IMAGE_SIZE, *RAGGED))
    inputs |= image_inputs(folder, IMAGE_SIZE, len(RAGGED))
    answers = [tokens(opened(folder, use_io_binding=bound), inputs) for bound in (False, True)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_nothing_is_remembered_between_calls(exported: Exported, name: str) -> None:
    """Text after a frame, and a frame after text: each call gives what a first call gives."""
    folder = exported(name)
    model, source = opened(folder), source_of(folder)
    framed = text_inputs(prompts_of(IMAGE_SIZE, 5, 9)) | image_inputs(folder, IMAGE_SIZE, 2)
    text = text_inputs([[1, 2, 3], [4, 5, 6, 7, 8]])
    before = set(vars(model))
    for inputs in (framed, text, framed):
        assert tokens(model, inputs, 12) == tokens(source, inputs, 12)
    assert set(vars(model)) == before


def test_several_frames_and_beams(exported: Exported) -> None:
    folder = exported("published-gqa-tied")
    model, source = opened(folder), source_of(folder)
    prompts = prompts_of(IMAGE_SIZE, 5, 9, images=2)
    inputs = text_inputs(prompts) | image_inputs(folder, IMAGE_SIZE, 4)
    assert tokens(model, inputs) == tokens(source, inputs)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    assert tokens(model, inputs, 8, **beams) == tokens(source, inputs, 8, **beams)


def test_what_does_not_fit(torch: Any, exported: Exported, tmp_path: Path) -> None:
    folder = exported("published-gqa-tied")
    model = opened(folder)
    prompts = text_inputs(prompts_of(IMAGE_SIZE, 5, 9))
    good = image_inputs(folder, IMAGE_SIZE, 2)
    turned = image_inputs(folder, (140, 84), 2)
    with pytest.raises(GranAlignError, match=r"expected \[1, 6, 10\] .* resize images to 84 x 140"):
        tokens(model, prompts | turned)
    with pytest.raises(GranAlignError, match=r"got \[\] for 120 patches"):
        model(**prompts, pixel_values=good["pixel_values"])
    with pytest.raises(GranAlignError, match="30 image tokens for 1 images"):
        tokens(model, prompts | image_inputs(folder, IMAGE_SIZE, 1))
    outputs = model(**prompts, **good)
    with pytest.raises(GranAlignError, match=r"pass outputs\.rope_deltas on"):
        model(input_ids=torch.tensor([[1], [2]]), past_key_values=outputs.past_key_values)
    with pytest.raises(GranAlignError, match=r"no manifest\.json"):
        type(model).from_pretrained(write_tiny_vlm(tmp_path / "source"))


@pytest.mark.parametrize("lengths", [(11,), RAGGED], ids=["one", "six"])
@pytest.mark.parametrize("name", sorted(tiny_qwen3_vl.CONFIGS))
def test_qwen3_vl(torch: Any, tmp_path: Path, name: str, lengths: tuple[int, ...]) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    size = tiny_qwen3_vl.IMAGE_SIZE
    tiny_qwen3_vl.write_unchecked_qwen3_vl(tmp_path, tiny_qwen3_vl.CONFIGS[name])
    source = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "source").eval()
    source.generation_config.eos_token_id = None
    model = opened(tmp_path)
    random = np.random.default_rng(1)
    frame = [VISION_START, *[IMAGE] * model.manifest.image_tokens, VISION_END]
    prompts = [
        [*random.integers(PAD, size=4), *frame, *random.integers(PAD, size=length)]
        for length in lengths
    ]
    inputs = text_inputs(prompts) | image_inputs(tmp_path, size, len(lengths))
    assert tokens(model, inputs) == tokens(source, inputs)
    text = text_inputs([[1, 2, 3], [4, 5, 6, 7, 8]])
    assert tokens(model, text, 12) == tokens(source, text, 12)
    with pytest.raises(GranAlignError, match="got a video, expected images alone"):
        model(**text, pixel_values_videos=inputs["pixel_values"])


def test_another_family_is_refused(torch: Any, tmp_path: Path) -> None:
    """Its positions would be those of M-RoPE, without a word."""
    from granalign_fast.export.optimum.ort_vlm import ORTModelForImageTextToText

    out = export_vlm(write_tiny_smolvlm(tmp_path / "source"), tmp_path / "out", check=False)
    with pytest.raises(GranAlignError, match=r"an export of SmolVLM.*; open it with VisionLang"):
        ORTModelForImageTextToText.from_pretrained(out)
