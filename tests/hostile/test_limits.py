"""Small inputs that announce much: each is refused before it takes the memory or the time."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError
from granalign_fast.language.rewriters import RuleRewriter
from granalign_fast.parsing.limits import MOST_CHARACTERS, MOST_PIXELS, MOST_TEXTS
from granalign_fast.types import Rewrites
from granalign_fast.video import container
from granalign_fast.video.frames import probe, read_frames


def write_gif(path: Path, width: int, height: int) -> Path:
    """Write a GIF of this size whose frames cover four pixels."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"\x21\xf9\x04\x00\x32\x00\x00\x00\x2c" + struct.pack("<HHHHB", 0, 0, 2, 2, 0)
    path.write_bytes(head + 10 * (frame + b"\x02\x03\x84\x51\x05\x00") + b"\x3b")
    return path


def test_a_small_file_with_huge_frames_takes_no_memory(tmp_path: Path) -> None:
    path = write_gif(tmp_path / "a.gif", 60_000, 60_000)
    code = (
        "import resource, sys\n"
        "from granalign_fast.errors import GranAlignError\n"
        "from granalign_fast.video.frames import probe, read_frames\n"
        "for call in (probe, lambda path: list(read_frames(path))):\n"
        "    try: call(sys.argv[1])\n"
        "    except GranAlignError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    assert done.stdout.count(f"more than {MOST_PIXELS:,} pixels") == 2


def test_a_large_frame_is_no_error(tmp_path: Path) -> None:
    assert probe(write_gif(tmp_path / "a.gif", 4000, 3000)).width == 4000


@pytest.mark.parametrize("call", [probe, lambda path: list(read_frames(path))])
def test_a_video_with_too_many_clips(tmp_path: Path, monkeypatch, call) -> None:  # type: ignore[no-untyped-def]
    path = render(tmp_path / "a.mp4", constant(5, 9))
    monkeypatch.setattr(container, "MOST_CLIPS", 3)
    with pytest.raises(GranAlignError, match=r"got [45] clips, expected at most 3; take longer"):
        call(path)


def test_long_queries_and_many_rewrites_are_refused() -> None:
    with pytest.raises(GranAlignError, match=r"query: got 60,000 characters, expected at most"):
        Rewrites("," * 60_000)
    with pytest.raises(GranAlignError, match=r"simplified rewrite: got 5,000 characters"):
        Rewrites("a dog", ("x" * 5000,))
    with pytest.raises(GranAlignError, match=r"detailed: got 1,000 texts, expected at most"):
        Rewrites("a dog", detailed=("a dog",) * 1000)
    Rewrites("x" * MOST_CHARACTERS, ("a",) * MOST_TEXTS)


def test_rules_take_linear_time() -> None:
    begin = time.process_time()
    for query in ("," * MOST_CHARACTERS, "a, " * (MOST_CHARACTERS // 3), "-" * MOST_CHARACTERS):
        RuleRewriter().rewrite([query + "x"] if len(query) < MOST_CHARACTERS else [query])
    assert time.process_time() - begin < 0.5
