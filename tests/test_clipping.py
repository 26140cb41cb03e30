"""Moments cut out of videos, judged by decoding them: every frame says which one it was."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import constant, draw, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.video.clipping import Cut, cut
from granalign_fast.video.frames import probe

FRAME = 0.04


def decoded(path: Path) -> tuple[list[tuple[float, int | None]], tuple[float, float] | None]:
    """Times and numbers of the frames, and when the sound begins and ends."""
    import av

    with av.open(str(path)) as container:
        shown = [
            (float(frame.time or 0), read(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        ]
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return shown, None
        heard = [
            (frame.time, frame.time + frame.samples / frame.sample_rate)
            for frame in container.decode(audio=0)
        ]
    return shown, (heard[0][0], heard[-1][1])


SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4": ("a.mp4", {"bframes": 3, "tone": 10}),
    "matroska": ("a.mkv", {"bframes": 3, "tone": 10}),
    "transport stream": ("a.ts", {"bframes": 3, "tone": 10, "start": Fraction(7, 5)}),
    "late start": ("a.mp4", {"start": Fraction(7, 5)}),
    "open groups": (
        "a.mp4",
        {"bframes": 3, "options": {"x264-params": "open-gop=1:scenecut=0"}},
    ),
    "ten bits": ("a.mkv", {"pix_fmt": "yuv420p10le"}),
}


PAIRS = [*((name, ".mp4") for name in SOURCES), ("mp4", ".mkv"), ("matroska", ".mov")]


@pytest.mark.parametrize(("name", "suffix"), PAIRS)
def test_a_copy_begins_at_the_key_frame_before_it(tmp_path: Path, name: str, suffix: str) -> None:
    file, settings = SOURCES[name]
    path = render(tmp_path / file, constant(25, 10), gop=50, **settings)
    out = tmp_path / f"out{suffix}"
    found = cut(path, 3.1, 5.5, out)
    assert found == Cut(out, pytest.approx(2), found.end, copied=True)
    assert 5.499 <= found.end <= 5.5 + 5 * FRAME
    shown, heard = decoded(out)
    assert [index for _, index in shown] == list(range(50, 50 + len(shown)))
    for time, index in shown:
        assert time - shown[0][0] == pytest.approx((index or 0) / 25 - 2, abs=0.002)
    assert shown[-1][0] + FRAME == pytest.approx(found.end - found.start, abs=0.01)
    assert probe(out).duration == pytest.approx(found.end - found.start, abs=0.01)
    if "tone" in settings:
        assert heard is not None
        # Packets last 0.064 s here, and a decoder of AAC may drop the first.
        assert heard[0] - shown[0][0] < 0.15 and heard[1] == pytest.approx(3.5, abs=0.1)


@pytest.mark.parametrize(("name", "suffix"), PAIRS)
def test_an_exact_cut_begins_and_ends_where_it_was_asked_to(
    tmp_path: Path, name: str, suffix: str
) -> None:
    file, settings = SOURCES[name]
    path = render(tmp_path / file, constant(25, 10), gop=50, **settings)
    out = tmp_path / f"out{suffix}"
    found = cut(path, 3.1, 5.5, out, exact=True)
    assert (found.start, found.end, found.copied) == (3.1, 5.5, False)
    shown, heard = decoded(out)
    assert [index for _, index in shown] == list(range(77, 138))
    assert shown[0][0] == 0
    for time, index in shown[1:]:
        assert time == pytest.approx((index or 0) / 25 - 3.1, abs=0.002)
    assert probe(out).duration == pytest.approx(2.4, abs=FRAME)
    if "tone" in settings:
        assert heard is not None
        assert heard[0] < 0.15 and heard[1] == pytest.approx(2.4, abs=0.1)


@pytest.mark.parametrize("start", [2.0, 1.985, 2.015])
def test_a_key_frame_within_half_a_frame_is_the_start(tmp_path: Path, start: float) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 6), gop=50)
    assert cut(path, start, 3, tmp_path / "b.mp4").start == 2
    assert cut(path, 1.9, 3, tmp_path / "b.mp4").start == 0


@pytest.mark.parametrize("exact", [False, True])
def test_other_frames(tmp_path: Path, exact: bool) -> None:
    """Variable rate, odd size, and turned by the container."""
    times = [Fraction(index * index, 400) for index in range(80)]
    stored = [np.ascontiguousarray(np.rot90(draw(i, (67, 49)), -1)) for i in range(80)]
    path = render(
        tmp_path / "a.mp4",
        times,
        size=(49, 67),
        pix_fmt="yuv444p",
        drawn=stored,
        rotation=90,
        gop=10,
    )
    out = tmp_path / "b.mp4"
    found = cut(path, 4, 9, out, exact=exact)
    assert found.start == pytest.approx(4)
    shown, _ = decoded(out)
    assert [time for time, _ in shown] == pytest.approx(
        [float(time) - 4 for time in times[40 : 40 + len(shown)]], abs=0.002
    )
    assert len(shown) == (20 if exact else len(shown)) and 20 <= len(shown) <= 24
    info = probe(out)
    assert (info.rotation, info.width, info.height) == (90, 49, 67)


def test_an_end_beyond_the_video_is_its_end(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 5), gop=25)
    assert cut(path, 3, 6, tmp_path / "b.mkv").end == pytest.approx(5)


@pytest.mark.parametrize(
    ("start", "end", "out", "message"),
    [
        (3, 2, "b.mp4", "0 <= start < end"),
        (2, 2, "b.mp4", "0 <= start < end"),
        (-1, 2, "b.mp4", "0 <= start < end"),
        (float("nan"), 2, "b.mp4", "0 <= start < end"),
        (5, 6, "b.mp4", "the video ends at 5.000 s"),
        (1, 2, "b.avi", "got suffix '.avi'"),
        (1, 2, "b", "got suffix ''"),
        (1, 2, "missing/b.mp4", "cannot be written"),
    ],
)
def test_what_cannot_be_cut(
    tmp_path: Path, start: float, end: float, out: str, message: str
) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 5))
    with pytest.raises(GranAlignError, match=message):
        cut(path, start, end, tmp_path / out)
    assert [one.name for one in tmp_path.iterdir()] == ["a.mp4"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", constant(25, 3), codec="ffv1", pix_fmt="gray")
    out = tmp_path / "b.mov"
    out.write_bytes(b"precious")
    with pytest.raises(GranAlignError, match=r"ends in \.mkv"):
        cut(path, 1, 2, out)
    assert out.read_bytes() == b"precious"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.mkv", "b.mov"]
    cut(path, 1, 2, out, exact=True)
    assert decoded(out)[0][0] == (0, 25)


def test_a_video_may_be_cut_in_place(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 6), gop=25)
    cut(path, 2, 4, path)
    assert [index for _, index in decoded(path)[0]] == list(range(50, 100))
