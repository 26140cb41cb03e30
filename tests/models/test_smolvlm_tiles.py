"""SmolVLM2 with frames that are cut into tiles, without torch: pictures, prefixes, captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_smolvlm import CONFIGS, IMAGE, frames_of, write_unchecked_smolvlm

from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models import language_model as generation
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet
from granalign_fast.video.images import cut_tiles, resize

TEXT = [int(value) for value in np.random.default_rng(3).integers(0, 250, 24)]
TILES, SIDE = (2, 3), 32


@pytest.fixture(params=[False, True], ids=["growing", "static"], scope="module")
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VisionLanguageModel]:
    """A model whose frames have 2 x 3 tiles, with both kinds of cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_prefers_static_cache", lambda device: request.param)
        size = TILES[0] * SIDE, TILES[1] * SIDE
        folder = tmp_path_factory.mktemp("tiles")
        yield VisionLanguageModel(
            write_unchecked_smolvlm(folder, CONFIGS["untied-gqa-4"], image_size=size)
        )


def odd_frames(count: int) -> list[np.ndarray[Any, Any]]:
    """Return frames of different odd sizes."""
    large = frames_of(count, 200)
    return [frame[: 61 + 9 * i, : 97 + 14 * i] for i, frame in enumerate(large)]


def test_tiles_are_parts_of_the_frame_and_the_whole_comes_last() -> None:
    """A frame of the tiles' own size is cut without another value of any pixel."""
    (frame,) = frames_of(1, 96)
    frame = frame[:64]
    *tiles, whole = cut_tiles(frame, TILES, (SIDE, SIDE), 1)
    assert len(tiles) == 6 and {tile.shape for tile in [*tiles, whole]} == {(SIDE, SIDE, 3)}
    rows = [np.concatenate(tiles[start : start + 3], axis=1) for start in (0, 3)]
    np.testing.assert_array_equal(np.concatenate(rows), frame)
    np.testing.assert_array_equal(whole, resize(frame, SIDE, SIDE, 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5), (64, 96), (720, 1280)])
def test_frames_of_every_shape_have_the_same_tiles(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    images = cut_tiles(frame, TILES, (SIDE, SIDE), 1)
    assert [image.shape for image in images] == [(SIDE, SIDE, 3)] * 7


def test_a_suffix_may_begin_at_any_token_behind_the_frame(model: VisionLanguageModel) -> None:
    """The logits behind a kept prefix, one frame alone and six together, are the same."""
    frames = odd_frames(6)
    prompt = [*TEXT[:5], IMAGE, *TEXT[5:]]
    expected, tokens = None, None
    for end in (len(prompt) - 1, 14, 6):  # 6: right behind the frame
        prefix = model.prefill_frames(frames, prompt[:end])
        suffixes = [prompt[end:]] * 6
        logits = model.logits(suffixes, prefix=prefix)
        answers = model.generate(suffixes, prefix=prefix, max_new_tokens=20, stop_ids=())
        if expected is None:
            expected, tokens = logits, answers
        np.testing.assert_allclose(logits, expected, 0, 1e-5)
        assert answers == tokens
    assert expected is not None and np.ptp(expected, axis=0).max() > 0.1
    for number, frame in enumerate(frames):
        alone = model.logits([prompt[6:]], prefix=model.prefill_frames([frame], prompt[:6]))
        np.testing.assert_allclose(alone[0], expected[number], 0, 1e-5)


def test_every_tile_is_seen(model: VisionLanguageModel) -> None:
    """Another picture in any tile changes the answer; so does another order of two tiles."""
    (frame,) = frames_of(1, 96)
    frame, prompt = frame[:64], [*TEXT[:3], IMAGE]
    frames = [frame]
    for row in range(2):
        for column in range(3):
            other = frame.copy()
            part = slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32)
            other[part] = 255 - other[part]
            frames.append(other)
    frames.append(np.concatenate([frame[:, 32:64], frame[:, :32], frame[:, 64:]], axis=1))
    prefix = model.prefill_frames(frames, prompt)
    logits = model.logits([TEXT[3:9]] * len(frames), prefix=prefix)
    for other in logits[1:]:
        assert np.abs(other - logits[0]).max() > 1e-2


def test_captions_clips_and_the_cache_of_prefixes(model: VisionLanguageModel) -> None:
    """Single frames have tiles, clips of several frames have none; both go through the product."""
    captioner = VlmCaptioner(model, max_new_tokens=8)
    start = captioner.start_of((1, 0.0))
    clip_start = captioner.start_of((2, 0.5))
    assert start.images == 7 and clip_start.images == 2
    assert start.tokens - clip_start.tokens > 4 * (7 - 2) - 4
    frames = FrameSet.of(odd_frames(3))
    captions = captioner.agnostic(frames)
    assert captioner.agnostic(frames) == captions and len(set(captions)) > 1
    assert sum(captioner.cache.counts.hits.values()) == 3
    assert captioner.recognise(frames, ["a dog"]).shape == (1, 3)
    clips = FrameSet.of(frames_of(4, SIDE).reshape(2, 2, SIDE, SIDE, 3), frame_seconds=0.5)
    assert len(captioner.agnostic(clips)) == 2


def test_the_model_has_another_name(tmp_path: Path, model: VisionLanguageModel) -> None:
    """Prefixes and captions of an export without tiles are not taken for those with tiles."""
    plain = VisionLanguageModel(write_unchecked_smolvlm(tmp_path, CONFIGS["untied-gqa-4"]))
    assert plain.fingerprint != model.fingerprint
    assert plain.manifest.token_bytes == model.manifest.token_bytes
