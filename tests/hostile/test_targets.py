"""Where a file is written: devices, pipes, links and permissions stay what they are."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing


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
