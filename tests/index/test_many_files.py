"""Folders of videos: which files are taken, and what one bad file among many costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.ffmpeg import ffmpeg
from helpers.index_worker import (
    CLIPS,
    ROWS,
    UNUSED,
    ColourCaptioner,
    Killed,
    captioned,
    dying,
    index,
    stand_ins,
    tree,
    write_video,
)

from granalign_fast import cli
from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.index import VideoIndex, builder, video_files
from granalign_fast.index.builder import index_videos
from granalign_fast.index.known_files import FILE_NAME
from granalign_fast.index.walk import VIDEO_SUFFIXES, find_videos
from granalign_fast.pipeline import MINIATURES
from granalign_fast.types import FrameSet
from granalign_fast.video.frames import Frame, read_frames

Failures = list[tuple[str, str]]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(files: list[Path], top: Path) -> list[str]:
    return [str(path.relative_to(top)) for path in files]


def test_a_walk_takes_files_with_the_suffix_of_a_video(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a.mkv", "deep/c.Mov", "deep/er/d.webm", "notes.txt", "mp4", "x.mp4.x")
    touch(tmp_path, ".hidden.mp4", "._b.MP4", ".trash/e.mp4", "deep/.f.mp4")
    found = find_videos([tmp_path])
    assert names(found, tmp_path) == ["a.mkv", "b.MP4", "deep/c.Mov", "deep/er/d.webm"]
    assert names(find_videos([tmp_path], recursive=False), tmp_path) == ["a.mkv", "b.MP4"]
    touch(tmp_path, *(f"all/video{suffix}" for suffix in VIDEO_SUFFIXES))
    assert len(find_videos([tmp_path / "all"])) == len(VIDEO_SUFFIXES)


def test_the_page_lists_every_suffix() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
    section = page.read_text(encoding="utf-8").split("## Suffixes of videos")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\.\w+)`", section)) == VIDEO_SUFFIXES


def test_patterns_choose_the_files_of_a_walk(tmp_path: Path) -> None:
    touch(tmp_path, "GX01.MP4", "gx02.mp4", "GX01.LRV", "cam1/GX03.MP4", "cam2/GX03.MP4", "a.dat")
    for patterns, expected in (
        (["gx*.mp4"], ["GX01.MP4", "cam1/GX03.MP4", "cam2/GX03.MP4", "gx02.mp4"]),
        (["cam1/*"], ["cam1/GX03.MP4"]),
        (["*.DAT", "gx02*"], ["a.dat", "gx02.mp4"]),
    ):
        assert names(find_videos([tmp_path], include=patterns), tmp_path) == expected


def test_named_files_are_taken_as_they_are_and_each_once(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden/.a.mp4", "b.txt", "c.mp4")
    given = [tmp_path / "b.txt", tmp_path / ".hidden", tmp_path / ".hidden/.a.mp4", tmp_path]
    errors: Failures = []
    found = find_videos(given, on_error=lambda path, error: errors.append((path.name, str(error))))
    assert names(found, tmp_path) == ["b.txt", ".hidden/.a.mp4", "c.mp4"]
    assert errors == [(".hidden", errors[0][1])] and "holds no file with the suffix" in errors[0][1]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4", "other/b.mp4")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "other" / "b.mp4")
    assert names(find_videos([tmp_path / "in"]), tmp_path / "in") == ["a.mp4", "link.mp4"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/a.mp4", "https://example.org/a.mp4: got a URL, expected a file; do"),
        ("s3://bucket/a.mp4", "got a URL"),
        ("rtsp://camera", "got a URL"),
        ("-", "-: got the standard input, expected a file; save the video"),
        ("/dev/null", "/dev/null: got a device or a socket, expected a regular file; save"),
        ("pipe", "pipe: got a pipe, expected a regular file; save"),
        ("empty", "empty: holds no file with the suffix of a video; name the files, or"),
    ],
)
def test_urls_pipes_and_empty_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GranAlignError) as error:
        find_videos([name])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if name != "empty":
        with pytest.raises(GranAlignError, match=r": got (a|the) "):
            index_videos([Path(name)], tmp_path / "out", UNUSED)


def test_files_of_such_names_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "-", "https:/example.org/a.mp4")
    assert names(find_videos(["-", "https://example.org/a.mp4"]), tmp_path) == [
        "-",
        "https:/example.org/a.mp4",
    ]


def bad_files(folder: Path) -> None:
    """Add a text, an interrupted download and a file with sound alone."""
    (folder / "notes.mp4").write_text("no video")
    shutil.copy(folder / "street.mp4", folder / "download.mp4")
    os.truncate(folder / "download.mp4", 1000)
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", folder / "aaa.mp4")


def test_bad_files_among_good_ones_cost_nothing_else(folder: Path, tmp_path: Path) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos")
    bad_files(videos)
    failures: list[Path] = []

    def fail(path: Path, error: GranAlignError) -> None:
        assert str(path) in str(error) and "\n" not in str(error)
        failures.append(path)

    folders = index_videos(find_videos([videos]), tmp_path / "out", stand_ins(), on_error=fail)
    assert failures == [videos / name for name in ("aaa.mp4", "download.mp4", "notes.mp4")]
    good = [videos / f"{name}.mp4" for name in sorted(CLIPS)]
    assert folders == [tmp_path / "out" / path.stem for path in good]
    index_videos(good, tmp_path / "alone", stand_ins())
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")
    with pytest.raises(GranAlignError, match=r"aaa\.mp4: no video in it, only audio"):
        index_videos(find_videos([videos]), tmp_path / "strict", UNUSED)
    assert not (tmp_path / "strict").exists()


def test_a_call_without_a_good_file_makes_no_folder(tmp_path: Path) -> None:
    failures: list[Path] = []
    missing = tmp_path / "missing.mp4"
    out = tmp_path / "out"
    assert index_videos([missing], out, UNUSED, on_error=lambda p, _: failures.append(p)) == []
    assert failures == [missing] and not out.exists()


def test_wrong_arguments_and_missing_packages_are_no_failures_of_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, error: GranAlignError) -> None:
        raise AssertionError(path)

    with pytest.raises(GranAlignError, match="clip_seconds: got 0"):
        index(folder, tmp_path / "out", UNUSED, clip_seconds=0, on_error=fail)
    with pytest.raises(GranAlignError, match="videos: got none"):
        index_videos([], tmp_path / "out", UNUSED, on_error=fail)

    def missing(*_: object, **__: object) -> Any:
        raise MissingExtraError("decoding", "cuda")

    monkeypatch.setattr(video_files, "probe", missing)
    with pytest.raises(MissingExtraError):
        index(folder, tmp_path / "out", UNUSED, on_error=fail)


def broken(name: str, clip: int) -> Callable[..., Iterator[Frame]]:
    """Return a `read_frames` that cannot decode a video from one of its clips on."""

    def failing(path: Path, **settings: Any) -> Iterator[Frame]:
        for frame in read_frames(path, **settings):
            if path.stem == name and frame.clip == clip:
                raise GranAlignError(f"{path}: the decoder gave up")
            yield frame

    return failing


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "clip"),
    [("street", 0), ("street", 4), ("yard", 0), ("yard", 1), ("kitchen", 1), ("kitchen", 5)],
)
def test_a_video_that_fails_in_the_middle_costs_only_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, clip: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and only a power cut needs it
    monkeypatch.setattr(builder, "read_frames", broken(name, clip))
    failures: Failures = []

    def fail(path: Path, error: GranAlignError) -> None:
        failures.append((path.stem, str(error)))

    captioner = ColourCaptioner()
    whole = tmp_path / "whole"
    with dying(sys.maxsize) as changes:
        folders = index(folder, whole, stand_ins(captioner=captioner), on_error=fail)
    others = [other for other in CLIPS if other != name]
    assert folders == [whole / other for other in others]
    assert failures == [(name, f"{folder / name}.mp4: the decoder gave up")]
    for other in others:
        assert len(VideoIndex.load(whole / other).video.captions) == CLIPS[other]
    # The frames of the others close up, so that only the last batch is short.
    assert all(len(batch) == ROWS for batch in captioner.batches[:-1])
    assert sum(map(len, captioner.batches)) < sum(CLIPS[other] for other in others) + clip + 1
    # A run that dies at any moment is resumed with the same batches.
    for at in range(0, len(changes), 3):
        out = tmp_path / str(at)
        with suppress(Killed), dying(at):
            index(folder, out, on_error=fail)
        index(folder, out, on_error=fail)
        assert tree(out) == tree(whole), at
    # Once it can be decoded, it is indexed.
    monkeypatch.setattr(builder, "read_frames", read_frames)
    assert captioned(folder, whole) == {name}
    assert sorted(path.name for path in whole.iterdir()) == sorted([*CLIPS, FILE_NAME])


def test_a_video_that_failed_before_an_interruption_and_not_behind_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of the resumed run lie otherwise in the stream; rows on disk are not lost."""
    monkeypatch.setattr(builder, "read_frames", broken("street", 3))

    def stop(done: int, total: int, vid: str) -> None:
        if done == 2 * ROWS:
            raise Killed

    with pytest.raises(Killed):
        index(folder, tmp_path, progress=stop, on_error=lambda *_: None)
    monkeypatch.setattr(builder, "read_frames", read_frames)
    index(folder, tmp_path)
    for name, clips in CLIPS.items():
        loaded = VideoIndex.load(tmp_path / name)
        assert loaded.frames is not None
        frames = list(read_frames(folder / f"{name}.mp4"))
        assert len(frames) == clips
        assert loaded.frames.times.tolist() == [frame.time for frame in frames]


def test_a_file_that_changes_during_the_run_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos")
    write_video(tmp_path / "yard.mp4", 2, 77)
    failures: Failures = []

    def exchange(done: int, total: int, vid: str) -> None:
        if done == ROWS:
            shutil.copy(tmp_path / "yard.mp4", videos)

    def fail(path: Path, error: GranAlignError) -> None:
        failures.append((path.stem, str(error)))

    folders = index(videos, tmp_path / "out", progress=exchange, on_error=fail)
    assert [path.name for path in folders] == ["street", "kitchen"]
    message = "changed while it was being indexed; index it again"
    assert failures == [("yard", f"{videos / 'yard.mp4'}: {message}")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        FILE_NAME,
        "kitchen",
        "street",
    ]
    assert captioned(videos, tmp_path / "out") == {"yard"}


def test_a_foreign_folder_costs_only_the_video_of_its_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "yard").mkdir()
    (tmp_path / "yard" / "holiday.txt").write_text("precious")
    failures: list[Path] = []
    folders = index(folder, tmp_path, on_error=lambda path, _: failures.append(path))
    assert [path.name for path in folders] == ["street", "kitchen"]
    assert failures == [folder / "yard.mp4"]
    assert (tmp_path / "yard" / "holiday.txt").read_text() == "precious"


def test_errors_of_models_end_the_run(folder: Path, tmp_path: Path) -> None:
    class Failing(ColourCaptioner):
        def agnostic(self, frames: FrameSet) -> list[str]:
            raise GranAlignError("out of memory")

    with pytest.raises(GranAlignError, match=r"street\.mp4: clip 0 .* out of memory"):
        index(folder, tmp_path, stand_ins(captioner=Failing()), on_error=lambda *_: None)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def granalign(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    warm_cache: Callable[[Path], Path],
) -> Run:
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm_cache(tmp_path / "cache")))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        models = ["--models", MINIATURES] if arguments[0] == "index" else []
        monkeypatch.setattr(sys, "argv", ["granalign", *map(str, arguments), *models])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_the_command_names_what_it_could_not_index(
    folder: Path, tmp_path: Path, granalign: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    videos = shutil.copytree(folder, tmp_path / "many")
    bad_files(videos)
    (videos / "readme.txt").write_text("not a video, and not named")
    code, out, err = granalign("index", "many", "gone.mp4", "https://a.b/c.mp4", "--out", "lib")
    assert code == 1
    assert out == "indexed: lib/kitchen\nindexed: lib/street\nindexed: lib/yard\n"
    # Progress comes first where the models are slow.
    lines = [line for line in err.splitlines() if not line.startswith("indexing: ")]
    assert lines[0] == "granalign: 5 of 8 could not be indexed:"
    reasons = (
        "https://a.b/c.mp4: got a URL",
        f"{videos}/aaa.mp4: no video in it, only audio",
        f"{videos}/download.mp4: not a video that can be read",
        f"{videos}/notes.mp4: not a video that can be read",
        "gone.mp4: cannot be read (No such file or directory)",
    )
    assert len(lines) == 1 + len(reasons)
    for line, reason in zip(lines[1:], reasons, strict=True):
        assert line.startswith(f"  {reason}")
    code, out, err = granalign("index", "many", "gone.mp4", "--out", "lib", "--json")
    record = json.loads(out)
    assert code == 1 and record["indexes"] == ["lib/kitchen", "lib/street", "lib/yard"]
    assert record["failed"][0] == {
        "path": str(videos / "aaa.mp4"),
        "error": "no video in it, only audio",
    }
    assert [failure["path"] for failure in record["failed"]][-1] == "gone.mp4"
    code, out, err = granalign("index", "many", "--out", "strict", "--strict")
    assert (code, out) == (2, "") and err.startswith(f"granalign: {videos}/aaa.mp4: no video")
    assert not (tmp_path / "strict").exists()
    good = ["--include", "street.*", "--include", "yard.*"]
    expected = "indexed: lib/street\nindexed: lib/yard\n"
    assert granalign("index", "many", "--out", "lib", *good) == (0, expected, "")
    assert granalign("index", "many", "--out", "lib", *good, "--verify")[:2] == (0, expected)
    assert granalign("index", "many", "--out", "lib", "--clip-seconds", "0")[0] == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_the_command_shows_how_much_is_read_and_indexed(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from granalign_fast.cli import progress
    from granalign_fast.cli.index import index_progress

    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with index_progress(hidden=False) as (clips, reading):
        assert clips is not None and reading is not None
        reading(3 << 20, 5 << 20)
        reading(5 << 20, 5 << 20)
        clips(16, 40, "street")
        clips(32, 40, "street")
    err = capsys.readouterr().err
    if not terminal:
        assert err.splitlines() == [
            "reading: 3 of 5 MiB, 0 s, 0 s left",
            "reading: 5 of 5 MiB, 0 s, 0 s left",
            "indexing: 16 of 40 clips, 0 s, 0 s left",
            "indexing: 32 of 40 clips, 0 s, 0 s left",
        ]
    with index_progress(hidden=True) as (clips, reading):
        assert clips is None and reading is None
