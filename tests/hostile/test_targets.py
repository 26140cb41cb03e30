"""Where a file is written: devices, pipes, links and permissions stay what they are."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from helpers.command import Granalign
from helpers.videos import constant, render

from granalign_fast.cli.clips import write_clips
from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing
from granalign_fast.types import Moment


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    before = Path("/dev/null").stat()
    with replacing("/dev/null") as sink:
        sink.write(b"x")
    after = Path("/dev/null").stat()
    assert (after.st_mode, after.st_rdev) == (before.st_mode, before.st_rdev)
    # A link to a pipe, as /dev/stdout is one.
    code = (
        "from granalign_fast.files import replacing\n"
        "with replacing('/dev/stdout') as sink: sink.write(b'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"x" and stat.S_ISLNK(Path("/dev/stdout").lstat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    with replacing(path) as sink:
        sink.write(b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as sink:
        sink.write(b"new")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("target", ["file", "missing"])
def test_links_are_not_followed_and_not_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    expected = pytest.raises(GranAlignError, match=r"got a link to .*name the file itself")
    with expected, replacing(link) as sink:
        sink.write(b"new")
    assert link.is_symlink() and (tmp_path / "file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_no_output_replaces_an_input(
    tmp_path: Path, granalign: Granalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    captions = tmp_path / "a.jsonl"
    captions.write_text('{"vid": "v", "captions": ["a dog"]}\n')
    # The same file under other names.
    (tmp_path / "hard.jsonl").hardlink_to(captions)
    for name in ("a.jsonl", "./a.jsonl", "hard.jsonl"):
        for option in ("--predictions", "--results"):
            code, _, err = granalign(
                *("evaluate", "qvhighlights", "q.jsonl", "--captions", captions, option, name)
            )
            assert code == 2 and f"{option} {Path(name)}: got a file that this command" in err
    video = render(tmp_path / "a.mp4", constant(5, 9))
    for option, name in (("--clip", "a.mp4"), ("--plot", "a.png"), ("--report", "a.html")):
        if not (tmp_path / name).exists():
            (tmp_path / name).hardlink_to(video)
        code, _, err = granalign("search", "a.mp4", "a dog", option, name)
        assert code == 2 and f"{option} {name}: got a file that this command reads" in err
    report = tmp_path / "run.json"
    report.write_text("{}")
    code, _, err = granalign("bench", "--from", report, "--json", "run.json")
    assert code == 2 and "--json run.json: got a file that this command reads" in err
    code, _, err = granalign(
        *("evaluate", "qvhighlights", "q.jsonl", "--captions", captions),
        *("--results", "out", "--predictions", "./out"),
    )
    assert code == 2 and "got the file of --predictions too" in err
    assert captions.read_text().startswith('{"vid"') and report.read_text() == "{}"


def test_a_cut_does_not_replace_the_video(tmp_path: Path) -> None:
    # A cut of an earlier search is searched, and the new cuts go to its folder.
    video = render(tmp_path / "01-0.0-1.0.mp4", constant(5, 9))
    before = video.read_bytes()
    with pytest.raises(typer.Exit):
        write_clips(video, [Moment(0.0, 1.0, 1.0)], tmp_path, exact=False, on_stdout=False)
    assert video.read_bytes() == before


def test_a_private_file_is_its_owners(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with replacing(tmp_path / "a", private=True) as sink:
            sink.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
