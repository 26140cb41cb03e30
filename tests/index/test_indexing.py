"""Index video files: the content of the folders, what is indexed again, and what is refused."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
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
    Projection,
    Tree,
    captioned,
    colour,
    index,
    stand_ins,
    tree,
    videos_in,
    write_video,
)
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.index import CaptionedVideo, VideoIndex, builder, video_files
from granalign_fast.index.builder import index_videos
from granalign_fast.index.known_files import FILE_NAME
from granalign_fast.index.work_folder import lock_folder
from granalign_fast.types import FrameSet, frame_hash
from granalign_fast.video.frames import DamagedVideoWarning, Frame, probe, read_frames


def test_an_index_holds_the_results_of_the_models_for_each_batch(
    folder: Path, tmp_path: Path
) -> None:
    calls: list[tuple[int, int, str]] = []
    folders = index(folder, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert folders == [tmp_path / "out" / name for name in CLIPS]

    stream = [(path.stem, frame) for path in videos_in(folder) for frame in read_frames(path)]
    assert [vid for vid, _ in stream] == [vid for vid, clips in CLIPS.items() for _ in range(clips)]
    captions, frame_rows = [], []
    for start in range(0, len(stream), ROWS):
        images = [frame.image for _, frame in stream[start : start + ROWS]]
        captions += ColourCaptioner().agnostic(FrameSet.of(images))
        frame_rows += list(Projection().encode_frames(images))
    embeddings = stand_ins().encoder.encode(captions)
    for path, out in zip(videos_in(folder), folders, strict=True):
        numbers = [number for number, (vid, _) in enumerate(stream) if vid == path.stem]
        frames = [stream[number][1] for number in numbers]
        loaded = VideoIndex.load(out)
        assert loaded.video == CaptionedVideo(
            path.stem, tuple(captions[n] for n in numbers), 2.0, probe(path).duration
        )
        assert loaded.models == FINGERPRINTS
        np.testing.assert_array_equal(loaded.embeddings, embeddings[numbers])
        assert loaded.frames is not None and loaded.frames.embeddings is not None
        np.testing.assert_array_equal(loaded.frames.embeddings, np.stack(frame_rows)[numbers])
        assert loaded.frames.times.tolist() == [frame.time for frame in frames]
        assert loaded.frames.hashes == tuple(frame_hash(frame.image) for frame in frames)
        assert loaded.frames.path == path
        assert loaded.frames.source is not None
        assert loaded.frames.source.bytes == path.stat().st_size
    assert calls == [
        (4, 13, "street"),
        (8, 13, "kitchen"),
        (12, 13, "kitchen"),
        (13, 13, "kitchen"),
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 13, 100])
def test_any_batch_size(folder: Path, tmp_path: Path, rows: int) -> None:
    captioner = ColourCaptioner()
    folders = index_videos(
        videos_in(folder),
        tmp_path,
        stand_ins(captioner=captioner, frame_encoder=None),
        rows=rows,
    )
    total = sum(CLIPS.values())
    assert [len(batch) for batch in captioner.batches] == [
        min(rows, total - start) for start in range(0, total, rows)
    ]
    for path, out in zip(videos_in(folder), folders, strict=True):
        loaded = VideoIndex.load(out)
        assert loaded.frames is not None and loaded.frames.embeddings is None
        names = [caption.split()[1] for caption in loaded.video.captions]
        assert names == [colour(frame.image) for frame in read_frames(path)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*CLIPS, FILE_NAME])


def test_a_second_run_does_nothing(
    folder: Path, tmp_path: Path, clean: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(folder, tmp_path)

    def stamps() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_ino, p.stat().st_ctime_ns) for p in tmp_path.rglob("*")}

    before = stamps()
    monkeypatch.setattr(builder, "read_frames", lambda *_, **__: pytest.fail("decoded again"))
    assert index(folder, tmp_path, UNUSED) == [tmp_path / name for name in CLIPS]
    # A request for some of the videos, with another batch size, does nothing either.
    index_videos(videos_in(folder)[1:], tmp_path, UNUSED, rows=1)
    assert stamps() == before
    assert tree(tmp_path) == clean


def test_changed_videos_and_settings_are_indexed_again(folder: Path, tmp_path: Path) -> None:
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
    # A damaged index is replaced.
    (out / "kitchen" / "embeddings.safetensors").write_bytes(b"torn")
    assert captioned(videos, out, clip_seconds=4.0) == {"kitchen"}
    assert sorted(path.name for path in out.iterdir()) == sorted([*CLIPS, FILE_NAME])


def test_the_path_of_a_moved_file_is_updated(folder: Path, tmp_path: Path, clean: Tree) -> None:
    index(folder, tmp_path / "out")
    shutil.copytree(folder, tmp_path / "moved")
    index(tmp_path / "moved", tmp_path / "out", UNUSED)
    frames = VideoIndex.load(tmp_path / "out" / "yard").frames
    assert frames is not None and frames.path == tmp_path / "moved" / "yard.mp4"
    index(folder, tmp_path / "out", UNUSED)
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
        cut, whole = index_videos(videos, tmp_path / "out", stand_ins(), rows=ROWS)
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
        index_videos(videos_in(folder), tmp_path / "out", stand_ins(), **{"rows": ROWS} | change)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        (
            AnsweringCaptioner(lambda _: ["one"]),
            r"street\.mp4: clip 0 .* got 1 captions, expected 4",
        ),
        (AnsweringCaptioner(lambda _: ["\ud83d"] * 4), r"got '\\ud83d', expected a Unicode text"),
        (AnsweringCaptioner(raising(GranAlignError("full"))), r"street\.mp4: clip 0 .* full"),
    ],
)
def test_wrong_captions_are_refused(
    folder: Path, tmp_path: Path, captioner: AnsweringCaptioner, message: str
) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        index(folder, tmp_path / "out", stand_ins(captioner=captioner))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_fingerprints_must_be_strings() -> None:
    with pytest.raises(GranAlignError, match="fingerprints: got 'vlm': None") as error:
        stand_ins(fingerprints={"vlm": None})
    assert "\n" not in str(error.value)


def test_a_missing_extra_is_named(folder: Path, tmp_path: Path) -> None:
    missing = AnsweringCaptioner(raising(MissingExtraError("captioning", "cuda")))
    with pytest.raises(MissingExtraError, match=r"\[cuda\]"):
        index(folder, tmp_path, stand_ins(captioner=missing))


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
        (["street.mp4", "null\0.mp4"], "null"),
    ],
)
def test_files_are_checked_before_any_work(
    folder: Path, tmp_path: Path, names: Any, message: str
) -> None:
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "text.mp4").write_text("no video")
    videos = names if isinstance(names, str) else [tmp_path / "in" / name for name in names]
    with pytest.raises(GranAlignError, match=message):
        index_videos(videos, tmp_path / "out", UNUSED)
    assert not (tmp_path / "out").exists()


def foreign(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "holiday.txt").write_text("precious")


def captions_only(out: Path) -> None:
    VideoIndex(CaptionedVideo("yard", ("a car",)), np.ones((1, 2), np.float32)).save(out)


@pytest.mark.parametrize(
    ("occupy", "message"),
    [
        (foreign, "expected the index of a video or nothing"),
        (lambda out: (out.parent.mkdir(), out.write_text("")), "expected the index of a video"),
        (captions_only, "got an index of captions without a video file"),
    ],
)
def test_a_folder_that_is_no_video_index_is_not_replaced(
    folder: Path, tmp_path: Path, occupy: Callable[[Path], object], message: str
) -> None:
    out = tmp_path / "out"
    occupy(out / "yard")
    before = tree(out)
    with pytest.raises(GranAlignError, match=message):
        index(folder, out, UNUSED)
    assert tree(out) == before


def test_out_must_be_a_folder_that_no_other_process_indexes_into(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GranAlignError, match="file: cannot be a folder of indexes"):
        index(folder, tmp_path / "file", UNUSED)
    with (
        lock_folder(tmp_path / "out"),
        pytest.raises(GranAlignError, match="another process is indexing"),
    ):
        index(folder, tmp_path / "out", UNUSED)
    index(folder, tmp_path / "out")


def test_a_video_that_fails_does_not_cost_the_videos_before_it(
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
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*CLIPS, FILE_NAME])


# Until the exchange is complete, the file looks damaged.
@pytest.mark.filterwarnings("ignore::granalign_fast.video.container.DamagedVideoWarning")
def test_a_file_that_changes_during_the_run_is_noticed(folder: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(folder, videos)
    write_video(tmp_path / "yard.mp4", 2, 77)

    def exchange(done: int, total: int, vid: str) -> None:
        if done == ROWS:
            shutil.copy(tmp_path / "yard.mp4", videos)

    with pytest.raises(GranAlignError, match=r"yard\.mp4: changed while it was being indexed"):
        index(videos, out, progress=exchange)
    assert captioned(videos, out) == {"yard", "kitchen"}


# Until the exchange is complete, the file looks damaged.
@pytest.mark.filterwarnings("ignore::granalign_fast.video.container.DamagedVideoWarning")
def test_a_file_that_is_replaced_after_probing_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos")
    write_video(new := tmp_path / "yard.mp4", 2, 77)
    monkeypatch.setattr(
        video_files, "probe", lambda *a, **k: (probe(*a, **k), shutil.copy(new, videos))[0]
    )
    with pytest.raises(GranAlignError, match=r"yard\.mp4: changed while it was being indexed"):
        index(videos, tmp_path / "out")


def test_a_file_that_is_being_rewritten_is_not_reported_as_damaged(
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


def test_the_next_batch_is_decoded_while_the_models_run(
    folder: Path, tmp_path: Path, clean: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = threading.Event()

    def watched(path: Path, **settings: Any) -> Iterator[Frame]:
        for frame in read_frames(path, **settings):
            if path.stem == "kitchen":  # its frames begin in the second batch
                decoded.set()
            yield frame

    class Waiting(ColourCaptioner):
        def agnostic(self, frames: FrameSet) -> list[str]:
            assert decoded.wait(30)
            return super().agnostic(frames)

    monkeypatch.setattr(builder, "read_frames", watched)
    index(folder, tmp_path, stand_ins(captioner=Waiting()))
    assert tree(tmp_path) == clean
