"""Videos to index folders: what is in them, what is done again, and what a kill leaves."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.index_worker import (
    ASLEEP,
    CLIPS,
    FINGERPRINTS,
    ROWS,
    ColourCaptioner,
    Giving,
    Projection,
    Tree,
    captioned,
    colour,
    index,
    models,
    tree,
    videos_in,
    write_video,
    write_videos,
)
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.index import CaptionedVideo, VideoIndex, builder
from granalign_fast.index import (
    video_files as sources,
)
from granalign_fast.index.builder import index_videos
from granalign_fast.index.work_folder import only_one
from granalign_fast.types import FrameSet, frame_hash
from granalign_fast.video.frames import DamagedVideoWarning, Frame, probe, read_frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker's videos."""
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder)
    return folder


@pytest.fixture(scope="module")
def clean(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("clean")
    index(folder, out)
    return tree(out)


def test_indexes_are_what_the_models_say_of_each_batch(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    folders = index(folder, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert folders == [tmp_path / "out" / name for name in CLIPS]

    stream = [(path.stem, frame) for path in videos_in(folder) for frame in read_frames(path)]
    assert [vid for vid, _ in stream] == [vid for vid, clips in CLIPS.items() for _ in range(clips)]
    captions, seen = [], []
    for start in range(0, len(stream), ROWS):
        images = [frame.image for _, frame in stream[start : start + ROWS]]
        captions += ColourCaptioner().agnostic(FrameSet.of(images))
        seen += list(Projection().encode_frames(images))
    embedded = models().encoder.encode(captions)
    for path, out in zip(videos_in(folder), folders, strict=True):
        own = [number for number, (vid, _) in enumerate(stream) if vid == path.stem]
        frames = [stream[number][1] for number in own]
        found = VideoIndex.load(out)
        assert found.video == CaptionedVideo(
            path.stem, tuple(captions[n] for n in own), 2.0, probe(path).duration
        )
        assert found.models == FINGERPRINTS
        np.testing.assert_array_equal(found.embeddings, embedded[own])
        assert found.frames is not None and found.frames.embeddings is not None
        np.testing.assert_array_equal(found.frames.embeddings, np.stack(seen)[own])
        assert found.frames.times.tolist() == [frame.time for frame in frames]
        assert found.frames.hashes == tuple(frame_hash(frame.image) for frame in frames)
        assert found.frames.path == path
        assert found.frames.source is not None
        assert found.frames.source.bytes == path.stat().st_size
    assert calls == [
        (4, 13, "street"),
        (8, 13, "kitchen"),
        (12, 13, "kitchen"),
        (13, 13, "kitchen"),
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 13, 100])
def test_every_size_of_batch(folder: Path, tmp_path: Path, rows: int) -> None:
    captioner = ColourCaptioner()
    found = index_videos(
        videos_in(folder),
        tmp_path,
        models(captioner=captioner, frame_encoder=None),
        rows=rows,
    )
    total = sum(CLIPS.values())
    assert [len(batch) for batch in captioner.batches] == [
        min(rows, total - start) for start in range(0, total, rows)
    ]
    for path, out in zip(videos_in(folder), found, strict=True):
        loaded = VideoIndex.load(out)
        assert loaded.frames is not None and loaded.frames.embeddings is None
        names = [caption.split()[1] for caption in loaded.video.captions]
        assert names == [colour(frame.image) for frame in read_frames(path)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(CLIPS)


def test_a_second_run_does_nothing(
    folder: Path, tmp_path: Path, clean: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(folder, tmp_path)

    def stamps() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_ino, p.stat().st_ctime_ns) for p in tmp_path.rglob("*")}

    before = stamps()
    monkeypatch.setattr(builder, "read_frames", lambda *_, **__: pytest.fail("decoded again"))
    assert index(folder, tmp_path, ASLEEP) == [tmp_path / name for name in CLIPS]
    # Another request for some of them is as idle.
    index_videos(videos_in(folder)[1:], tmp_path, ASLEEP, rows=1)
    assert stamps() == before
    assert tree(tmp_path) == clean


def test_what_has_changed_is_indexed_again(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(folder, videos)
    index(videos, out)
    write_video(videos / "yard.mp4", 3, 99)
    assert captioned(videos, out) == {"yard"}
    assert len(VideoIndex.load(out / "yard").video.captions) == 3
    (videos / "street.mp4").touch()
    assert captioned(videos, out) == set()
    assert captioned(videos, out, FINGERPRINTS | {"vlm": "better colours"}) == set(CLIPS)
    assert VideoIndex.load(out / "street").models["vlm"] == "better colours"
    assert captioned(videos, out) == set(CLIPS)
    assert captioned(videos, out, clip_seconds=4.0) == set(CLIPS)
    assert VideoIndex.load(out / "kitchen").video.clip_seconds == 4
    # A torn index is as good as none.
    (out / "kitchen" / "embeddings.safetensors").write_bytes(b"torn")
    assert captioned(videos, out, clip_seconds=4.0) == {"kitchen"}
    assert sorted(path.name for path in out.iterdir()) == sorted(CLIPS)


def test_a_file_that_has_moved_is_found(folder: Path, tmp_path: Path, clean: Tree) -> None:
    index(folder, tmp_path / "out")
    shutil.copytree(folder, tmp_path / "moved")
    index(tmp_path / "moved", tmp_path / "out", ASLEEP)
    found = VideoIndex.load(tmp_path / "out" / "yard").frames
    assert found is not None and found.path == tmp_path / "moved" / "yard.mp4"
    index(folder, tmp_path / "out", ASLEEP)
    assert tree(tmp_path / "out") == clean


def test_a_damaged_video_is_indexed_up_to_the_damage(tmp_path: Path) -> None:
    times = constant(2, 17.5)
    noise = np.random.default_rng(1).integers(0, 256, (len(times), 48, 64, 3), np.uint8)
    render(tmp_path / "whole.mkv", times, gop=4, drawn=list(noise))
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    with pytest.warns(DamagedVideoWarning, match=r"cut\.mkv"):
        frames = list(read_frames(tmp_path / "cut.mkv"))
    assert 0 < len(frames) < 9
    videos = [tmp_path / "cut.mkv", tmp_path / "whole.mkv"]
    with pytest.warns(DamagedVideoWarning, match=r"cut\.mkv"):
        cut, whole = index_videos(videos, tmp_path / "out", models(), rows=ROWS)
    loaded = VideoIndex.load(cut)
    assert len(loaded.video.captions) == len(frames)
    assert loaded.frames is not None
    assert loaded.frames.times.tolist() == [frame.time for frame in frames]
    assert len(VideoIndex.load(whole).video.captions) == 9


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows: got 0"),
        ({"rows": True}, "rows: got True"),
        ({"clip_seconds": 0}, "clip_seconds: got 0"),
    ],
)
def test_settings_out_of_range_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        index_videos(videos_in(folder), tmp_path / "out", models(), **{"rows": ROWS} | change)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        (Giving(lambda _: ["one"]), r"street\.mp4: clip 0 .* got 1 captions, expected 4"),
        (Giving(lambda _: ["\ud83d"] * 4), r"got '\\ud83d', expected a Unicode text"),
        (Giving(raising(GranAlignError("full"))), r"street\.mp4: clip 0 .* full"),
    ],
)
def test_wrong_captions_are_refused(
    folder: Path, tmp_path: Path, captioner: Giving, message: str
) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        index(folder, tmp_path / "out", models(captioner=captioner))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_fingerprints_must_be_strings() -> None:
    with pytest.raises(GranAlignError, match="fingerprints: got 'vlm': None") as error:
        models(fingerprints={"vlm": None})
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_named(folder: Path, tmp_path: Path) -> None:
    missing = Giving(raising(MissingExtraError("captioning", "cuda")))
    with pytest.raises(MissingExtraError, match=r"\[cuda\]"):
        index(folder, tmp_path, models(captioner=missing))


@pytest.mark.parametrize("shape", [(3, 64), (4,), (4, 64, 1)])
def test_wrong_embeddings_are_refused(
    folder: Path, tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Projection, "encode_frames", lambda *_: np.zeros(shape, np.float32))
    with pytest.raises(GranAlignError, match="frame encoder: got float32"):
        index(folder, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "videos: got none"),
        ("street.mp4", r"expected a list; pass one as \[video\]"),
        (["street.mp4", "nothing.mp4"], r"nothing\.mp4"),
        (["street.mp4", "text.mp4"], r"text\.mp4"),
        (["street.mp4", "other/street.mkv"], "got the name 'street' twice"),
        (["street.mp4", "street.mp4"], "got the name 'street' twice"),
        ([".hidden.mp4"], "got '.hidden', expected"),
        (["new\nline.mp4"], r"got 'new\\nline', expected"),
    ],
)
def test_files_are_checked_before_any_work(
    folder: Path, tmp_path: Path, names: Any, message: str
) -> None:
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "text.mp4").write_text("no video")
    for name in (".hidden.mp4", "new\nline.mp4", "other/street.mkv"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "yard.mp4", tmp_path / "in" / name)
    videos = names if isinstance(names, str) else [tmp_path / "in" / name for name in names]
    with pytest.raises(GranAlignError, match=message):
        index_videos(videos, tmp_path / "out", ASLEEP)
    assert not (tmp_path / "out").exists()


def foreign(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "holiday.txt").write_text("not to be lost")


def given(out: Path) -> None:
    VideoIndex(CaptionedVideo("yard", ("a car",)), np.ones((1, 2), np.float32)).save(out)


@pytest.mark.parametrize(
    ("occupy", "message"),
    [
        (foreign, "expected the index of a video or nothing"),
        (lambda out: (out.parent.mkdir(), out.write_text("")), "expected the index of a video"),
        (given, "got an index of captions that were given"),
    ],
)
def test_what_is_not_ours_is_not_replaced(
    folder: Path, tmp_path: Path, occupy: Callable[[Path], object], message: str
) -> None:
    out = tmp_path / "out"
    occupy(out / "yard")
    before = tree(out)
    with pytest.raises(GranAlignError, match=message):
        index(folder, out, ASLEEP)
    assert tree(out) == before


def test_out_must_be_a_folder_that_nobody_else_indexes_into(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GranAlignError, match="file: cannot be a folder of indexes"):
        index(folder, tmp_path / "file", ASLEEP)
    with (
        only_one(tmp_path / "out"),
        pytest.raises(GranAlignError, match="another process is indexing"),
    ):
        index(folder, tmp_path / "out", ASLEEP)
    index(folder, tmp_path / "out")


def test_a_video_that_fails_later_costs_only_what_follows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, **settings: Any) -> Iterator[Frame]:
        for frame in read_frames(path, **settings):
            if path.stem == "kitchen" and frame.clip == 1:
                raise GranAlignError(f"{path}: the disk is gone")
            yield frame

    monkeypatch.setattr(builder, "read_frames", failing)
    with pytest.raises(GranAlignError, match=r"kitchen\.mp4: the disk is gone"):
        index(folder, tmp_path)
    for name in ("street", "yard"):
        assert len(VideoIndex.load(tmp_path / name).video.captions) == CLIPS[name]
    monkeypatch.undo()
    assert captioned(folder, tmp_path) >= {"kitchen"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(CLIPS)


def test_a_file_that_changes_meanwhile_is_noticed(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(folder, videos)
    write_video(tmp_path / "yard.mp4", 2, 77)

    def exchange(done: int, total: int, vid: str) -> None:
        if done == ROWS:
            shutil.copy(tmp_path / "yard.mp4", videos)

    with pytest.raises(GranAlignError, match=r"yard\.mp4: changed while it was being indexed"):
        index(videos, out, progress=exchange)
    assert captioned(videos, out) == {"yard", "kitchen"}


def test_a_file_that_is_replaced_once_it_is_probed_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos")
    write_video(new := tmp_path / "yard.mp4", 2, 77)
    monkeypatch.setattr(
        sources, "probe", lambda *a, **k: (probe(*a, **k), shutil.copy(new, videos))[0]
    )
    with pytest.raises(GranAlignError, match=r"yard\.mp4: changed while it was being indexed"):
        index(videos, tmp_path / "out")


def test_a_file_read_while_it_is_written_anew_is_not_called_damaged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)

    def half_written(path: Path, **settings: Any) -> Iterator[Frame]:
        if path.stem == "kitchen":
            path.write_bytes(path.read_bytes()[:100])
        return read_frames(path, **settings)

    monkeypatch.setattr(builder, "read_frames", half_written)
    with pytest.raises(GranAlignError, match=r"kitchen\.mp4: changed while it was being indexed"):
        index(videos, tmp_path / "out")


def test_the_next_batch_is_decoded_while_the_models_work(
    folder: Path, tmp_path: Path, clean: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = threading.Event()

    def watched(path: Path, **settings: Any) -> Iterator[Frame]:
        for frame in read_frames(path, **settings):
            if path.stem == "kitchen":  # the first batch has none of it
                decoded.set()
            yield frame

    class Waiting(ColourCaptioner):
        def agnostic(self, frames: FrameSet) -> list[str]:
            assert decoded.wait(30)
            return super().agnostic(frames)

    monkeypatch.setattr(builder, "read_frames", watched)
    index(folder, tmp_path, models(captioner=Waiting()))
    assert tree(tmp_path) == clean
