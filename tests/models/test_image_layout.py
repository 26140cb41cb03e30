"""The layout of images and clips in prompts: tokens, positions, times, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bert import edit_json, write_json
from helpers.tiny_vlm import IMAGE, write_unchecked_vlm

from granalign_fast.errors import GranAlignError
from granalign_fast.models.image_layout import ImageLayout, TimeStamp, VisualRun
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.vision_language_model import VisionLanguageModel

START, PAD, END, SEEN = 90, 91, 92, 93

FRAME = ImageLayout(content="image", placeholder=(SEEN,), pieces=(VisualRun(SEEN, (1, 2, 3)),))
VIDEO = ImageLayout(
    content="video",
    placeholder=(START, PAD, END),
    pieces=(
        TimeStamp(0, 1),
        (START,),
        VisualRun(PAD, (1, 1, 2)),
        (END,),
        TimeStamp(2, 2),
        (START,),
        VisualRun(PAD, (1, 1, 2)),
        (END,),
    ),
    frames=3,
    span=2,
)
IMAGES = ImageLayout(
    content="images",
    placeholder=(SEEN,),
    pieces=((7,), VisualRun(SEEN, (1, 1, 3)), (8,)),
    frames=2,
    axes=1,
)

TILE = VisualRun(SEEN, (1, 1, 2))
TILED = ImageLayout(
    content="image",
    placeholder=(SEEN,),
    pieces=((7,), TILE, (8,), TILE, (9,), TILE, (10, 11)),
    axes=1,
    tiles=(1, 2),
)


def test_tiles_stand_in_one_place() -> None:
    prompt = TILED.expand([1, SEEN, 2])
    assert prompt.ids == [1, 7, SEEN, SEEN, 8, SEEN, SEEN, 9, SEEN, SEEN, 10, 11, 2]
    assert prompt.visual.tolist() == [2, 3, 5, 6, 8, 9]
    assert prompt.positions.tolist() == [list(range(13))]
    assert TILED.images == 3 and TILED.places == 1 and TILED.visual_tokens == 6
    assert TILED.frame_size((30, 40)) == (30, 80) and FRAME.frame_size([30, 40]) == (30, 40)
    assert TILED.record()["tiles"] == [1, 2] and "tiles" not in FRAME.record()
    assert ImageLayout.read(TILED.record()) == TILED


@pytest.mark.parametrize(
    "changes",
    [
        {"tiles": [1]},
        {"tiles": [0, 2]},
        {"tiles": [1, 17]},
        {"tiles": [1.0, 2]},
        {"tiles": [2, 2]},  # 6 tokens of 5 images
        {"frames": 2, "content": "images"},
        {"content": "video"},
    ],
)
def test_tiles_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ImageLayout.read(TILED.record() | changes)


def test_a_frame_counts_rows_and_columns() -> None:
    prompt = FRAME.expand([1, 2, SEEN, 3, 4])
    assert prompt.ids == [1, 2, *[SEEN] * 6, 3, 4]
    assert prompt.positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert prompt.visual.tolist() == [2, 3, 4, 5, 6, 7]
    assert prompt.next_position == 7
    assert prompt.parts() == [slice(0, 10)]


def test_a_video_has_time_stamps_and_a_grid_for_each_span() -> None:
    texts: list[str] = []

    def encode(text: str) -> list[int]:
        texts.append(text)
        return [len(texts)]

    layout = VIDEO.timed(0.5, encode)
    assert texts == ["<0.2 seconds>", "<1.0 seconds>"]  # 0.25 and 1.0 with one digit
    prompt = layout.expand([50, START, PAD, END, 51])
    assert prompt.ids == [50, 1, START, PAD, PAD, END, 2, START, PAD, PAD, END, 51]
    assert prompt.positions[0].tolist() == [0, 1, 2, 3, 3, 5, 6, 7, 8, 8, 10, 11]
    assert prompt.positions[2].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert prompt.visual.tolist() == [3, 4, 8, 9]
    assert prompt.parts() == [slice(0, 5), slice(5, 12)]
    assert (layout.images, layout.visual_tokens, layout.places) == (2, 4, 1)


def test_images_stand_at_a_placeholder_each() -> None:
    prompt = IMAGES.expand([1, SEEN, 2, SEEN, 3])
    assert prompt.ids == [1, 7, SEEN, SEEN, SEEN, 8, 2, 7, SEEN, SEEN, SEEN, 8, 3]
    assert prompt.positions.tolist() == [list(range(13))]
    assert prompt.visual.tolist() == [2, 3, 4, 8, 9, 10]
    assert IMAGES.visual_tokens == 6 and IMAGES.images == 2


def test_the_times_of_a_run_grow_with_the_seconds() -> None:
    run = VisualRun(SEEN, (3, 1, 2))
    layout = ImageLayout(
        content="video",
        placeholder=(SEEN,),
        pieces=(run,),
        frames=6,
        span=2,
        positions_per_second=2.0,
    )
    for seconds, times, after in ((0.5, [0, 2, 4], 5), (0.4, [0, 1, 3], 4), (0.0, [0, 0, 0], 2)):
        prompt = layout.timed(seconds, lambda text: []).expand([SEEN, 1])
        assert prompt.positions[0, :6:2].tolist() == times
        assert prompt.positions[:, -1].tolist() == [after] * 3  # behind the greatest of all axes


@pytest.mark.parametrize("layout", [FRAME, VIDEO, IMAGES])
def test_records_are_read_again(layout: ImageLayout) -> None:
    assert ImageLayout.read(layout.record()) == layout


@pytest.mark.parametrize(
    ("ids", "layout", "message"),
    [
        ([1, 2], FRAME, "got 0 times the image token 93, expected it once"),
        ([SEEN, SEEN], FRAME, "got 2 times"),
        ([SEEN], IMAGES, "got 1 times the image token 93, expected it 2 times"),
        ([START, PAD], VIDEO, "got 0 times the image token 90, 91, 92"),
        ([START, PAD, END], VIDEO, "a time stamp without a time"),
    ],
)
def test_prompts_that_do_not_fit(ids: list[int], layout: ImageLayout, message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        layout.expand(ids)


def changed(**values: Any) -> dict[str, Any]:
    return FRAME.record() | values


@pytest.mark.parametrize(
    "record",
    [
        changed(content="sound"),
        changed(placeholder=[]),
        changed(placeholder=[-1]),
        changed(pieces=[]),
        changed(pieces=[[1, 2]]),
        changed(pieces="x"),
        changed(pieces=[{"token": 5, "grid": [1, 2]}]),
        changed(pieces=[{"token": 5, "grid": [65536, 65536, 65536]}]),
        changed(pieces=[{"token": 5, "grid": [1, 1, 1.5]}]),
        changed(pieces=[{"frames": [0]}]),
        changed(pieces=[{"word": 1}]),
        changed(frames=0),
        changed(frames=True),
        changed(frames=10**9),
        changed(span=[2]),
        changed(axes=2),
        changed(frames=5, content="video"),
        changed(positions_per_second=-1),
        changed(positions_per_second=float("nan")),
        changed(more=1),
        {},
    ],
)
def test_records_that_are_no_layout(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ImageLayout.read(record)


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        ({}, "one of single frames"),
        ({"2": FRAME.record() | {"frames": 2, "span": 2}}, "one of single frames"),
        ({"1": FRAME.record() | {"axes": 5}}, "layouts of '1'"),
        ({"1": FRAME.record(), "2": FRAME.record()}, "got frames of a layout 1, expected 2"),
        ({"1": []}, "got layouts"),
        (
            {"1": FRAME.record(), "2": FRAME.record() | {"frames": 2, "span": 2, "axes": 1}},
            "got axes of layouts",
        ),
    ],
)
def test_layouts_of_a_manifest(tmp_path: Path, layouts: Any, message: str) -> None:
    out = write_unchecked_vlm(tmp_path)
    edit_json(out / "manifest.json", layouts=layouts)
    with pytest.raises(GranAlignError, match=message) as error:
        VlmManifest.read(out)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("static", [False, True])
def test_a_layout_that_is_not_that_of_the_tower(tmp_path: Path, static: bool) -> None:
    """Other numbers of visual tokens give no answer: the static graph would take them."""
    out = write_unchecked_vlm(tmp_path)
    manifest = VlmManifest.read(out)
    frame = np.zeros((1, *manifest.image_size, 3), np.uint8)
    for grid in ([1, 3, 4], [1, 3, 6]):
        record = manifest.layouts["1"] | {"pieces": [{"token": IMAGE, "grid": grid}]}
        edit_json(out / "manifest.json", layouts={"1": record})
        model = VisionLanguageModel(out, static_cache=static)
        with pytest.raises(
            GranAlignError, match=r"got the outputs .* expected .* as manifest.json"
        ):
            model.prefill_frames(frame, [5, IMAGE])
    edit_json(out / "manifest.json", deepstack=2)
    with pytest.raises(GranAlignError, match="with deepstack 2 in manifest"):
        VisionLanguageModel(out, static_cache=static)


def test_folders_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They have the grid and the image token of a Qwen2.5-VL in the place of layouts."""
    out = write_unchecked_vlm(tmp_path)
    manifest = VlmManifest.read(out)
    older = copy.deepcopy(manifest.__dict__)
    for key in ("layouts", "deepstack"):
        del older[key]
    older |= {"image_grid": [3, 5], "image_token": IMAGE}
    (out / "manifest.json").unlink()
    write_json(out / "manifest.json", older)
    # Such a folder takes single frames alone.
    found = VlmManifest.read(out)
    assert found == replace(manifest, layouts={"1": manifest.layouts["1"]})
    with pytest.raises(GranAlignError, match="got clips of 6, expected one of: 1, as this export"):
        found.layout(6)
    write_json(out / "manifest.json", older | {"image_grid": 3})
    with pytest.raises(GranAlignError, match="missing or unknown; export the model again"):
        VlmManifest.read(out)


def test_a_number_of_frames_that_the_model_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="got clips of 3, expected one of: 1, 2, 4, 6, as"):
        VlmManifest.read(write_unchecked_vlm(tmp_path)).layout(3)


def test_positions_are_whole_numbers() -> None:
    assert FRAME.expand([SEEN]).positions.dtype == np.int64
