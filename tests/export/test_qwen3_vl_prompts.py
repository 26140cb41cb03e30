"""The ids of Qwen3-VL's prompts about frames and clips are those of transformers' processor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_llm import one_thread
from helpers.tiny_qwen3_vl import IMAGE_SIZE, write_unchecked_qwen3_vl
from helpers.tiny_vlm import VIDEO, VISION_END, VISION_START, frames_of

from granalign_fast.export.checks.transformers_calls import load_image_processor
from granalign_fast.language import prompts
from granalign_fast.models.image_layout import TimeStamp
from granalign_fast.models.vision_language_model import VisionLanguageModel

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


@pytest.fixture(scope="module")
def folder(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``source`` and ``out``."""
    whole = tmp_path_factory.mktemp("exported")
    write_unchecked_qwen3_vl(whole)
    return whole


class NoDecoder:
    """A video processor that decodes nothing: the real one needs torchvision.

    It returns the grid and the times of the frames that are passed. All texts are the processor's.
    """

    merge_size = temporal_patch_size = 2
    model_input_names = ()
    valid_kwargs = None

    def __init__(self) -> None:
        self.fps = 1.0

    def __call__(self, videos: Any, **more: Any) -> dict[str, Any]:
        from transformers.video_utils import VideoMetadata

        count, height, width, _ = videos[0].shape
        metadata = VideoMetadata(count, fps=self.fps, frames_indices=list(range(count)))
        return {
            "pixel_values_videos": np.zeros((1, 1)),
            "video_grid_thw": np.array([[-(-count // 2), height // 16, width // 16]]),
            "video_metadata": [metadata],
        }


@pytest.fixture
def processor(torch: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return transformers' processor of a tiny model."""
    from transformers import AutoTokenizer, ProcessorMixin, Qwen3VLProcessor

    def init(self: Any, images: Any, tokenizer: Any, videos: Any, **more: Any) -> None:
        self.image_processor, self.tokenizer, self.video_processor = images, tokenizer, videos
        self.chat_template = None

    monkeypatch.setattr(ProcessorMixin, "__init__", init)
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    return Qwen3VLProcessor(load_image_processor(folder / "source"), tokenizer, NoDecoder())


QUERY = "女の人が 3 <b>dogs</b>?"
TASKS = [prompts.AGNOSTIC_CAPTION, prompts.recognition(QUERY)]


@pytest.mark.parametrize("task", TASKS)
def test_ids_of_frames_are_those_of_the_processor(folder: Path, processor: Any, task: str) -> None:
    model, messages = VisionLanguageModel(folder / "out"), prompts.about_frame(task)
    text = processor.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    frames = list(frames_of(1, IMAGE_SIZE))
    expected = processor(text=[text], images=frames, do_resize=False)["input_ids"][0]
    assert model.layout().expand(model.chat(messages)).ids == expected


def processed_clip(processor: Any, messages: Any, frames: int, clip_seconds: float) -> list[int]:
    """Return the processor's ids of a prompt about a clip.

    Up to version 5.9, transformers replaces the marks around the video with those of each patch in
    time, as the model's authors wrote it. Later versions leave a second pair of marks outside.
    """
    text = processor.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    processor.video_processor.fps = frames / clip_seconds
    clip = frames_of(frames, IMAGE_SIZE)
    ids = list(processor(text=[text], videos=[clip])["input_ids"][0])
    first = ids.index(VISION_START)
    outside = ids[first + 1] != VIDEO
    if outside:
        last = max(index for index, token in enumerate(ids) if token == VISION_END)
        del ids[last], ids[first]
    return ids


@pytest.mark.parametrize("seconds", [1, 1.5, 2, 2.5, 3, 4, 5, 7, 10])
@pytest.mark.parametrize("frames", [2, 4, 6])
def test_ids_of_clips_are_those_of_the_processor(
    folder: Path, processor: Any, frames: int, seconds: float
) -> None:
    model = VisionLanguageModel(folder / "out")
    messages = prompts.about_clip(prompts.recognition(QUERY, frames), frames, "video")
    expected = processed_clip(processor, messages, frames, seconds)
    layout = model.layout(frames, seconds / frames)
    assert layout.expand(model.chat(messages)).ids == expected


@pytest.mark.parametrize("late", [(1, 0), (0, 1), (1, 1)])
def test_time_stamps_off_by_a_frame_are_found(
    folder: Path, processor: Any, late: tuple[int, int]
) -> None:
    model = VisionLanguageModel(folder / "out")
    messages = prompts.about_clip(prompts.agnostic_caption(4), 4, "video")
    layout = model.manifest.layout(4)
    pieces = tuple(
        TimeStamp(piece.first + late[0], piece.last + late[1])
        if isinstance(piece, TimeStamp)
        else piece
        for piece in layout.pieces
    )
    wrong = replace(layout, pieces=pieces).timed(0.5, model.tokenizer.encode)
    expected = processed_clip(processor, messages, 4, 2)
    assert wrong.expand(model.chat(messages)).ids != expected
