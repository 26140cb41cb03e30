"""Exports of Qwen3-VL against transformers: towers, tokens, folders, prompts, and mistakes."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layouts import save_as_version_5
from helpers.tiny_llm import PREFIX_ERROR, one_thread
from helpers.tiny_qwen3_vl import (
    CONFIGS,
    GQA_TIED,
    IMAGE_SIZE,
    MHA_UNTIED,
    write_tiny_qwen3_vl,
    write_unchecked_qwen3_vl,
)
from helpers.tiny_vlm import IMAGE, VIDEO, VISION_END, VISION_START, frames_of

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks import vision_language_model as checks
from granalign_fast.export.checks.transformers_calls import image_tokens, load_image_processor
from granalign_fast.export.families import family_of, read_vlm
from granalign_fast.export.graphs.vlm_decoder import VlmDecoderGraph
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.export.specs import VLM_PRECISIONS
from granalign_fast.export.vlm import export_vlm
from granalign_fast.models.chat import ChatTokenizer
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.image_layout import ImageLayout
from granalign_fast.models.manifest import VlmManifest
from granalign_fast.models.vision_language_model import VisionLanguageModel

pytestmark = pytest.mark.needs_torch

STEPS = 40
SECONDS = 0.5
TEXT = [int(value) for value in np.random.default_rng(3).integers(0, 250, 24)]
SIZES = {
    "gqa-tied": [(96, 160), (32, 64), (224, 96)],
    "mha-untied": [(96, 160), (160, 32)],
    "wide-heads": [(96, 160), (64, 96)],
}
"""Image sizes: odd grids, and smaller and larger ones than the table of positions."""

Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    yield from one_thread("transformers")


@pytest.fixture(scope="module")
def exported(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a function that writes a folder with ``source`` and ``out`` once for all tests."""
    root = tmp_path_factory.mktemp("exported")

    def get(name: str, size: tuple[int, int] = IMAGE_SIZE) -> Path:
        folder = root / f"{name}-{size[0]}-{size[1]}"
        if not folder.exists():
            write_unchecked_qwen3_vl(folder, CONFIGS[name], image_size=size)
        return folder

    return get


@pytest.fixture(scope="module")
def sources(exported: Exported) -> Callable[[str], Any]:
    """Return a function that opens a configuration's source with transformers."""
    from transformers import Qwen3VLForConditionalGeneration

    @functools.cache
    def get(name: str) -> Any:
        folder = exported(name) / "source"
        model = Qwen3VLForConditionalGeneration.from_pretrained(folder).float().eval()
        model.generation_config.eos_token_id = None
        return model

    return get


def pixels_of(folder: Path, frames: Any) -> Any:
    """Return what the image processor makes of frames of the right size."""
    processor = load_image_processor(folder)
    return processor(images=list(frames), do_resize=False, return_tensors="pt")


def clip_pixels(source: VlmSource, clips: Any) -> tuple[Any, Any]:
    """Return the patches and grids of clips, from those of their frames.

    The image processor repeats a frame in time. A patch of a clip has the first frame's values at
    its first time, and the second frame's at its second.
    """
    import torch

    count, frames = clips.shape[:2]
    pixels = pixels_of(source.folder, clips.reshape(-1, *clips.shape[2:]))["pixel_values"]
    edge = source.vision.patch
    patches = pixels.reshape(count * frames // 2, 2, -1, 3, 2, edge, edge)
    joined = torch.stack([patches[:, 0, :, :, 0], patches[:, 1, :, :, 1]], dim=3)
    rows, columns = (side * source.vision.merge for side in source.grid)
    return joined.reshape(-1, pixels.shape[-1]), torch.tensor(
        [[frames // 2, rows, columns]] * count
    )


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in SIZES for size in SIZES[name]])
def test_towers_are_those_of_transformers(
    torch: Any,
    exported: Exported,
    sources: Callable[[str], Any],
    name: str,
    size: tuple[int, int],
) -> None:
    folder = exported(name, size)
    source = read_vlm(folder / "source", size)
    frames = frames_of(6, size)
    images = pixels_of(folder / "source", frames)
    pixels, grids = clip_pixels(source, frames.reshape(3, 2, *size, 3))
    with torch.inference_mode():
        run_tower = family_of(source).peer.run_tower
        by_frame = run_tower(sources(name), images)
        inputs = {"pixel_values": pixels, "image_grid_thw": grids}
        by_clip = run_tower(sources(name), inputs)
    patches = images["pixel_values"].numpy().reshape(6, -1, pixels.shape[-1])
    for graph, given, expected in (
        ("vision.onnx", {"frames": frames}, by_frame),
        ("patches.onnx", {"pixel_values": patches}, by_frame),
        ("clips.onnx", {"frames": frames.reshape(3, 2, *size, 3)}, by_clip),
    ):
        session = open_session(folder / "out" / graph)
        for rows in (slice(0, None), slice(1, 2)):
            got = session(**{key: value[rows] for key, value in given.items()})
            assert got.keys() == expected.keys()
            for output, values in expected.items():
                np.testing.assert_allclose(got[output], values[rows].numpy(), atol=1e-4, rtol=0)


def asked(source: VlmSource, frames: int) -> tuple[list[int], list[int], list[int]]:
    """Return a prompt about a clip up to its end, the rest, and the whole with all tokens."""
    seen = IMAGE if frames == 1 else VIDEO
    before, after = [*TEXT[:5], VISION_START, seen, VISION_END], TEXT[5:]
    encode = ChatTokenizer(source.folder, processor=True).encode
    layout = source.layouts[frames].timed(SECONDS, encode)
    return before, after, layout.expand([*before, *after]).ids


@pytest.mark.parametrize("clips", [1, 6])
@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_tokens_are_those_of_transformers(
    torch: Any,
    exported: Exported,
    sources: Callable[[str], Any],
    name: str,
    frames: int,
    clips: int,
) -> None:
    folder, theirs = exported(name), sources(name)
    source = read_vlm(folder / "source", IMAGE_SIZE)
    before, after, whole = asked(source, frames)
    videos = frames_of(clips * frames, IMAGE_SIZE).reshape(clips, frames, *IMAGE_SIZE, 3)
    rows = torch.tensor([whole] * clips)
    if frames == 1:
        seen = dict(pixels_of(folder / "source", videos[:, 0]))
    else:
        pixels, grids = clip_pixels(source, videos)
        seen = {"pixel_values_videos": pixels, "video_grid_thw": grids}
    seen |= image_tokens(theirs, rows)
    with torch.inference_mode():
        theirs.model.rope_deltas = None
        expected = theirs(input_ids=rows, **seen).logits[:, -1].numpy()
        theirs.model.rope_deltas = None
        tokens = theirs.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            **seen,
            max_new_tokens=STEPS,
            do_sample=False,
        )[:, len(whole) :].tolist()
    assert len({tuple(row) for row in tokens}) == clips, "clips must differ to mean anything"
    for static in (False, True):
        ours = VisionLanguageModel(folder / "out", static_cache=static)
        prefix = ours.prefill_clips(videos, before, seconds=SECONDS)
        got = ours.logits([after] * clips, prefix=prefix)
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
        answers = ours.generate([after] * clips, prefix=prefix, max_new_tokens=STEPS, stop_ids=())
        assert answers == tokens


@pytest.mark.parametrize("precision", sorted(VLM_PRECISIONS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_export_says_how_exact_it_is(
    torch: Any, tmp_path: Path, name: str, precision: str
) -> None:
    source = write_tiny_qwen3_vl(tmp_path / "source", CONFIGS[name])
    out = export_vlm(source, tmp_path / "out", precision=precision, image_size=IMAGE_SIZE)
    measured, tolerance = VlmManifest.read(out).validation, VLM_PRECISIONS[precision]
    assert 0 < measured["image_relative_error"] <= tolerance.image.relative
    assert 0 < measured["clip_relative_error"] <= tolerance.logits.relative
    assert measured["relative_error"] <= tolerance.logits.relative
    assert measured["prefix_error"] <= PREFIX_ERROR[precision]
    assert measured["rounding_error"] <= tolerance.logits.rounding


@pytest.mark.parametrize("layout", ["saved", "version-5"])
@pytest.mark.parametrize("config", [GQA_TIED, MHA_UNTIED], ids=["tied", "untied"])
def test_folders_of_both_versions(
    torch: Any, tmp_path: Path, config: dict[str, Any], layout: str
) -> None:
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    source = write_tiny_qwen3_vl(tmp_path / "source", config)
    model = Qwen3VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    saved = tmp_path / "saved"
    if layout == "saved":
        model.save_pretrained(saved)
        AutoTokenizer.from_pretrained(source).save_pretrained(saved)
        load_image_processor(source).save_pretrained(saved)
    else:
        shutil.copytree(source, saved)
        save_as_version_5(saved)
    ours = VisionLanguageModel(export_vlm(saved, tmp_path / "out", image_size=IMAGE_SIZE))
    before, after, whole = asked(read_vlm(source, IMAGE_SIZE), 1)
    frame = frames_of(1, IMAGE_SIZE)
    row = torch.tensor([whole])
    with torch.inference_mode():
        outputs = model(input_ids=row, **pixels_of(source, frame), **image_tokens(model, row))
    got = ours.logits([after], prefix=ours.prefill_frames(frame, before))
    np.testing.assert_allclose(got, outputs.logits[:, -1].numpy(), atol=1e-4, rtol=0)
    assert list(ours.manifest.layouts) == ["1", "2", "4", "6"]


# Mistakes


def late_features(patch: pytest.MonkeyPatch) -> None:
    """The features of each layer are added one layer too late."""
    add = VlmDecoderGraph._with_features

    def late(self: Any, x: str, layer: int) -> str:
        return add(self, x, layer - 1) if 0 < layer < self.shape.layers - 1 else x

    patch.setattr(VlmDecoderGraph, "_with_features", late)


def not_interleaved(patch: pytest.MonkeyPatch) -> None:
    axes = VlmSource.axes
    patch.setattr(VlmSource, "axes", property(lambda self: tuple(sorted(axes.fget(self)))))


def next_row(patch: pytest.MonkeyPatch) -> None:
    """The rows of a frame count from the position behind its first."""
    place = ImageLayout.expand

    def shifted(self: ImageLayout, ids: Any) -> Any:
        prompt = place(self, ids)
        prompt.positions[1, prompt.visual] += 1
        return prompt

    patch.setattr(ImageLayout, "expand", shifted)


LOGITS = "padded: .*after a prefix: .*static: .*a static step: "
CLIPS = ".*a clip: .*a clip, static: "


@pytest.mark.parametrize(
    ("spoil", "precision"),
    [
        (late_features, "fp32"),
        (late_features, "fp16"),
        (late_features, "int4"),
        (not_interleaved, "fp32"),
        (not_interleaved, "fp16"),
        (next_row, "fp32"),
        (next_row, "fp16"),
    ],
)
def test_a_wrong_graph_is_found_and_leaves_nothing(
    torch: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
    precision: str,
) -> None:
    """The comparison finds it without the self-check, which finds some of them first."""
    found = LOGITS + (CLIPS if precision != "int4" else "")
    source = write_tiny_qwen3_vl(tmp_path / "source")
    spoil(monkeypatch)
    monkeypatch.setattr("granalign_fast.export.vlm.check_vlm", lambda *args, **more: {})
    with pytest.raises(GranAlignError, match=found) as error:
        export_vlm(source, tmp_path / "out", precision=precision, image_size=IMAGE_SIZE)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_text_after_a_frame_goes_on_at_its_longer_side(
    torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    text = checks._text
    monkeypatch.setattr(checks, "_text", lambda start, count: text(start + 1, count))
    with pytest.raises(GranAlignError, match=r"\): after a prefix: [^;]*; choose"):
        export_vlm(
            write_tiny_qwen3_vl(tmp_path / "source"),
            tmp_path / "out",
            precision=precision,
            image_size=IMAGE_SIZE,
        )
