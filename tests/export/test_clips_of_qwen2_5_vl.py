"""Clips of several frames through an exported Qwen2.5-VL, compared with transformers' own model.

transformers gets each clip as one video, and computes every step from all tokens anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.python_torchvision import require_torchvision
from helpers.tiny_bert import write_json
from helpers.tiny_llm import one_thread
from helpers.tiny_vlm import (
    CHAT_TEMPLATE,
    IMAGE_SIZE,
    PREPROCESSOR,
    PUBLISHED,
    SAVED,
    VIDEO,
    VISION,
    VISION_END,
    VISION_START,
    frames_of,
    write_tiny_vlm,
    write_unchecked_vlm,
)

from granalign_fast.errors import GranAlignError
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.vlm import export_vlm
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.language.prompt_start import PromptStart
from granalign_fast.models import language_model as generation
from granalign_fast.models.image_layout import ImageLayout
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet

pytestmark = pytest.mark.needs_torch

Clips = npt.NDArray[np.uint8]

CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, int], float]] = {
    # name: config.json, the image size, seconds from a frame to the next
    "tied, grouped heads": (PUBLISHED, IMAGE_SIZE, 0.5),
    "untied, all heads": (SAVED, (56, 196), 0.5),
    "five positions a second": (
        PUBLISHED | {"vision_config": VISION | {"tokens_per_second": 1, "window_size": 56}},
        (28, 140),
        1.0,
    ),
}
"""The seconds of a patch are whole, because transformers 4.57 cuts them to whole ones, and the last
time of a clip is below the longer side of a grid, because transformers 5 lets text follow that side
alone. Elsewhere the two versions differ."""

BEFORE = [17, 4, 99]
AFTER = [5, 200, 31, 7]


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config, size, seconds = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("clips")
    write_tiny_vlm(folder / "source", config, seed=7)
    return folder / "source", write_unchecked_vlm(folder, image_size=size), size, seconds


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


@pytest.fixture(scope="module")
def source(exported: Any, torch: Any) -> Any:
    """transformers' model."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    with uniform_folder(exported[0]) as folder:
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()


def clips_of(count: int, frames: int, size: tuple[int, int]) -> Clips:
    return frames_of(count * frames, size).reshape(count, frames, *size, 3)


def pixels_of(clip: Clips) -> npt.NDArray[np.float32]:
    """Return the patches of a video in the order of transformers' processor, (patches, values)."""
    frames, height, width, _ = clip.shape
    mean, std = np.array(PREPROCESSOR["image_mean"]), np.array(PREPROCESSOR["image_std"])
    pixels = ((clip / 255 - mean) / std).transpose(0, 3, 1, 2)
    rows, columns = height // 28, width // 28
    cut = pixels.reshape(frames // 2, 2, 3, rows, 2, 14, columns, 2, 14)
    ordered = cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(frames // 2 * rows * columns * 4, -1).astype(np.float32)


def expected_logits(
    source: Any, ids: Sequence[Sequence[int]], clips: Clips, seconds: float
) -> npt.NDArray[np.float32]:
    """Return transformers' logits after prompts, a video in each, (rows, vocabulary)."""
    import inspect

    import torch

    _, frames, height, width, _ = clips.shape
    grid = [frames // 2, height // 14, width // 14]
    tokens = torch.tensor(ids)
    given: dict[str, Any] = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values_videos": torch.from_numpy(np.concatenate([pixels_of(c) for c in clips])),
        "video_grid_thw": torch.tensor([grid] * len(clips)),
        "second_per_grid_ts": torch.tensor([2 * seconds] * len(clips)),
        "use_cache": False,
    }
    if "mm_token_type_ids" in inspect.signature(source.forward).parameters:
        given["mm_token_type_ids"] = 2 * (tokens == VIDEO)
    source.model.rope_deltas = None
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = source(**given).logits[:, -1].numpy()
    return logits


@pytest.fixture(params=[False, True], ids=["growing", "static"])
def model(exported: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(generation, "_prefers_static_cache", lambda device: request.param)
    return VisionLanguageModel(exported[1])


@pytest.mark.parametrize(("count", "frames"), [(1, 2), (2, 4), (1, 6), (6, 2)])
def test_answers_are_those_of_transformers(
    exported: Any, source: Any, model: VisionLanguageModel, count: int, frames: int
) -> None:
    _, _, size, seconds = exported
    clips = clips_of(count, frames, size)
    start = [*BEFORE, VISION_START, VIDEO, VISION_END]
    prompt = model.layout(frames, seconds).expand([*start, *AFTER]).ids
    prefix = model.prefill_clips(list(map(list, clips)), start, seconds=seconds)
    suffixes = [AFTER] * count
    logits = model.logits(suffixes, prefix=prefix)
    rows: list[list[int]] = [list(prompt) for _ in range(count)]
    wanted = expected_logits(source, rows, clips, seconds)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert np.ptp(wanted, axis=1).min() > 1
    if count == 6:
        return  # 40 steps of the others are enough
    answers = model.generate(suffixes, prefix=prefix, max_new_tokens=40, stop_ids=())
    for step in range(40):
        token = wanted.argmax(axis=1).tolist()
        assert [answer[step] for answer in answers] == token, f"step {step}"
        for row, number in zip(rows, token, strict=True):
            row.append(number)
        wanted = expected_logits(source, rows, clips, seconds)


def test_a_prefix_may_end_anywhere_behind_the_clip(
    exported: Any, model: VisionLanguageModel
) -> None:
    _, _, size, seconds = exported
    clips = list(map(list, clips_of(2, 6, size)))
    whole = [*BEFORE, VISION_START, VIDEO, VISION_END, *AFTER]
    found = []
    for end in range(5, len(whole)):
        prefix = model.prefill_clips(clips, whole[:end], seconds=seconds)
        found.append(model.logits([whole[end:]] * 2, prefix=prefix))
        np.testing.assert_allclose(found[-1], found[0], atol=1e-5)
    assert np.abs(found[0][0] - found[0][1]).max() > 1e-2, "clips make no difference"


@pytest.mark.parametrize("mistake", ["time", "order of frames", "text", "a repeated frame"])
def test_mistakes_show(
    exported: Any, source: Any, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    _, out, size, seconds = exported
    model, clips = VisionLanguageModel(out), clips_of(1, 6, size)
    start = [*BEFORE, VISION_START, VIDEO, VISION_END]
    ids = [*model.layout(6, seconds).expand([*start, *AFTER]).ids]
    wanted = expected_logits(source, [ids], clips, seconds)
    seen = clips.copy()
    if mistake == "time":
        steps = ImageLayout._steps
        monkeypatch.setattr(
            ImageLayout, "_steps", lambda self, times: steps(self, times) + (np.arange(times) > 0)
        )
    elif mistake == "order of frames":
        seen = clips[:, [1, 0, 2, 3, 4, 5]]
    elif mistake == "a repeated frame":
        seen[:, 1] = seen[:, 0]
    prefix = model.prefill_clips(list(map(list, seen)), start, seconds=seconds)
    if mistake == "text":
        object.__setattr__(prefix, "next_position", prefix.next_position + 1)
    assert np.abs(model.logits([AFTER], prefix=prefix) - wanted).max() > 1e-3


def test_fractions_of_a_second(exported: Any, source: Any) -> None:
    """Times are rounded down as in transformers 5; version 4.57 takes whole seconds alone."""
    import transformers

    _, out, size, _ = exported
    model, clips = VisionLanguageModel(out), clips_of(1, 6, size)
    seconds = 0.75 if int(transformers.__version__.split(".")[0]) >= 5 else 1.0
    start = [*BEFORE, VISION_START, VIDEO, VISION_END]
    ids = model.layout(6, seconds).expand([*start, *AFTER]).ids
    prefix = model.prefill_clips(list(map(list, clips)), start, seconds=seconds)
    pace = model.layout(6).positions_per_second * 2 * seconds
    if 2 * pace < max(size) // 28:
        wanted = expected_logits(source, [ids], clips, seconds)
        np.testing.assert_allclose(model.logits([AFTER], prefix=prefix), wanted, atol=1e-4)
    times = model.layout(6, seconds).expand(start).positions[0]
    run = times[len(BEFORE) + 1 : -1].reshape(3, -1)
    assert (run == len(BEFORE) + 1 + np.floor(np.arange(3) * pace)[:, None]).all()


def test_the_captioner_asks_about_clips(
    exported: Any, source: Any, model: VisionLanguageModel
) -> None:
    """Captions of clips are transformers' greedy answers to the product's prompts."""
    _, _, size, seconds = exported
    clips = clips_of(2, 4, size)
    captioner = VlmCaptioner(model, max_new_tokens=8)
    frames = FrameSet.of(list(clips), frame_seconds=seconds)
    start = PromptStart(model, 4, seconds)
    for task, texts in {
        prompts.agnostic_caption(4): captioner.agnostic(frames),
        prompts.aware_caption(["a dog"], 4): captioner.aware(frames, ["a dog"]),
    }.items():
        assert "this clip" in task
        ids = model.layout(4, seconds).expand(start.prompt(task)).ids
        rows = [list(ids) for _ in clips]
        for _ in range(8):
            tokens = expected_logits(source, rows, clips, seconds).argmax(axis=1).tolist()
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)
        answers = [model.decode(row[len(ids) :]) for row in rows]
        stopped = captioner.answers(frames, task, stop_ids=())
        assert stopped == [row[len(ids) :] for row in rows]
        assert len(texts) == len(answers)


def test_an_export_compares_its_clips(tmp_path: Path) -> None:
    """The comparison of `export_vlm` and its self-check cover the graph of clips."""
    source = write_tiny_vlm(tmp_path / "source", PUBLISHED)
    out = export_vlm(source, tmp_path / "out", image_size=IMAGE_SIZE)
    model = VisionLanguageModel(out)
    assert sorted(model.manifest.layouts) == ["1", "2", "4", "6"]
    with pytest.raises(GranAlignError, match="got clips of 3, expected one of: 1, 2, 4, 6"):
        model.layout(3)


@pytest.mark.needs_torchvision
@pytest.mark.parametrize("frames", [2, 4, 6])
def test_ids_and_pixels_are_those_of_the_processor(
    exported: Any, tmp_path: Path, frames: int
) -> None:
    """The product's prompts, as AutoProcessor renders them with the same frames as a video."""
    require_torchvision()
    from transformers import AutoProcessor

    source, out, size, seconds = exported
    shutil.copytree(source, tmp_path / "source")
    settings = PREPROCESSOR | {"video_processor_type": "Qwen2VLVideoProcessor"}
    write_json(tmp_path / "source" / "video_preprocessor_config.json", settings)
    (tmp_path / "source" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    processor = AutoProcessor.from_pretrained(tmp_path / "source")
    model, (clip,) = VisionLanguageModel(out), clips_of(1, frames, size)
    start = PromptStart(model, frames, seconds)
    for task in (
        prompts.agnostic_caption(frames),
        prompts.aware_caption(["a dog", "runs"], frames),
        prompts.recognition("A man walks his dog through the snow.", frames),
    ):
        text = processor.apply_chat_template(
            prompts.about_clip(task, frames, "video"), add_generation_prompt=True, tokenize=False
        )
        told = {"fps": 1 / seconds, "total_num_frames": frames, "duration": frames * seconds}
        given = processor(
            text=[text],
            videos=[list(clip)],
            video_metadata=[told | {"frames_indices": list(range(frames))}],
            fps=1 / seconds,
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        ids = model.layout(frames, seconds).expand(start.prompt(task)).ids
        assert ids == given["input_ids"][0].tolist()
        np.testing.assert_allclose(given["pixel_values_videos"], pixels_of(clip), atol=1e-5)
        assert [float(value) for value in given["second_per_grid_ts"]] == [2 * seconds]
