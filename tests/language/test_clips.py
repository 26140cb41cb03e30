"""The captioner of clips of several frames, without torch: prompts, prefixes, refused models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords
from helpers.tiny_bert import edit_json
from helpers.tiny_qwen3_vl import IMAGE_SIZE as QWEN3_SIZE
from helpers.tiny_qwen3_vl import write_unchecked_qwen3_vl
from helpers.tiny_vlm import IMAGE_SIZE, frames_of, write_tiny_vlm, write_unchecked_vlm
from helpers.videos import constant, render
from tokenizers import Tokenizer

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.prompts import check_prompts
from granalign_fast.export.families import read_vlm
from granalign_fast.index import IndexModels
from granalign_fast.index.builder import index_videos
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models import language_model as generation
from granalign_fast.models.prefix_cache import MemoryTier, PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet


@pytest.fixture(params=[False, True], ids=["growing", "static"], autouse=True, scope="module")
def caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run all tests with both kinds of cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_prefers_static_cache", lambda device: request.param)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vlm")
    source = write_tiny_vlm(root / "source")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(source / "tokenizer.json"))
    return write_unchecked_vlm(root)


@pytest.fixture(scope="module")
def model(folder: Path, caches: None) -> VisionLanguageModel:
    return VisionLanguageModel(folder)


@pytest.fixture
def captioner(model: VisionLanguageModel) -> VlmCaptioner:
    return VlmCaptioner(model, cache=PrefixCache([MemoryTier(1 << 28)]), max_new_tokens=6)


def clips(count: int, frames: int, seconds: float = 0.5) -> FrameSet:
    images = frames_of(count * frames).reshape(count, frames, *IMAGE_SIZE, 3)
    return FrameSet.of(list(images), frame_seconds=seconds)


def test_sets_of_several_forms_are_captioned_in_one_call(captioner: VlmCaptioner) -> None:
    targets = [
        (FrameSet.of(frames_of(3)), ["a dog"]),
        (clips(2, 4), ["a dog"]),
        (clips(2, 6), ["a cat", "runs"]),
        (clips(1, 4, 1.0), ["a cat"]),
        (FrameSet.of(frames_of(1)), ["a cat"]),
    ]
    together = captioner.aware_many(targets)
    assert together == [captioner.aware(frames, focus) for frames, focus in targets]
    assert [len(texts) for texts in together] == [3, 2, 2, 1, 1]


def test_a_prefix_is_kept_for_its_clip_and_its_times(captioner: VlmCaptioner) -> None:
    loaded: list[int] = []
    seen = clips(2, 4)

    def load(numbers: Any) -> Any:
        loaded.extend(numbers)
        return seen.load(numbers)

    def frames(seconds: float) -> FrameSet:
        return FrameSet(seen.hashes, load, 4, seconds)

    captioner.prefill(frames(0.5))
    assert loaded == [0, 1]
    first = captioner.agnostic(frames(0.5))
    assert loaded == [0, 1] and first == captioner.agnostic(clips(2, 4))
    captioner.agnostic(frames(2.5))  # other times are other positions
    assert loaded == [0, 1, 0, 1]
    # A single frame has a prefix of its own, with the beginning of before.
    alone = captioner.start_of((1, 0.0))
    assert alone.ids == captioner.start and alone.tokens < captioner.start_of((4, 0.5)).tokens


def test_recognition_is_a_softmax_of_yes_and_no(
    captioner: VlmCaptioner, model: VisionLanguageModel
) -> None:
    seen, queries = clips(3, 6), ["a dog runs", "a red car"]
    found = captioner.recognise(seen, queries)
    start = captioner.start_of((6, 0.5))
    images = [list(clip) for clip in seen.load(range(3))]
    prefix = model.prefill_clips(images, start.ids, seconds=0.5)
    yes, no = model.tokenizer.encode("yes"), model.tokenizer.encode("no")
    for row, query in zip(found, queries, strict=True):
        suffix = start.suffix(prompts.recognition(query, 6))
        logits = model.logits([suffix] * 3, prefix=prefix).astype(np.float64)
        odds = np.exp(logits[:, [yes[0], no[0]]])
        np.testing.assert_allclose(row, odds[:, 0] / odds.sum(axis=1), atol=1e-5)
    assert np.ptp(found, axis=1).min() > 1e-4, "clips make no difference"


def test_sets_of_several_forms_are_recognised_in_few_batches(
    captioner: VlmCaptioner, model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, long = frames_of(5), "a man in a red coat runs with a dog over the road"
    targets = [
        (FrameSet.of(frames[:3]), ["a dog", long]),
        (clips(2, 4), ["a dog", "a cat", long]),
        (FrameSet.of(frames[2:]), ["a cat", "a dog"]),
    ]
    alone = [captioner.recognise(frames, queries) for frames, queries in targets]
    rows: list[int] = []
    logits = model.logits

    def counted(prompts: Any, **options: Any) -> Any:
        rows.append(len(prompts))
        return logits(prompts, **options)

    monkeypatch.setattr(model, "logits", counted)
    together = captioner.recognise_many(targets)
    # The third frame is in two sets, and asked about "a dog" in both.
    assert sum(rows) == 3 * 2 + 2 * 3 + 3 * 2 - 1 and len(rows) <= 4, "not in common batches"
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert captioner.recognise_many([]) == []


def test_prompts_speak_of_clips() -> None:
    system, user = prompts.about_clip("What?", 4, "video")
    assert system["content"] == prompts.CLIP_SYSTEM
    assert user["content"] == [{"type": "video"}, {"type": "text", "text": "What?"}]
    _, user = prompts.about_clip("What?", 4, "images")
    assert [part["type"] for part in user["content"]] == ["image"] * 4 + ["text"]
    query = "this frame falls"  # the text of a query stays as it is
    assert prompts.recognition(query, 2) == (
        f"Does this clip show the following? {query}\nAnswer yes or no."
    )
    assert "this clip" in prompts.aware_caption([query], 2)
    assert query in prompts.aware_caption([query], 2)
    assert "frame" not in prompts.agnostic_caption(2)


def test_an_export_without_clips_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "vlm")
    older = VisionLanguageModel(folder).manifest.layouts["1"]
    edit_json(tmp_path / "vlm" / "manifest.json", layouts={"1": older})
    captioner = VlmCaptioner(VisionLanguageModel(tmp_path / "vlm"))
    with pytest.raises(
        GranAlignError, match=r"of 6, expected one of: 1, .*whose export takes clips of 6"
    ):
        captioner.agnostic(clips(1, 6))
    video = render(tmp_path / "a.mp4", constant(25, 5))
    models = IndexModels(captioner, BagOfWords(), None, {"vlm": "x"})
    with pytest.raises(GranAlignError, match="got clips of 6, expected one of: 1") as error:
        index_videos([video], tmp_path / "out", models, frames_per_clip=6)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert index_videos([video], tmp_path / "out", models)


def test_a_template_without_videos_leaves_clips_out(tmp_path: Path) -> None:
    """A model that was trained on single images alone is exported for these."""
    source = write_tiny_vlm(tmp_path / "source")

    def exported() -> list[int]:
        return sorted(check_prompts(read_vlm(source, IMAGE_SIZE), compare=False).layouts)

    assert exported() == [1, 2, 4, 6]
    path = source / "tokenizer_config.json"
    template = json.loads(path.read_text())["chat_template"]
    for written in ("", "<|image_pad|>"):
        edit_json(path, chat_template=template.replace("<|video_pad|>", written))
        assert exported() == [1]
    refusing = template.replace("<|video_pad|>", "{{ raise_exception('no videos') }}")
    edit_json(path, chat_template=refusing)
    assert exported() == [1]
    without = template.replace("content['type'] == 'video' or 'video' in content", "false")
    edit_json(path, chat_template=without)
    assert exported() == [1]


def test_a_family_with_time_stamps_takes_clips_too(tmp_path: Path) -> None:
    """Qwen3-VL: the beginning of a prompt holds the times, so other times are other prefixes."""
    model = VisionLanguageModel(write_unchecked_qwen3_vl(tmp_path))
    captioner = VlmCaptioner(model, cache=PrefixCache([MemoryTier(1 << 28)]), max_new_tokens=6)
    starts = [captioner.start_of((4, seconds)) for seconds in (0.5, 2.5)]
    assert starts[0].ids == starts[1].ids and starts[0].key() != starts[1].key()
    images = list(frames_of(8, QWEN3_SIZE).reshape(2, 4, *QWEN3_SIZE, 3))
    for seconds, start in zip((0.5, 2.5), starts, strict=True):
        frames = FrameSet.of(images, frame_seconds=seconds)
        task = prompts.agnostic_caption(4)
        prefix = model.prefill_clips([list(clip) for clip in images], start.ids, seconds=seconds)
        expected = model.generate(
            [start.suffix(task)] * 2, prefix=prefix, max_new_tokens=6, stop_ids=()
        )
        assert captioner.answers(frames, task, stop_ids=()) == expected
    assert captioner.cache.counts.misses == 4
