"""SmolVLM2 with tiles against transformers: pixels, ids, logits and greedy tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.python_torchvision import require_torchvision
from helpers.smolvlm_peer import AFTER, STEPS, conversation, load, tasks
from helpers.tiny_llm import one_thread
from helpers.tiny_smolvlm import CONFIGS, IMAGE, frames_of, side_of, write_tiny_smolvlm

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks import vlm_reference
from granalign_fast.export.checks.transformers_calls import load_image_processor
from granalign_fast.export.sources.families import smolvlm
from granalign_fast.export.specs import VLM_PRECISIONS
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models import vision_language_model
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.video.images import cut_tiles

pytestmark = pytest.mark.needs_torch

CASES: dict[str, tuple[tuple[int, int], list[tuple[int, int]]]] = {
    "untied-gqa-4": ((2, 3), [(101, 160), (37, 60), (64, 96), (31, 55), (50, 77), (150, 233)]),
    "tied-mha-3": ((4, 1), [(150, 31), (97, 20), (160, 40), (311, 77), (33, 7), (81, 13)]),
    "tied-gqa-2": ((2, 2), [(41, 41), (47, 53), (53, 47), (60, 60), (200, 181), (9, 10)]),
}
"""By configuration: rows and columns of tiles, and sizes of frames for which the processor itself
chooses these."""


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


@pytest.fixture(scope="module")
def case(
    torch: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Return a function from the name of a configuration to its folder and export with tiles."""
    root = tmp_path_factory.mktemp("tiles")

    @functools.cache
    def get(name: str) -> tuple[Path, Path]:
        source = write_tiny_smolvlm(root / name, CONFIGS[name])
        rows, columns = CASES[name][0]
        side = side_of(CONFIGS[name])
        size = rows * side, columns * side
        return source, export_vlm(source, root / f"{name}-out", image_size=size, check=True)

    return get


def frames_for(name: str) -> list[np.ndarray[Any, Any]]:
    """Return a frame of each size of a case."""
    sizes = CASES[name][1]
    large = frames_of(len(sizes), 320)
    return [
        np.ascontiguousarray(frame[: size[0], : size[1]])
        for frame, size in zip(large, sizes, strict=True)
    ]


def switches(name: str) -> dict[str, Any]:
    """Return the processor's arguments for the frames of a case: tiles, and their longest edge."""
    edge = max(CASES[name][0]) * side_of(CONFIGS[name])
    return {"do_image_splitting": True, "size": {"longest_edge": edge}}


def processed(name: str, source: Path, frame: Any) -> Any:
    processor = load_image_processor(source)
    return processor([[frame]], return_tensors="pt", **switches(name))


@pytest.mark.parametrize("name", sorted(CASES))
def test_pixels_are_those_of_the_processor(
    case: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    """Frames of odd sizes, to the bit: every tile, and the whole frame behind them."""
    source, _ = case(name)
    side = side_of(CONFIGS[name])
    for frame in frames_for(name):
        ours = np.stack(cut_tiles(frame, CASES[name][0], (side, side), 1))
        theirs = processed(name, source, frame)["pixel_values"][0].numpy()
        levels = np.rint((theirs.transpose(0, 2, 3, 1) * 0.5 + 0.5) * 255)
        np.testing.assert_array_equal(ours, levels)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_forty_greedy_tokens_and_logits_are_those_of_transformers(
    torch: Any, case: Callable[[str], tuple[Path, Path]], name: str, static: bool
) -> None:
    source, out = case(name)
    peer, ours = load(source), VisionLanguageModel(out, static_cache=static)
    start, frames = [70, 71, 72, IMAGE, 10], frames_for(name)
    prefix = ours.prefill_frames(frames, start)
    got = ours.generate(list(AFTER), prefix=prefix, max_new_tokens=STEPS, stop_ids=())
    logits = ours.logits(list(AFTER), prefix=prefix)
    whole = ours.layout().expand(start)
    for number, (frame, after) in enumerate(zip(frames, AFTER, strict=True)):
        ids = torch.tensor([[*whole.ids, *after]])
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        arguments |= processed(name, source, frame)
        with torch.inference_mode():
            theirs = peer(**arguments).logits[0, -1].numpy()
            answer = peer.generate(**arguments, max_new_tokens=STEPS, do_sample=False)
        assert got[number] == answer[0, ids.shape[1] :].tolist()
        np.testing.assert_allclose(logits[number], theirs, 0, 1e-4)
    # One frame alone.
    alone = ours.prefill_frames(frames[:1], start)
    assert ours.generate([AFTER[0]], prefix=alone, max_new_tokens=STEPS, stop_ids=()) == got[:1]
    np.testing.assert_allclose(ours.logits([AFTER[0]], prefix=alone)[0], logits[0], 0, 1e-5)
    assert len({tuple(row) for row in got}) > 3, "answers must differ to mean anything"


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_other_precisions(torch: Any, tmp_path: Path, precision: str) -> None:
    """They are as close to transformers as those of frames without tiles have to be."""
    source = write_tiny_smolvlm(tmp_path / "source", CONFIGS["untied-gqa-4"])
    out = export_vlm(source, tmp_path / "out", precision=precision, image_size=(64, 96), check=True)
    measured, tolerance = VlmManifest.read(out).validation, VLM_PRECISIONS[precision]
    assert 0 < measured["image_max_abs_error"] <= tolerance.image.max_error
    assert 0 < measured["relative_error"] <= tolerance.logits.relative


@pytest.mark.needs_torchvision
@pytest.mark.parametrize("name", sorted(CASES))
def test_prompts_are_those_of_the_processor(
    case: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    """All ids: rows, columns and marks of the tiles, as the processor chooses them by itself."""
    require_torchvision()
    from PIL import Image
    from transformers import AutoProcessor

    source, out = case(name)
    processor, ours = AutoProcessor.from_pretrained(source), VisionLanguageModel(out)
    for frame in frames_for(name):
        image = Image.fromarray(frame)
        for task in tasks()[:3]:
            messages = conversation(ours, task, [image])
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            expected = processor(text=[text], images=[[image]], **switches(name))
            plain = [{"type": "image"}, {"type": "text", "text": task}]
            ids = ours.chat([messages[0], {"role": "user", "content": plain}])
            assert ours.layout().expand(ids).ids == list(expected["input_ids"][0])


# Mistakes are found.


def column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model gets the tiles column by column."""

    def other(frame: Any, tiles: tuple[int, int], *more: Any) -> list[Any]:
        rows, columns = tiles
        *cut, whole = cut_tiles(frame, tiles, *more)
        return [cut[row * columns + column] for column in range(columns) for row in range(rows)] + [
            whole
        ]

    monkeypatch.setattr(vision_language_model, "cut_tiles", other)


def whole_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole frame comes before its tiles, in what the towers are compared with."""

    def other(*arguments: Any) -> list[Any]:
        *cut, whole = cut_tiles(*arguments)
        return [whole, *cut]

    monkeypatch.setattr(vlm_reference, "cut_tiles", other)


def without_a_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of the second tile is missing."""
    around = smolvlm._around

    def other(folder: Any, image: int, tiles: Any) -> list[tuple[int, ...]]:
        texts = around(folder, image, tiles)
        return [texts[0], texts[1][:1], *texts[2:]] if tiles else texts

    monkeypatch.setattr(smolvlm, "_around", other)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (column_by_column, r"\): static: .*a static step: "),
        (whole_first, r"\): vision.onnx: "),
        (without_a_marker, "token ids of .* prompts differ from transformers'"),
    ],
)
def test_mistakes_are_found_and_leave_nothing(
    torch: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    message: str,
) -> None:
    source = write_tiny_smolvlm(tmp_path / "source", CONFIGS["tied-gqa-2"])
    spoil(monkeypatch)
    with pytest.raises(GranAlignError, match=message) as error:
        export_vlm(source, tmp_path / "out", image_size=(60, 90), check=True)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
