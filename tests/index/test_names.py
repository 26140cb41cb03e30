"""Ids of videos: any file name will do, and no file takes the index of another."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from helpers.index_worker import (
    UNUSED,
    ColourCaptioner,
    Killed,
    dying,
    stand_ins,
    tree,
    write_video,
)

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex, VideoSource
from granalign_fast.index.builder import index_videos
from granalign_fast.index.known_files import FILE_NAME
from granalign_fast.index.naming import assign_ids, find_index, read_library, video_name


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos of different content."""
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{seed}.mp4", 1, seed) for seed in range(3)]


def place(video: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(video, path)
    return path


def index(out: Path, *paths: Path) -> list[str]:
    """Index files, and return the ids of their indexes, which must hold their content."""
    folders = index_videos(paths, out, stand_ins())
    for path, folder in zip(paths, folders, strict=True):
        loaded = VideoIndex.load(folder)
        assert loaded.video.vid == folder.name and folder.parent == out
        assert loaded.frames is not None and loaded.frames.source is not None
        assert loaded.frames.source.bytes == path.stat().st_size
        assert loaded.frames.source.sha256 == sha256(path)
    return [folder.name for folder in folders]


def sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def indexed(out: Path) -> dict[str, str]:
    """The file of each index."""
    return {vid: str(source.path) for vid, source in read_library(out).items()}


NAMES = {
    b"Screen Recording 2024-05-01 at 9.41.00\xe2\x80\xafAM.mov": "Screen Recording 2024-05-01 at "
    "9.41.00\u202fAM",
    "全角\u3000空白.mp4".encode(): "全角\u3000空白",
    "no\u00a0break.mp4".encode(): "no\u00a0break",
    "party😀👩‍👩‍👧.mp4".encode(): "party😀👩‍👩‍👧",
    "مرحبا\u200f.mp4".encode(): "مرحبا\u200f",
    b"100% of it?.mp4": "100% of it?",
    b" padded .mp4": " padded ",
    b"trailing dot..mp4": "trailing dot.",
    b"q\"uo'te\\back:slash*.mp4": "q\"uo'te\\back:slash*",
    b"no suffix": "no suffix",
    b".hidden.mp4": "%2Ehidden",
    b".indexing.mp4": "%2Eindexing",
    b"..mp4": "%2E",
    b"...mp4": "%2E.",
    b"new\nline\t\x1b[31m.mp4": "new%0Aline%09%1B[31m",
    b"caf\xe9 \xff.mp4": "caf%E9 %FF",
    b"\xed\xa0\x80.mp4": "%ED%A0%80",
    b"x" * 251 + b".mp4": "x" * 251,
    b"y" * 255: "y" * 255,
    "ü".encode() * 125 + b".mp4": "ü" * 125,
    b"\xff" * 251 + b".mp4": "%FF" * 85,
}


def test_any_name_that_the_file_system_holds_is_the_name_of_a_video(
    videos: list[Path], tmp_path: Path
) -> None:
    paths = [place(videos[0], tmp_path / "in" / os.fsdecode(name)) for name in NAMES]
    ids = index(tmp_path / "out", *paths)
    assert ids == list(NAMES.values())
    assert indexed(tmp_path / "out") == {
        vid: str(path) for vid, path in zip(ids, paths, strict=True)
    }
    for vid, path in zip(ids, paths, strict=True):
        # Other programs read the manifest: it is UTF-8 whose strings are Unicode.
        source = json.loads((tmp_path / "out" / vid / "manifest.json").read_bytes())["source"]
        json.dumps(source, ensure_ascii=False).encode()
        if "encoding" not in source:
            assert (source["path"], source["name"]) == (str(path), path.name)
        assert ("encoding" in source) == any(
            "\udc80" <= character <= "\udcff" for character in path.name
        )
    before = tree(tmp_path / "out")
    assert index_videos(paths, tmp_path / "out", UNUSED) == [tmp_path / "out" / vid for vid in ids]
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("name", [b"caf\xe9 100%41.mp4", b"%FF\xff.mp4", b"%\xc3.mp4"])
def test_a_path_that_is_not_utf_8_is_read_back(
    videos: list[Path], tmp_path: Path, name: bytes
) -> None:
    path = place(videos[0], tmp_path / os.fsdecode(name))
    (vid,) = index(tmp_path / "out", path)
    frames = VideoIndex.load(tmp_path / "out" / vid).frames
    assert frames is not None and frames.path == path and frames.path.is_file()
    manifest = tmp_path / "out" / vid / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"encoding": "percent"', '"encoding": "?"'))
    with pytest.raises(GranAlignError, match=r"got encoding '\?', expected 'percent'") as error:
        VideoIndex.load(tmp_path / "out" / vid)
    assert "\n" not in str(error.value)


def test_two_files_of_one_name_have_two_indexes(videos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = [place(video, tmp_path / f"cam{n}" / "GX010001.MP4") for n, video in enumerate(videos)]
    hashed = [f"GX010001-{sha256(video)[:8]}" for video in videos]
    # One after another, then all again in any order: each finds its own.
    assert index(out, paths[1]) == ["GX010001"]
    before = tree(out / "GX010001")
    assert index(out, paths[0]) == [hashed[0]]
    assert index(out, paths[2]) == [hashed[2]]
    assert tree(out / "GX010001") == before
    expected = [hashed[0], "GX010001", hashed[2]]
    assert index_videos(paths, out, UNUSED) == [out / vid for vid in expected]
    assert index_videos(paths[::-1], out, UNUSED) == [out / vid for vid in expected[::-1]]
    assert sorted(path.name for path in out.iterdir()) == sorted([*expected, FILE_NAME])


def test_the_order_of_arguments_does_not_change_ids(videos: list[Path], tmp_path: Path) -> None:
    paths = [place(video, tmp_path / f"cam{n}" / "a.mp4") for n, video in enumerate(videos)]
    expected = ["a", f"a-{sha256(videos[1])[:8]}", f"a-{sha256(videos[2])[:8]}"]
    for number, order in enumerate(itertools.permutations(range(3))):
        ids = index(tmp_path / str(number), *(paths[n] for n in order))
        assert ids == [expected[n] for n in order]


def test_names_of_other_case_or_composition_are_the_same(
    videos: list[Path], tmp_path: Path
) -> None:
    """On a file system that takes them for the same, one index would replace the other."""
    names = ("Über.mp4", "u\u0308ber.mp4", "ÜBER.mp4")
    paths = [place(video, tmp_path / name) for video, name in zip(videos, names, strict=True)]
    ids = index(tmp_path / "out", *paths)
    assert len({vid.casefold() for vid in ids}) == 3
    assert sum("-" in vid for vid in ids) == 2


def test_a_long_name_that_is_taken_is_cut(videos: list[Path], tmp_path: Path) -> None:
    name = "é" * 125 + ".mp4"
    paths = [place(video, tmp_path / str(n) / name) for n, video in enumerate(videos[:2])]
    assert index(tmp_path / "out", *paths) == [
        "é" * 125,
        "é" * 123 + f"-{sha256(videos[1])[:8]}",
    ]


def test_the_same_file_finds_its_index_wherever_it_is(videos: list[Path], tmp_path: Path) -> None:
    out, first = tmp_path / "out", place(videos[0], tmp_path / "in" / "holiday.mp4")
    assert index(out, first) == ["holiday"]
    for number, other in enumerate(("moved/holiday.mp4", "renamed.mp4", "moved/again.mkv")):
        new = tmp_path / other
        new.parent.mkdir(exist_ok=True)
        first = first.rename(new)
        assert index_videos([first], out, UNUSED) == [out / "holiday"], number
        assert indexed(out) == {"holiday": str(first)}
    # Its old name is that of a new file now, which needs another id.
    new = place(videos[1], tmp_path / "in" / "holiday.mp4")
    assert index(out, new, first) == [f"holiday-{sha256(new)[:8]}", "holiday"]


def test_a_changed_file_is_indexed_anew_in_place(videos: list[Path], tmp_path: Path) -> None:
    out, path = tmp_path / "out", place(videos[0], tmp_path / "a.mp4")
    other = place(videos[1], tmp_path / "more" / "a.mp4")
    ids = index(out, path, other)
    place(videos[2], other)
    assert index(out, path, other) == ids
    assert index(out, other) == ids[1:]
    assert sorted(path.name for path in out.iterdir()) == sorted([*ids, FILE_NAME])
    # The content that it had, under another name, is a new file.
    back = place(videos[1], tmp_path / "again" / "a.mp4")
    assert index(out, back) == [f"a-{sha256(videos[1])[:8]}-2"]


def test_a_rotated_name_keeps_to_the_path(videos: list[Path], tmp_path: Path) -> None:
    """The recorder renames the last file, and writes a new one under the old name."""
    out, path = tmp_path / "out", place(videos[0], tmp_path / "live.mp4")
    index(out, path)
    last = path.rename(tmp_path / "live-1.mp4")
    place(videos[1], path)
    assert index(out, last, path) == ["live-1", "live"]


def test_copies_of_one_name_share_an_index_and_others_do_not(
    videos: list[Path], tmp_path: Path
) -> None:
    paths = [place(videos[0], tmp_path / name) for name in ("b/a.mp4", "a/a.mp4", "c.mp4")]
    out = tmp_path / "out"
    captioner = ColourCaptioner()
    folders = index_videos([*paths, paths[0]], out, stand_ins(captioner=captioner))
    assert [folder.name for folder in folders] == ["a", "a", "c", "a"]
    assert [len(batch) for batch in captioner.batches] == [2]
    assert indexed(out) == {"a": str(paths[1]), "c": str(paths[2])}
    index_videos(paths[:1], out, UNUSED)
    assert indexed(out)["a"] == str(paths[0])
    index_videos(paths[::-1], out, UNUSED)
    assert indexed(out)["a"] == str(paths[0])


@pytest.mark.once
def test_two_files_of_one_name_survive_a_death_at_any_moment(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    paths = [place(video, tmp_path / f"cam{n}" / "a.mp4") for n, video in enumerate(videos)][::-1]
    with dying(10**6) as changes:
        index_videos(paths, tmp_path / "whole", stand_ins(), rows=1)
    for at in range(len(changes)):
        out = tmp_path / str(at)
        with pytest.raises(Killed), dying(at):
            index_videos(paths, out, stand_ins(), rows=1)
        index_videos(paths, out, stand_ins(), rows=1)
        assert tree(out) == tree(tmp_path / "whole"), at


def test_ids_are_unique_and_stable_whatever_happens(tmp_path: Path) -> None:
    """A random history of files, judged by the two promises alone."""
    chance = random.Random(7)
    contents = [f"{n:064x}" for n in range(5)]
    for _ in range(300):
        library: dict[str, VideoSource] = {}
        files: dict[Path, str] = {}
        for _ in range(12):
            if files and chance.random() < 0.3:
                path = chance.choice(sorted(files))
                files[tmp_path / chance.choice("ABC") / f"{chance.choice('xyX')}.mp4"] = files.pop(
                    path
                )
            else:
                path = tmp_path / chance.choice("ABC") / f"{chance.choice('xyX')}.mp4"
                files[path] = chance.choice(contents)
            chosen = chance.sample(sorted(files), chance.randint(1, len(files)))
            sources = [VideoSource(path, 1, files[path]) for path in chosen]
            ids = assign_ids(sources, library)
            assert ids == assign_ids(sources[::-1], library)
            assert ids.keys() == set(chosen)
            owners: dict[str, VideoSource] = {}
            for path, vid in ids.items():
                owner = owners.setdefault(vid, VideoSource(path, 1, files[path]))
                # One index never stands for two contents or two names.
                assert owner.sha256 == files[path]
                # Only a change of its own file replaces an index.
                if vid in library and library[vid].sha256 != files[path]:
                    assert ids[library[vid].path] == vid
            library |= owners
            assert len({vid.casefold() for vid in library}) == len(library)
            assert assign_ids(sources, library) == ids


def test_ids_need_no_video(tmp_path: Path) -> None:
    assert video_name(Path("/a/b.c.mp4")) == "b.c"
    assert read_library(tmp_path / "missing") == {}
    (tmp_path / "no-index").mkdir()
    (tmp_path / "file").touch()
    assert read_library(tmp_path) == {}


def library(tmp_path: Path, videos: list[Path]) -> Path:
    """Indexes of two files of one name, and of a third."""
    paths = [place(videos[n], tmp_path / f"cam{n}" / "GX010001.MP4") for n in range(2)]
    index(tmp_path / "lib", *paths, place(videos[2], tmp_path / "cam1" / "yard.front.mkv"))
    return tmp_path / "lib"


def test_an_index_is_found_by_id_name_or_path(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = library(tmp_path, videos)
    second = f"GX010001-{sha256(videos[1])[:8]}"
    monkeypatch.chdir(tmp_path / "cam1")
    for name, vid in (
        ("GX010001", "GX010001"),
        (second, second),
        ("cam1/GX010001.MP4", second),
        ("cam0/GX010001", "GX010001"),
        (str(tmp_path / "cam1" / "GX010001.MP4"), second),
        ("./GX010001.MP4", second),
        ("../cam0/GX010001.MP4", "GX010001"),
        ("GX010001.MP4", second),
        ("yard.front", "yard.front"),
        ("yard.front.mkv", "yard.front"),
        ("yard", None),
        ("front.mkv", None),
        ("", None),
        (".", None),
        ("../lib", None),
    ):
        if vid is not None:
            assert find_index(lib, name) == lib / vid, name
        else:
            with pytest.raises(GranAlignError, match=r"lib: has no index of .*one of its 3, such"):
                find_index(lib, name)


def test_ambiguous_names_list_at_most_five(videos: list[Path], tmp_path: Path) -> None:
    lib = library(tmp_path, videos)
    second = f"GX010001-{sha256(videos[1])[:8]}"
    with pytest.raises(GranAlignError) as error:
        find_index(lib, "GX010001.MP4")
    assert str(error.value) == (
        f"{lib}: has 2 indexes of 'GX010001.MP4'; name one by its id: "
        f"'GX010001' of {tmp_path}/cam0/GX010001.MP4, {second!r} of {tmp_path}/cam1/GX010001.MP4"
    )
    with pytest.raises(GranAlignError, match="lib: holds 3 indexes; name one with --vid, such as"):
        find_index(lib, None)
    for number in range(7):
        path = tmp_path / str(number) / "GX010001.MP4"
        path.parent.mkdir()
        path.write_bytes(videos[0].read_bytes() + bytes([number]))
        index(lib, path)
    with pytest.raises(GranAlignError, match=r"has 9 indexes .* and 4 more$") as error:
        find_index(lib, "GX010001.MP4")
    assert str(error.value).count(" of /") == 5


def test_the_only_index_needs_no_name(videos: list[Path], tmp_path: Path) -> None:
    index(tmp_path / "lib", place(videos[0], tmp_path / "a.mp4"))
    assert find_index(tmp_path / "lib", None) == tmp_path / "lib" / "a"
    (tmp_path / "empty").mkdir()
    with pytest.raises(GranAlignError, match=r"empty: got no manifest\.json and no indexes, expec"):
        find_index(tmp_path / "empty", None)
    with pytest.raises(GranAlignError, match=r"empty: has no index of 'a'; expected one of its 0$"):
        find_index(tmp_path / "empty", "a")
