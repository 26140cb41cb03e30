"""Indexes without captions: what they hold, and how captions are added to them later."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.index_worker import (
    CLIPS,
    FINGERPRINTS,
    ColourCaptioner,
    Killed,
    Projection,
    Tree,
    UnusedModel,
    dying,
    index,
    stand_ins,
    start,
    tree,
    videos_in,
    write_video,
)
from pyarrow import parquet
from safetensors.numpy import load_file

from granalign_fast import GranAlignError
from granalign_fast.index import FrameTable, IndexModels, UncaptionedVideo, VideoIndex
from granalign_fast.index.builder import index_videos
from granalign_fast.index.relocation import relocate_videos

KILLS = int(os.environ.get("GRANALIGN_KILLS", "4"))
"""Number of times that the worker is killed at a random moment."""

CLIP = {"clip": FINGERPRINTS["clip"]}


def frames_alone(frame_encoder: Any = None, **changes: Any) -> IndexModels:
    """The stand-ins without a captioner."""
    encoder = frame_encoder or Projection()
    return replace(IndexModels(None, None, encoder, CLIP), **changes)


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The indexes of frames alone."""
    out = tmp_path_factory.mktemp("bare")
    index(folder, out, frames_alone())
    return out


def test_an_index_without_captions_says_so(bare: Path, folder: Path, clean: Tree) -> None:
    for vid, clips in CLIPS.items():
        manifest = json.loads((bare / vid / "manifest.json").read_bytes())
        assert manifest["captions"] is False and manifest["models"] == CLIP
        table = parquet.read_table(bare / vid / "clips.parquet")
        assert table.column_names == ["clip", "time", "frame_hash"] and len(table) == clips
        assert set(load_file(bare / vid / "embeddings.safetensors")) == {"frames"}
        loaded = VideoIndex.load(bare / vid)
        assert loaded.video == UncaptionedVideo(vid, clips, 2.0, loaded.video.duration)
        assert loaded.video.captions is None and loaded.embeddings is None
        assert loaded.seconds(1) == 2.0 and loaded.seconds(clips) == loaded.video.duration
        with pytest.raises(GranAlignError, match=f"video '{vid}': .*take the preset 'visual'"):
            _ = loaded.caption_embeddings
        # An index with captions is written as before.
        assert b'"captions"' not in clean[f"{vid}/manifest.json"]
    # What is up to date is not made again, whatever its order of keys.
    before = tree(bare)
    index(folder, bare, frames_alone(UnusedModel()))
    assert tree(bare) == before


def test_a_saved_index_without_captions_is_loaded_unchanged(bare: Path, tmp_path: Path) -> None:
    VideoIndex.load(bare / "yard").save(tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(bare / "yard")


def test_the_path_of_a_moved_file_is_updated(folder: Path, bare: Path, tmp_path: Path) -> None:
    out = shutil.copytree(bare, tmp_path / "out")
    videos = tmp_path / "videos"
    for path in videos_in(folder):
        videos.mkdir(exist_ok=True)
        shutil.copy(path, videos)
    relocate_videos(out, folder, videos)
    index(videos, out, frames_alone(UnusedModel()))
    for vid in CLIPS:
        moved = VideoIndex.load(out / vid)
        assert moved.frames is not None and moved.frames.path == videos / f"{vid}.mp4"
        assert moved.video.captions is None


def test_captions_are_added_without_embedding_frames_again(
    folder: Path, bare: Path, tmp_path: Path, clean: Tree
) -> None:
    out = shutil.copytree(bare, tmp_path / "out")
    index(folder, out, stand_ins(frame_encoder=UnusedModel()))
    assert tree(out) == clean
    # Whoever comes later without a captioner takes nothing away.
    index(folder, out, frames_alone(UnusedModel()))
    assert tree(out) == clean


def test_frames_keep_their_embeddings_beside_new_videos(
    folder: Path, tmp_path: Path, clean: Tree
) -> None:
    """Two videos had indexes; the third has none, and shares batches with both."""
    street, yard, kitchen = videos_in(folder)
    index_videos([kitchen, street], tmp_path, frames_alone(), rows=3)
    before = {vid: VideoIndex.load(tmp_path / vid).frames for vid in ("kitchen", "street")}
    index(folder, tmp_path)
    for vid in CLIPS:
        found = VideoIndex.load(tmp_path / vid)
        kept = before.get(vid)
        assert found.frames is not None and found.video.captions is not None
        if kept is not None:
            np.testing.assert_array_equal(found.frames.embeddings, kept.embeddings)
    for name in ("clips.parquet", "embeddings.safetensors"):
        assert tree(tmp_path)[f"{yard.stem}/{name}"] == clean[f"{yard.stem}/{name}"]


def change_a_hash(out: Path) -> None:
    old = VideoIndex.load(out / "street")
    assert isinstance(old.frames, FrameTable)
    hashes = ("another picture", *old.frames.hashes[1:])
    shutil.rmtree(out / "street")
    replace(old, frames=replace(old.frames, hashes=hashes)).save(out / "street")


def tear(out: Path) -> None:
    (out / "street" / "embeddings.safetensors").write_bytes(b"torn")


def change_the_encoder(out: Path) -> None:
    for vid in CLIPS:
        old = VideoIndex.load(out / vid)
        shutil.rmtree(out / vid)
        replace(old, models={"clip": "another"}).save(out / vid)


@pytest.mark.parametrize("change", [change_a_hash, tear, change_the_encoder])
def test_embeddings_of_other_frames_are_not_taken(
    folder: Path, bare: Path, tmp_path: Path, clean: Tree, change: Any
) -> None:
    out = shutil.copytree(bare, tmp_path / "out")
    change(out)
    with pytest.raises(AssertionError, match="the model ran"):
        index(folder, out, stand_ins(frame_encoder=UnusedModel()))
    index(folder, out)
    assert tree(out) == clean


def test_captions_are_not_lost(folder: Path, tmp_path: Path, clean: Tree) -> None:
    """Frames by another encoder would replace the index, and nobody could caption it."""
    index(folder, tmp_path)
    other = frames_alone(fingerprints={"clip": "another"})
    message = "got an index with captions, which these models would lose"
    with pytest.raises(GranAlignError, match=message):
        index(folder, tmp_path, other)
    with pytest.raises(GranAlignError, match=message):
        index_videos(videos_in(folder), tmp_path, frames_alone(), clip_seconds=1.0)
    failed: dict[str, str] = {}
    index(folder, tmp_path, other, on_error=lambda path, error: failed.update({path.stem: "lost"}))
    assert failed == dict.fromkeys(CLIPS, "lost")
    assert tree(tmp_path) == clean


def test_captions_of_another_file_are_replaced(folder: Path, tmp_path: Path) -> None:
    video = tmp_path / "yard.mp4"
    shutil.copy(folder / "yard.mp4", video)
    index_videos([video], tmp_path / "out", stand_ins())
    write_video(video, 3, 9)
    index_videos([video], tmp_path / "out", frames_alone())
    assert VideoIndex.load(tmp_path / "out" / "yard").video.clips == 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((ColourCaptioner(), None, Projection()), "expected both or neither"),
        ((None, None, None), "got None and no frame encoder"),
    ],
)
def test_models_that_do_not_fit_together(parts: Any, message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        IndexModels(*parts)


def test_records_without_captions_are_checked() -> None:
    for values, message in {
        ("v", 0): "clips of 'v': got 0",
        ("v", True): "clips of 'v': got True",
        (3, 1): "vid: got 3",
        ("v", 3, 2.0, 4.0): "clips of 'v': got 3 clips of 2.0 s, but the video ends at 4.0 s",
    }.items():
        with pytest.raises(GranAlignError, match=message):
            UncaptionedVideo(*values)  # type: ignore[arg-type]
    rows = np.ones((2, 4), np.float32)
    frames = FrameTable(np.array([0.0, 2.0]), ("a", "b"), rows)
    video = UncaptionedVideo("v", 2)
    for parts, message in (
        ((video, rows, frames), "got an array, expected None"),
        ((video, None, None), "got none with embeddings"),
        ((video, None, replace(frames, embeddings=None)), "got none with embeddings"),
        ((UncaptionedVideo("v", 3), None, frames), "got 2, expected 3, one for each clip"),
    ):
        with pytest.raises(GranAlignError, match=message):
            VideoIndex(*parts)


def edit_manifest(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def test_a_manifest_that_is_wrong_about_captions(bare: Path, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bare / "yard", tmp_path / "yard")
    for value, message in (
        (True, "expected clip int64, time double, caption string"),
        (1, "got captions 1"),
    ):
        edit_manifest(copy, captions=value)
        with pytest.raises(GranAlignError, match=message):
            VideoIndex.load(copy)
    index(folder, tmp_path / "out")
    edit_manifest(tmp_path / "out" / "yard", captions=False)
    with pytest.raises(GranAlignError, match="expected clip int64, time double, frame_hash string"):
        VideoIndex.load(tmp_path / "out" / "yard")


def assert_readable(out: Path) -> None:
    """Assert that every video has a whole index: with captions, without, or about to be renamed."""
    for vid in CLIPS:
        here = (out / vid).exists()
        VideoIndex.load(out / vid if here else out / ".indexing" / "old" / vid)


@pytest.mark.once
def test_dying_while_captions_are_added(
    folder: Path, bare: Path, tmp_path: Path, clean: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every change of the file system; no frame is embedded again, whenever the run died."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and only a power cut needs it
    whole = shutil.copytree(bare, tmp_path / "whole")
    with dying(sys.maxsize) as changes:
        index(folder, whole)
    assert tree(whole) == clean and len(changes) > 20
    for at in range(len(changes)):
        out = shutil.copytree(bare, tmp_path / str(at))
        captioner = ColourCaptioner()
        models = stand_ins(captioner=captioner, frame_encoder=UnusedModel())
        with suppress(Killed), dying(at):
            index(folder, out, models)
        assert_readable(out)
        index(folder, out, models)
        assert tree(out) == clean, at
        # Each death costs the current batch and no other.
        assert len(captioner.batches) <= 4 + 2, at
        shutil.rmtree(out)


@pytest.mark.once
def test_killed_while_captions_are_added(
    folder: Path, bare: Path, tmp_path: Path, clean: Tree
) -> None:
    chance = random.Random(os.urandom(8))
    begin = time.perf_counter()
    assert start(folder, shutil.copytree(bare, tmp_path / "whole")).wait() == 0
    seconds = time.perf_counter() - begin
    for kill in range(KILLS):
        out = tmp_path / str(kill)
        shutil.copytree(bare, out)
        worker = start(folder, out)
        with suppress(subprocess.TimeoutExpired):
            worker.wait(chance.uniform(0, seconds / 2))
        worker.kill()
        worker.wait()
        assert_readable(out)
        assert start(folder, out).wait() == 0
        assert tree(out) == clean
