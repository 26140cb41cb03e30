"""Videos that were moved: their indexes get the new paths where the content is the same."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from helpers.index_worker import UNUSED, Killed, dying, stand_ins, tree, write_video

from granalign_fast import cli
from granalign_fast.cli.app import app
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex, known_files, relocation
from granalign_fast.index.builder import index_videos
from granalign_fast.index.known_files import FILE_NAME
from granalign_fast.index.naming import find_index, read_library
from granalign_fast.index.relocation import relocate_videos

NAMES = ("a.mp4", "deep/b.mp4", "deep/er/c.mp4")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos in ``in``, one in ``inside``, and their indexes in ``lib``."""
    folder = tmp_path_factory.mktemp("library")
    paths = [folder / "in" / name for name in NAMES] + [folder / "inside" / "d.mp4"]
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, 1, seed)
    index_videos(paths, folder / "lib", stand_ins())
    return folder


@pytest.fixture
def moved(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in which the videos are in ``out``; the indexes name the paths of ``in`` in it."""
    folder = Path(shutil.copytree(library, tmp_path / "work"))
    assert relocate_videos(folder / "lib", library, folder) == [
        folder / "lib" / vid for vid in "abcd"
    ]
    (folder / "in").rename(folder / "out")
    monkeypatch.chdir(folder)
    return folder


def sources(folder: Path) -> dict[str, str]:
    """The path of each index's file, from the folder on."""
    return {
        vid: str(source.path.relative_to(folder))
        for vid, source in read_library(folder / "lib").items()
    }


def test_a_folder_that_moved(moved: Path) -> None:
    before = tree(moved / "lib")
    assert relocate_videos("lib", "in", "out") == [Path("lib", vid) for vid in "abc"]
    expected = {vid: f"out/{name}" for vid, name in zip("abc", NAMES, strict=True)}
    assert sources(moved) == expected | {"d": "inside/d.mp4"}
    # Nothing but the paths has changed, and the files count as known.
    after = tree(moved / "lib")
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {FILE_NAME, *(f"{vid}/manifest.json" for vid in "abc")}
    assert before.keys() == after.keys()
    for vid in "abcd":
        VideoIndex.load(moved / "lib" / vid)
    paths = [moved / name for name in sources(moved).values()]
    assert index_videos(paths, moved / "lib", UNUSED) == [moved / "lib" / vid for vid in "abcd"]
    assert tree(moved / "lib") == after
    assert find_index(moved / "lib", "out/deep/b.mp4").name == "b"


def test_an_index_finds_its_moved_file_without_being_told(moved: Path) -> None:
    """The content decides, so indexing from the new place does the same."""
    paths = [moved / "out" / name for name in NAMES]
    assert index_videos(paths, moved / "lib", UNUSED) == [moved / "lib" / vid for vid in "abc"]
    assert sources(moved)["c"] == "out/deep/er/c.mp4"


@pytest.mark.parametrize("new", ["elsewhere/new name.mp4", "elsewhere"])
def test_a_file_that_moved(moved: Path, new: str) -> None:
    (moved / "elsewhere").mkdir()
    shutil.move(moved / "out/deep/b.mp4", moved / new)
    assert relocate_videos(moved / "lib", moved / "in/deep/b.mp4", moved / new) == [
        moved / "lib" / "b"
    ]
    assert sources(moved)["b"] == ("elsewhere/b.mp4" if new == "elsewhere" else new)
    assert sources(moved)["a"] == "in/a.mp4"


def test_one_index(moved: Path) -> None:
    assert relocate_videos("lib/c", "in", "out") == [Path("lib/c")]
    assert sources(moved) == {
        "a": "in/a.mp4",
        "b": "in/deep/b.mp4",
        "c": "out/deep/er/c.mp4",
        "d": "inside/d.mp4",
    }


def test_the_command_takes_one_index_too(moved: Path) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        typer.main.get_command(app)(["library", "move", "lib/c", "in", "out"])
    assert sources(moved)["c"] == "out/deep/er/c.mp4"
    assert not (moved / "lib/c/.catalogue").exists()


def test_nothing_is_indexed_into_an_index(moved: Path) -> None:
    before = tree(moved / "lib")
    with pytest.raises(GranAlignError, match=r"lib/c: got the index of one video, expected a fol"):
        index_videos([moved / "inside/d.mp4"], moved / "lib/c", UNUSED)
    assert tree(moved / "lib") == before


def test_an_index_on_its_own_gets_no_list_beside_it(moved: Path) -> None:
    (moved / "alone").mkdir()
    shutil.move(moved / "lib/a", moved / "alone/a")
    relocate_videos(moved / "alone/a", "in", "out")
    assert [path.name for path in (moved / "alone").iterdir()] == ["a"]


def test_what_cannot_be_relocated_is_named_and_stays(moved: Path) -> None:
    (moved / "out/a.mp4").unlink()
    b, c = moved / "out/deep/b.mp4", moved / "out/deep/er/c.mp4"
    c.write_bytes(c.read_bytes()[::-1])
    errors: dict[str, str] = {}
    done = relocate_videos(
        "lib", "in", "out", on_error=lambda path, error: errors.setdefault(path.name, str(error))
    )
    assert done == [Path("lib/b")] and sources(moved)["b"] == "out/deep/b.mp4"
    assert sources(moved)["a"] == "in/a.mp4" and sources(moved)["c"] == "in/deep/er/c.mp4"
    assert errors["a.mp4"] == f"{moved}/out/a.mp4: cannot be read (No such file or directory)"
    assert errors["c.mp4"].startswith(f"{c}: has another content than the file that was indexed")
    b.rename(moved / "b.mp4")
    b.write_bytes(b"shorter")
    with pytest.raises(GranAlignError, match="got 7 bytes, expected the"):
        relocate_videos("lib", "out/deep/b.mp4", b)
    b.unlink()
    b.mkdir()
    with pytest.raises(GranAlignError, match="got a folder or a device"):
        relocate_videos("lib", "out", "out")
    os.mkfifo(moved / "pipe")
    with pytest.raises(GranAlignError, match="got a folder or a device"):
        relocate_videos("lib", "out/deep/b.mp4", "pipe")


def test_a_file_of_another_index_is_not_taken(moved: Path) -> None:
    """A copy of another name has an index of its own."""
    shutil.copy(moved / "out/a.mp4", moved / "copy.mp4")
    for path in ("out/a.mp4", "copy.mp4"):
        index_videos([moved / path], moved / "lib", stand_ins())
    with pytest.raises(GranAlignError, match="is the file of the index 'copy' already"):
        relocate_videos("lib", "out/a.mp4", "copy.mp4")
    assert sources(moved)["a"] == "out/a.mp4"


def test_a_folder_that_moved_into_itself(moved: Path) -> None:
    (moved / "in").mkdir()
    (moved / "out").rename(moved / "in/in")
    assert len(relocate_videos("lib", "in", "in/in")) == 3
    assert sources(moved)["b"] == "in/in/deep/b.mp4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lib", "gone", "out"), r"no index of lib has a file at .*; expected a part of '?.*/in"),
        (("lib", "i", "out"), "no index of lib has a file"),
        (("none", "in", "out"), "none: no such folder"),
        (("out", "in", "out"), "out: holds no index of a video file"),
    ],
)
def test_wrong_folders_are_named(
    moved: Path, arguments: tuple[str, str, str], message: str
) -> None:
    before = sources(moved)
    with pytest.raises(GranAlignError, match=message):
        relocate_videos(*arguments)
    assert sources(moved) == before and not (moved / "none").exists()


def test_an_index_of_an_older_format_is_named(moved: Path) -> None:
    manifest = moved / "lib/a/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 1'))
    errors: list[str] = []
    done = relocate_videos(
        "lib", "in", "out", on_error=lambda path, error: errors.append(str(error))
    )
    assert done == [Path("lib/b"), Path("lib/c")]
    assert len(errors) == 1 and "got format version 1, expected 2" in errors[0]


def test_a_death_at_any_moment_tears_no_index(moved: Path, tmp_path: Path) -> None:
    with dying(sys.maxsize) as changes:
        shutil.copytree(moved, tmp_path / "whole")
        changes.clear()
        relocate_videos(tmp_path / "whole/lib", moved / "in", moved / "out")
    # The folder, which is there; three manifests; the list of known files.
    assert len(changes) == 1 + 3 + 1
    for at in range(len(changes)):
        shutil.copytree(moved / "lib", tmp_path / str(at))
        with dying(at), pytest.raises(Killed):
            relocate_videos(tmp_path / str(at), "in", "out")
        paths = {vid: source.path for vid, source in read_library(tmp_path / str(at)).items()}
        done = sum(path.is_relative_to(moved / "out") for path in paths.values())
        assert done == max(0, at - 1)
        for vid in "abcd":
            VideoIndex.load(tmp_path / str(at) / vid)


def test_reading_is_reported(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[tuple[int, int]] = []
    relocate_videos("lib", "in", "out", reading=lambda done, total: reports.append((done, total)))
    size = sum((moved / "out" / name).stat().st_size for name in NAMES)
    assert reports[-1] == (size, size)
    # A file that is known at its new path is not read again.
    monkeypatch.setattr(known_files, "_SETTLED", -(10**18))
    monkeypatch.setattr(relocation, "sha256_of", None)
    assert len(relocate_videos("lib", "out", "out")) == 3


def test_the_command(
    moved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def granalign(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["granalign", "index", "--out", "lib", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    run: Callable[..., tuple[int, str, str]] = granalign
    (moved / "out/a.mp4").rename(moved / "a.mp4")
    code, out, err = run("--relocate", "in", "out")
    assert (code, out) == (1, "relocated: lib/b\nrelocated: lib/c\n")
    assert err == (
        "granalign: 1 of 3 could not be relocated:\n"
        f"  {moved}/out/a.mp4: cannot be read (No such file or directory)\n"
    )
    code, out, err = run("--relocate", "in/a.mp4", ".", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"indexes": ["lib/a"], "without_captions": [], "failed": []}
    assert sources(moved)["a"] == "a.mp4"
    code, out, err = run("--relocate", "gone", "out")
    assert (code, out) == (2, "") and err.startswith(f"granalign: {moved}/gone: no index of lib")
    for more, message in (
        (("a.mp4", "--relocate", "in", "out"), "--relocate: it takes no videos and no --models"),
        (("--models", "m", "--relocate", "in", "out"), "it takes no videos and no --models"),
        (("--models", "miniatures"), "VIDEOS: name video files, or folders of them"),
        (("a.mp4",), "--models: name a folder of models, or: miniatures"),
    ):
        code, out, err = run(*more)
        assert code == 2 and message in err
    code, out, err = run("--relocate", "a.mp4", "gone.mp4", "--strict")
    assert (code, out) == (2, "") and err.endswith(
        "gone.mp4: cannot be read (No such file or directory)\n"
    )
