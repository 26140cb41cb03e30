"""Qwen3-VL without torch: prefixes of frames and clips, and precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_qwen3_vl import (
    CONFIGS,
    GQA_TIED,
    IMAGE_SIZE,
    write_unchecked_qwen3_vl,
)
from helpers.tiny_vlm import IMAGE, VIDEO, VISION_END, VISION_START, frames_of

from granalign_fast.errors import GranAlignError
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models import language_model as generation
from granalign_fast.models.graph_contract import DEEPSTACK, IMAGE_EMBEDS
from granalign_fast.models.image_layout import ImageLayout
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet

TEXT = [int(value) for value in np.random.default_rng(3).integers(0, 250, 24)]
CLIP = [VISION_START, VIDEO, VISION_END]
PLACEHOLDERS = {1: [VISION_START, IMAGE, VISION_END], 2: CLIP, 4: CLIP, 6: CLIP}


@pytest.fixture(params=[False, True], ids=["growing", "static"], autouse=True, scope="module")
def caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run all tests with both kinds of cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_prefers_static_cache", lambda device: request.param)
        yield


@pytest.fixture(scope="module")
def models(
    caches: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], VisionLanguageModel]:
    """Return a function that exports a configuration once, and opens it."""
    opened: dict[str, VisionLanguageModel] = {}

    def get(name: str) -> VisionLanguageModel:
        if name not in opened:
            folder = write_unchecked_qwen3_vl(tmp_path_factory.mktemp(name), CONFIGS[name])
            opened[name] = VisionLanguageModel(folder)
        return opened[name]

    return get


def clips_of(clips: int, frames: int) -> np.ndarray[Any, Any]:
    return frames_of(clips * frames, IMAGE_SIZE).reshape(clips, frames, *IMAGE_SIZE, 3)


@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_suffix_may_begin_at_any_token_behind_the_clip(
    models: Callable[[str], VisionLanguageModel], name: str, frames: int
) -> None:
    model, clips = models(name), clips_of(3, frames)
    prompt = [*TEXT[:5], *PLACEHOLDERS[frames], *TEXT[5:]]
    expected, tokens = None, None
    for end in (len(prompt) - 1, 14, 8):  # 8: right behind the clip
        prefix = model.prefill_clips(clips, prompt[:end], seconds=0.5)
        assert prefix.rows == 3
        suffixes = [prompt[end:]] * 3
        logits = model.logits(suffixes, prefix=prefix)
        answers = model.generate(suffixes, prefix=prefix, max_new_tokens=20, stop_ids=())
        if expected is None:
            expected, tokens = logits, answers
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        assert answers == tokens
    assert expected is not None and np.ptp(expected, axis=0).max() > 0.1


def test_one_frame_is_a_clip_of_one(models: Callable[[str], VisionLanguageModel]) -> None:
    model, prompt = models("gqa-tied"), [*TEXT[:5], *PLACEHOLDERS[1]]
    frames = frames_of(2, IMAGE_SIZE)
    one, other = (
        model.prefill_frames(frames, prompt),
        model.prefill_clips(frames[:, None], prompt),
    )
    for ours, theirs in zip(one.cache, other.cache, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert one.next_position == other.next_position == model.position_after(prompt)


def test_time_and_order_matter(models: Callable[[str], VisionLanguageModel]) -> None:
    model, prompt = models("gqa-tied"), [*TEXT[:5], *PLACEHOLDERS[4]]
    clip = clips_of(1, 4)

    def logits(frames: Any, seconds: float) -> Any:
        prefix = model.prefill_clips(frames, prompt, seconds=seconds)
        return model.logits([TEXT[5:9]], prefix=prefix)

    expected = logits(clip, 0.5)
    assert np.abs(logits(clip, 0.7) - expected).max() > 1e-3
    assert np.abs(logits(clip[:, [1, 0, 2, 3]], 0.5) - expected).max() > 1e-3
    assert np.abs(logits(clip[:, ::-1], 0.5) - expected).max() > 1e-3


def test_the_last_frame_fills_the_last_patch(
    tmp_path: Path, models: Callable[[str], VisionLanguageModel]
) -> None:
    model = models("gqa-tied")
    clip = clips_of(2, 3)
    four = model.layout(4, 0.5)
    three = replace(four, frames=3)
    outputs = [
        model._embed_clips(list(frames), layout)
        for frames, layout in ((clip, three), (clip[:, [0, 1, 2, 2]], four))
    ]
    for name in (IMAGE_EMBEDS, DEEPSTACK):
        np.testing.assert_array_equal(outputs[0][name], outputs[1][name])


def test_text_alone_is_a_language_model(models: Callable[[str], VisionLanguageModel]) -> None:
    model = models("mha-untied")
    prefix = model.prefill(TEXT[:9])
    np.testing.assert_allclose(
        model.logits([TEXT[9:]], prefix=prefix), model.logits([TEXT]), atol=1e-5
    )


def test_features_lie_in_the_prefix(models: Callable[[str], VisionLanguageModel]) -> None:
    """Without the features of deepstack, the keys and values behind the first layer differ."""
    model, prompt = models("gqa-tied"), [*TEXT[:5], *PLACEHOLDERS[1], *TEXT[:3]]
    frames = frames_of(1, IMAGE_SIZE)
    whole = model.prefill_frames(frames, prompt)
    embed = model._embed_frames

    def without(images: Any) -> dict[str, Any]:
        outputs = embed(images)
        return outputs | {DEEPSTACK: np.zeros_like(outputs[DEEPSTACK])}

    model._embed_frames = without  # type: ignore[method-assign]
    try:
        bare = model.prefill_frames(frames, prompt)
    finally:
        del model.__dict__["_embed_frames"]
    pairs = zip(whole.cache, bare.cache, strict=True)
    layers = [float(np.abs(ours - theirs).max()) for ours, theirs in pairs]
    assert layers[:2] == [0, 0] and min(layers[2:]) > 1e-3


def test_a_wrong_position_behind_the_image_shows(
    models: Callable[[str], VisionLanguageModel],
) -> None:
    model = models("gqa-tied")
    prefix = model.prefill_frames(frames_of(2, IMAGE_SIZE), [*TEXT[:5], *PLACEHOLDERS[1]])
    right = model.logits([TEXT[5:]] * 2, prefix=prefix)
    for wrong in (prefix.length, prefix.next_position - 1, prefix.next_position + 1):
        object.__setattr__(prefix, "next_position", wrong)
        assert np.abs(model.logits([TEXT[5:]] * 2, prefix=prefix) - right).max() > 1e-2


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_other_precisions_stay_near(
    tmp_path: Path, models: Callable[[str], VisionLanguageModel], precision: str
) -> None:
    exact = models("gqa-tied")
    other = VisionLanguageModel(write_unchecked_qwen3_vl(tmp_path, GQA_TIED, precision=precision))
    logits = []
    for model in (other, exact):
        prompt = [*TEXT[:5], *PLACEHOLDERS[2]]
        prefix = model.prefill_clips(clips_of(2, 2), prompt, seconds=0.5)
        logits.append(model.logits([TEXT[5:]] * 2, prefix=prefix))
    error = np.sqrt(np.mean((logits[0] - logits[1]) ** 2) / np.mean(logits[1] ** 2))
    assert error < {"fp16": 0.02, "int4": 0.8}[precision]


def test_captions_are_made(models: Callable[[str], VisionLanguageModel]) -> None:
    captioner = VlmCaptioner(models("gqa-tied"), max_new_tokens=8)
    frames = FrameSet.of(frames_of(3, IMAGE_SIZE))
    answers = captioner.answers(frames, "What is it?", stop_ids=())
    assert len(set(map(tuple, answers))) == 3
    assert captioner.answers(frames, "What is it?", stop_ids=()) == answers
    assert len(captioner.agnostic(frames)) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.prefill_clips([], TEXT), "clips: got none"),
        (lambda m: m.prefill_clips(clips_of(1, 3), TEXT), "got clips of 3, expected one of: 1, 2"),
        (
            lambda m: m.prefill_clips([frames_of(1, IMAGE_SIZE), frames_of(2, IMAGE_SIZE)], TEXT),
            "clips: got 1 and 2 frames, expected equally many",
        ),
        (
            lambda m: m.prefill_clips(clips_of(1, 2), [IMAGE]),
            "got 0 times the image token 259, 262",
        ),
        (lambda m: m.prefill_clips([["a.png"]], TEXT), "got str"),
    ],
)
def test_bad_calls(
    models: Callable[[str], VisionLanguageModel],
    call: Callable[[VisionLanguageModel], Any],
    message: str,
) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        call(models("gqa-tied"))
    assert "\n" not in str(error.value)


def test_layouts_survive_the_manifest(models: Callable[[str], VisionLanguageModel]) -> None:
    manifest = models("gqa-tied").manifest
    for frames in (1, 2, 4, 6):
        layout = ImageLayout.read(manifest.layouts[str(frames)])
        assert layout.frames == frames and layout.images == max(1, frames // 2)
