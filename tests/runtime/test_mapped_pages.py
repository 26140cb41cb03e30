"""Pages of mapped files: released where nobody wrote to them, kept where somebody did."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest

from granalign_fast.runtime.mapped_pages import release_pages

SIZE = 64 * mmap.PAGESIZE


def resident(path: Path) -> int:
    """Return the bytes of a mapped file that are in this process's memory."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(str(path))}\n(?:\w+:.*\n)*?Rss: +(\d+) kB", maps)
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux alone")
def test_clean_pages_of_the_folder_are_released(tmp_path: Path) -> None:
    data = bytes(range(256)) * (SIZE // 256)
    maps = {}
    for name in ("weights/clean", "weights/written", "other/clean"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        with path.open("rb") as file:
            maps[name] = mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE)
        assert maps[name][:] == data and resident(path) == SIZE
    maps["weights/written"][0] = 7
    assert release_pages(tmp_path / "weights") == SIZE
    found = {name: resident(tmp_path / name) for name in maps}
    assert found == {"weights/clean": 0, "weights/written": SIZE, "other/clean": SIZE}
    # The file is read again, and what was written is still there.
    assert maps["weights/clean"][:] == data and maps["weights/written"][0] == 7
