"""Indexes whose clips have several frames: what they hold, and when they are made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.index_worker import (
    CLIPS,
    FINGERPRINTS,
    UNUSED,
    ColourCaptioner,
    Killed,
    Projection,
    Tree,
    UnusedModel,
    index,
    stand_ins,
    tree,
    videos_in,
)
from helpers.videos import constant, render
from pyarrow import parquet

from granalign_fast import GranAlignError
from granalign_fast.index import IndexModels, VideoIndex
from granalign_fast.index.builder import index_videos
from granalign_fast.search.key_frames import frame_set
from granalign_fast.types import FrameSet, frame_hash
from granalign_fast.video.frames import read_frames

FOUR: dict[str, Any] = {"clip_seconds": 1.0, "frames_per_clip": 4}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of which every frame shows another number."""
    return render(tmp_path_factory.mktemp("numbered") / "street.mp4", constant(25, 5.4), bframes=2)


class Shapes(ColourCaptioner):
    """A captioner that notes the shapes of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[tuple[int, ...]]] = []

    def agnostic(self, frames: FrameSet) -> list[str]:
        images = frames.load(range(len(frames)))
        self.seen.append([image.shape for image in images])
        assert frames.frames_per_clip == 4
        return [f"a picture of {image.mean():.3f}" for image in images]


def test_an_index_holds_all_frames_of_its_clips(numbered: Path, tmp_path: Path) -> None:
    captioner = Shapes()
    (folder,) = index_videos([numbered], tmp_path, stand_ins(captioner=captioner), rows=9, **FOUR)
    clips = list(read_frames(numbered, **FOUR))
    loaded = VideoIndex.load(folder)
    table = loaded.frames
    assert table is not None and table.embeddings is not None and table.later is not None
    assert loaded.frames_per_clip == table.frames_per_clip == 4 and loaded.video.clips == 6
    assert table.times.tolist() == [clip.time for clip in clips]
    assert table.later.tolist() == [list(clip.later) for clip in clips]
    assert table.times_of(1) == (clips[1].time, *clips[1].later)
    assert table.hashes == tuple(frame_hash(clip.image) for clip in clips)
    assert loaded.video.captions == tuple(f"a picture of {c.image.mean():.3f}" for c in clips)
    # Nine frames hold two whole clips; all frames of a batch are embedded in one call.
    assert captioner.seen == [[(4, 48, 64, 3)] * 2] * 3
    for begin in range(0, 6, 2):
        batch = [image for clip in clips[begin : begin + 2] for image in clip.image]
        rows = Projection().encode_frames(batch).reshape(2, 4, -1).mean(axis=1, dtype=np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(table.embeddings[begin : begin + 2], rows, rtol=1e-6)
    # The files say how many frames there are.
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["frames_per_clip"] == 4
    columns = parquet.read_table(folder / "clips.parquet").column_names
    assert columns == ["clip", "time", "time_2", "time_3", "time_4", "caption", "frame_hash"]


def test_one_frame_leaves_the_files_as_they_were(clean: Tree) -> None:
    for vid in CLIPS:
        assert b"frames_per_clip" not in clean[f"{vid}/manifest.json"]
        assert b"time_2" not in clean[f"{vid}/clips.parquet"]


def test_a_search_reads_the_frames_again(numbered: Path, tmp_path: Path) -> None:
    (folder,) = index_videos([numbered], tmp_path, stand_ins(), **FOUR)
    clips, loaded = list(read_frames(numbered, **FOUR)), VideoIndex.load(folder)
    frames = frame_set(loaded).take([4, 0])
    assert (
        frames.frames_per_clip == 4
        and frames.hashes == FrameSet.of([clips[4].image, clips[0].image]).hashes
    )
    for image, clip in zip(frames.load([0, 1]), (4, 0), strict=True):
        np.testing.assert_array_equal(image, clips[clip].image)
    # A part of the index, as a long video is searched.
    part = loaded.part(2, 5)
    assert part.frames is not None and part.frames.times_of(0) == (clips[2].time, *clips[2].later)
    (image,) = frame_set(part).load([1])
    np.testing.assert_array_equal(image, clips[3].image)
    # Saved again, the files are the same.
    loaded.save(tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(folder)


@pytest.mark.parametrize("after", [2, 4])
def test_an_interrupted_run_is_resumed(folder: Path, tmp_path: Path, after: int) -> None:
    models: dict[str, Any] = {"clip_seconds": 2.0, "frames_per_clip": 2}
    index(folder, tmp_path / "clean", **models)

    def stop(done: int, total: int, vid: str) -> None:
        if done >= after:
            raise Killed

    with pytest.raises(Killed):
        index(folder, tmp_path / "out", progress=stop, **models)
    index(folder, tmp_path / "out", **models)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")
    # The unfinished work of another number of frames is of no use.
    with pytest.raises(Killed):
        index(folder, tmp_path / "other", progress=stop, frames_per_clip=4)
    index(folder, tmp_path / "other", **models)
    assert tree(tmp_path / "other") == tree(tmp_path / "clean")


def test_another_number_of_frames_is_indexed_again(folder: Path, tmp_path: Path) -> None:
    index(folder, tmp_path, frames_per_clip=2)
    before = tree(tmp_path)
    index(folder, tmp_path, UNUSED, frames_per_clip=2)
    assert tree(tmp_path) == before
    index(folder, tmp_path, frames_per_clip=4)
    assert VideoIndex.load(tmp_path / "yard").frames_per_clip == 4
    index(folder, tmp_path)
    assert VideoIndex.load(tmp_path / "yard").frames_per_clip == 1


def test_captions_that_are_added_keep_the_embeddings(folder: Path, tmp_path: Path) -> None:
    alone = IndexModels(None, None, Projection(), {"clip": FINGERPRINTS["clip"]})
    index(folder, tmp_path, alone, frames_per_clip=2)
    embedded = {vid: VideoIndex.load(tmp_path / vid).frames for vid in CLIPS}
    captioned = stand_ins(frame_encoder=UnusedModel())
    index(folder, tmp_path, captioned, frames_per_clip=2)
    for vid, before in embedded.items():
        after = VideoIndex.load(tmp_path / vid)
        assert after.video.captions is not None and after.frames is not None and before is not None
        np.testing.assert_array_equal(after.frames.embeddings, before.embeddings)
    # Those of other clips are not taken.
    shutil.rmtree(tmp_path)
    index(folder, tmp_path, alone)
    with pytest.raises(AssertionError, match="the model ran"):
        index(folder, tmp_path, captioned, frames_per_clip=2)


@pytest.mark.parametrize("number", [3, 0, True, "2", 2.0, 4])
def test_a_manifest_that_does_not_fit_is_refused(
    numbered: Path, tmp_path: Path, number: Any
) -> None:
    (folder,) = index_videos([numbered], tmp_path, stand_ins(), frames_per_clip=2)
    manifest = folder / "manifest.json"
    record = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps(record | {"frames_per_clip": number}))
    with pytest.raises(GranAlignError, match="index the video again") as error:
        VideoIndex.load(folder)
    assert "\n" not in str(error.value)
    # It is made anew by the next run.
    index_videos([numbered], tmp_path, stand_ins(), frames_per_clip=2)
    assert VideoIndex.load(folder).frames_per_clip == 2


def test_a_wrong_number_ends_the_run_before_it_begins(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="frames_per_clip: got 3, expected one of: 1, 2, 4, 6"):
        index_videos(videos_in(folder), tmp_path / "out", stand_ins(), frames_per_clip=3)
    assert not (tmp_path / "out").exists()


def test_sets_of_clips() -> None:
    rng = np.random.default_rng(2)
    images = list(rng.integers(0, 256, (3, 4, 6, 8, 3), np.uint8))
    clips = FrameSet.of(images, frame_seconds=0.5)
    assert clips.form == (4, 0.5) and len(clips) == 3
    assert clips.take([2, 0]).form == (4, 0.5)
    joined = FrameSet.joined([clips, clips.take([1])])
    assert joined.form == (4, 0.5) and joined.hashes[3] == clips.hashes[1]
    np.testing.assert_array_equal(joined.load([3])[0], images[1])
    # A clip of one picture is not the picture, and the order of frames counts.
    assert frame_hash(images[0][:1]) != frame_hash(images[0][0])
    assert frame_hash(images[0][::-1]) != frame_hash(images[0])
    with pytest.raises(GranAlignError, match=r"got clips of \[1, 4\] frames; make a set of each"):
        FrameSet.of([images[0], images[0][0]])
    with pytest.raises(GranAlignError, match="got float64"):
        FrameSet.of([images[0] / 255])
    with pytest.raises(ValueError, match="clips of the forms"):
        FrameSet.joined([clips, FrameSet.of(images)])
    assert FrameSet.joined([]).form == (1, 0.0)
