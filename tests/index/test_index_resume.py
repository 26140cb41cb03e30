"""Interrupted indexing: the next run resumes it, and the result has the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.index_worker import (
    CLIPS,
    FINGERPRINTS,
    ROWS,
    UNUSED,
    AnsweringCaptioner,
    ColourCaptioner,
    Killed,
    Tree,
    dying,
    index,
    stand_ins,
    start,
    tree,
    videos_in,
)
from helpers.videos import constant, render

from granalign_fast.index import VideoIndex, builder
from granalign_fast.index.builder import index_videos
from granalign_fast.index.known_files import FILE_NAME
from granalign_fast.index.work_folder import ClipRows, WorkFolder
from granalign_fast.types import FrameSet
from granalign_fast.video.frames import Frame, read_frames

KILLS = int(os.environ.get("GRANALIGN_KILLS", "6"))
"""Number of times that the worker is killed at a random moment."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("of a model")])
def test_an_interrupted_run_is_resumed_not_restarted(
    folder: Path, tmp_path: Path, clean: Tree, error: BaseException
) -> None:
    """After an interruption behind any batch, frames on disk are not captioned again."""
    for batches in range(1, 4):
        out = tmp_path / str(batches)
        captioner = ColourCaptioner()

        def stop(
            frames: FrameSet, *, first: ColourCaptioner = captioner, after: int = batches
        ) -> Any:
            if len(first.batches) == after:
                raise error
            return first.agnostic(frames)

        with pytest.raises(type(error)):
            index(folder, out, stand_ins(captioner=AnsweringCaptioner(stop)))
        rest = ColourCaptioner()
        index(folder, out, stand_ins(captioner=rest))
        assert len(captioner.batches) == batches and len(rest.batches) == 4 - batches
        assert tree(out) == clean


def test_models_are_not_run_when_all_rows_are_on_disk(
    folder: Path, tmp_path: Path, clean: Tree
) -> None:
    def stop(done: int, total: int, vid: str) -> None:
        if done == total:
            raise Killed

    with pytest.raises(Killed):
        index(folder, tmp_path, progress=stop)
    index(folder, tmp_path, UNUSED)
    assert tree(tmp_path) == clean


def test_another_request_discards_the_unfinished_work(
    folder: Path, tmp_path: Path, clean: Tree
) -> None:
    with dying(22), pytest.raises(Killed):
        index(folder, tmp_path)
    assert (tmp_path / ".indexing" / "parts").exists()
    captioner = ColourCaptioner()
    others = FINGERPRINTS | {"vlm": "others"}
    index(folder, tmp_path, stand_ins(captioner=captioner, fingerprints=others))
    assert len(captioner.batches) == 4
    with dying(22), pytest.raises(Killed):
        index(folder, tmp_path)
    index_videos(videos_in(folder)[:1], tmp_path, stand_ins(), rows=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*CLIPS, FILE_NAME])


def damage_parts(out: Path) -> None:
    for path in (out / ".indexing" / "parts").rglob("part-*"):
        path.write_bytes(path.read_bytes()[:-1])


def lose_job(out: Path) -> None:
    (out / ".indexing" / "job.json").write_text("{")


def lose_index(out: Path) -> None:
    shutil.rmtree(out / "street")


@pytest.mark.parametrize("damage", [damage_parts, lose_job, lose_index])
def test_damaged_unfinished_work_is_repaired(
    folder: Path, tmp_path: Path, clean: Tree, damage: Callable[[Path], None]
) -> None:
    def stop(done: int, total: int, vid: str) -> None:
        if done == 12:
            raise Killed

    with pytest.raises(Killed):
        index(folder, tmp_path, progress=stop)
    damage(tmp_path)
    index(folder, tmp_path)
    files = tree(tmp_path)
    # Without the job file, a finished video no longer shares batches with the others.
    names = ("street", "yard") if damage is lose_job else CLIPS
    for name in (f"{vid}/embeddings.safetensors" for vid in names):
        assert files[name] == clean[name]
    assert files.keys() == clean.keys()


def assert_readable(out: Path, *, replacing: bool) -> None:
    """Assert that every index folder is complete, or has an old one that replaces it."""
    for name in CLIPS:
        if (out / name).exists():
            VideoIndex.load(out / name)
        elif replacing:
            assert VideoIndex.load(out / ".indexing" / "old" / name)
            assert VideoIndex.load(out / ".indexing" / "draft" / name)


@pytest.mark.once
@pytest.mark.parametrize("replacing", [False, True])
def test_dying_at_every_change_of_the_file_system(
    folder: Path, tmp_path: Path, clean: Tree, replacing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and only a power cut needs it
    earlier = tmp_path / "earlier"
    if replacing:
        index(folder, earlier, stand_ins(fingerprints=FINGERPRINTS | {"vlm": "earlier"}))
    else:
        earlier.mkdir()
    with dying(sys.maxsize) as changes:
        shutil.copytree(earlier, tmp_path / "whole")
        changes.clear()
        index(folder, tmp_path / "whole")
    assert tree(tmp_path / "whole") == clean
    # Files that a later run reads are renamed when complete: the list of known files unless it is
    # the same as before, one job, six parts, three indexes of three files.
    lists = 0 if replacing else 1
    written = sum(change.startswith("replace ") for change in changes)
    assert written == lists + 1 + 6 + 3 * 3
    for at in range(len(changes)):
        out = tmp_path / str(at)
        shutil.copytree(earlier, out)
        captioner = ColourCaptioner()
        # Where an old index is replaced, the recovery itself is interrupted, at another change.
        for moment in (at, at * 7 % 23) if replacing else (at,):
            with suppress(Killed), dying(moment):
                index(folder, out, stand_ins(captioner=captioner))
            assert_readable(out, replacing=replacing)
        index(folder, out, stand_ins(captioner=captioner))
        assert tree(out) == clean, at
        # Each death costs the current batch and no other.
        assert len(captioner.batches) <= 4 + 2, at
        shutil.rmtree(out)


@pytest.mark.once
def test_killed_at_random_moments(folder: Path, tmp_path: Path, clean: Tree) -> None:
    worker = start(folder, tmp_path / "whole")
    begin = time.perf_counter()
    assert worker.wait() == 0
    seconds = time.perf_counter() - begin
    assert tree(tmp_path / "whole") == clean
    chance = random.Random(os.urandom(8))
    kills, runs = 0, count()
    out = tmp_path / "0"
    while kills < KILLS:
        worker = start(folder, out)
        try:
            assert worker.wait(chance.uniform(0, seconds)) == 0
        except subprocess.TimeoutExpired:
            worker.kill()
            kills += worker.wait() < 0
            assert_readable(out, replacing=False) if out.exists() else None
        else:
            assert tree(out) == clean
            out = tmp_path / str(next(runs))
    assert start(folder, out).wait() == 0
    assert tree(out) == clean


@pytest.mark.parametrize("at", [7, 30])
def test_killed_at_a_change_of_the_file_system(
    folder: Path, tmp_path: Path, clean: Tree, at: int
) -> None:
    assert start(folder, tmp_path, str(at)).wait() < 0
    assert start(folder, tmp_path).wait() == 0
    assert tree(tmp_path) == clean


@pytest.mark.filterwarnings("ignore::granalign_fast.video.frames.DamagedVideoWarning")
def test_frames_of_a_damaged_stretch_are_the_same_after_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The frames that FFmpeg decodes from a damaged stretch can depend on its threads' timing.
    monkeypatch.setattr(builder, "read_frames", partial(read_frames, threads=1))
    # With this damage, decoding from the middle gives a different frame for some clip.
    rng = np.random.default_rng(29)
    times = constant(2, 39.5)
    gop = int(rng.choice([3, 8, 15, 40]))
    noise = rng.integers(0, 256, (len(times), 48, 64, 3), np.uint8)
    suffix, bframes = rng.choice(["mkv", "mp4", "ts"]), int(rng.choice([0, 2]))
    video = render(tmp_path / f"video.{suffix}", times, gop=gop, bframes=bframes, drawn=list(noise))
    content = np.fromfile(video, np.uint8)
    for _ in range(rng.integers(1, 6)):
        begin = int(rng.integers(len(content) // 10, len(content) * 9 // 10))
        content[begin : begin + 40] = rng.integers(0, 256, 40, np.uint8)
    content.tofile(video)
    index_videos([video], tmp_path / "clean", stand_ins(), rows=2)
    batches = -(-len(VideoIndex.load(tmp_path / "clean" / "video").video.captions) // 2)
    for after in range(1, batches):
        out = tmp_path / str(after)

        def stop(done: int, total: int, vid: str, *, enough: int = 2 * after) -> None:
            if done >= enough:
                raise Killed

        with pytest.raises(Killed):
            index_videos([video], out, stand_ins(), rows=2, progress=stop)
        index_videos([video], out, stand_ins(), rows=2)
        assert tree(out) == tree(tmp_path / "clean")


def test_rows_are_read_back_up_to_the_first_gap(tmp_path: Path) -> None:
    def stretch(first: int, clips: int) -> ClipRows:
        values = np.arange(first, first + clips, dtype=np.float64)
        texts = tuple(f"caption {clip} \ud800" for clip in range(first, first + clips))
        return ClipRows(
            first,
            values,
            texts,
            texts,
            np.tile(values[:, None], 3).astype("f2"),
            None,
            values > first,
        )

    work = WorkFolder(tmp_path)
    for first, clips in ((0, 3), (3, 1), (6, 2)):
        work.write_rows("vid", stretch(first, clips))
    parts = work.read_rows("vid")
    assert [(part.first, part.end) for part in parts] == [(0, 3), (3, 4)]
    for part, expected in zip(parts, (stretch(0, 3), stretch(3, 1)), strict=True):
        assert (part.captions, part.hashes) == (expected.captions, expected.hashes)
        np.testing.assert_array_equal(part.times, expected.times)
        np.testing.assert_array_equal(part.embeddings, expected.embeddings)
        assert part.embeddings.dtype == np.float16 and part.frame_embeddings is None
    work.write_rows("vid", stretch(4, 2))
    assert [part.first for part in work.read_rows("vid")] == [0, 3, 4, 6]


def test_only_two_batches_of_frames_are_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def endless(path: Path, **settings: Any) -> Iterator[Frame]:
        nonlocal alive, most
        for clip in range(400):
            image = np.full((4, 4, 3), clip % 251, np.uint8)
            weakref.finalize(image, gone)
            alive += 1
            most = max(most, alive)
            yield Frame(clip, 2.0 * clip, image)

    monkeypatch.setattr(builder, "read_frames", endless)
    index_videos(videos_in(folder)[:1], tmp_path, stand_ins(), rows=ROWS)
    assert len(VideoIndex.load(tmp_path / "street").video.captions) == 400
    assert most <= 3 * ROWS  # the third is the batch that is being freed
