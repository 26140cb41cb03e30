"""Small inputs that announce much: each is refused before it takes the memory or the time."""

from __future__ import annotations

import math
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import pytest
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.index import CaptionedVideo
from granalign_fast.language.rewriters import RuleRewriter
from granalign_fast.metrics.records import check_ground_truth
from granalign_fast.parsing.limits import MOST_CHARACTERS, MOST_MESSAGE, MOST_PIXELS, MOST_TEXTS
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


def test_a_file_of_many_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = render(tmp_path / "a.mp4", constant(5, 4))
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        streams = [target.add_stream_from_template(source.streams.video[0]) for _ in range(6)]
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = streams[0]
                target.mux(packet)
    monkeypatch.setattr(container, "MOST_STREAMS", 6)
    assert probe(tmp_path / "b.mkv").width
    monkeypatch.setattr(container, "MOST_STREAMS", 5)
    with pytest.raises(GranAlignError, match="got more than 5 streams, expected at most so many"):
        probe(tmp_path / "b.mkv")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"captions": ("a" * 30_000,)}, "caption 0 of 'v': got 30,000 characters"),
        ({"captions": ("a",) * 500_001}, "clips of 'v': got 500,001, expected at most 500,000"),
        ({"captions": ("a",), "clip_seconds": 1e-9}, "clip_seconds of 'v': got 1e-09, expected"),
        ({"captions": ("a",), "clip_seconds": 1e6}, "expected seconds from 0.01 to 3600"),
        ({"captions": ("a",), "duration": 10**30}, "duration of 'v': got 10000"),
        ({"captions": ("a",), "duration": math.inf}, "duration of 'v': got inf"),
        ({"captions": ("a",), "duration": True}, "duration of 'v': got True"),
        ({"vid": "v" * 5000, "captions": ("a",)}, "vid: got 5,000 characters"),
        ({"captions": (["x" * 10**7] * 1000,)}, r"caption 0 of 'v': got \['xxx.*expected a text$"),
    ],
)
def test_records_of_videos(values: dict[str, Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as caught:
        CaptionedVideo(**{"vid": "v"} | values)
    assert len(str(caught.value)) < 300


def test_a_query_has_few_windows() -> None:
    record = {"qid": 1, "duration": 10.0, "relevant_windows": [[0, 2]] * 5000}
    with pytest.raises(GranAlignError, match="relevant_windows has 5,000 windows; expected at"):
        check_ground_truth([("a:1", record)])


def test_messages_have_a_bound() -> None:
    for value in ("x" * 10**8, [1] * 10**7, {"a": {"b": ["y"] * 10**6}}, 10**5000, [[10**5000]]):
        begin = time.process_time()
        assert len(short_repr(value)) <= 100
        assert time.process_time() - begin < 0.2
    assert short_repr({"b": [1], "a": (2,)}) == "{'b': [1], 'a': (2,)}"
    assert len(str(GranAlignError("a" + "x" * 10**6 + "z"))) <= MOST_MESSAGE
