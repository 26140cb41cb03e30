"""Cut moments, and judge them by decoding: every frame shows its number in the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.videos import constant, draw, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing
from granalign_fast.video import cutting
from granalign_fast.video.cutting import Cut, _Cutter, check_cut, cut
from granalign_fast.video.frames import probe

FRAME = 0.04


def decoded(path: Path) -> tuple[list[tuple[float, int | None]], tuple[float, float] | None]:
    """Return times and numbers of the frames, and start and end of the audio."""
    import av

    with av.open(str(path)) as container:
        shown = [
            (float(frame.time or 0), read(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        ]
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return shown, None
        samples = [
            (frame.time, frame.time + frame.samples / frame.sample_rate)
            for frame in container.decode(audio=0)
        ]
    return shown, (samples[0][0], samples[-1][1])


SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4": ("a.mp4", {"bframes": 3, "tone": 10}),
    "matroska": ("a.mkv", {"bframes": 3, "tone": 10}),
    "transport stream": ("a.ts", {"bframes": 3, "tone": 10, "start": Fraction(7, 5)}),
    "late start": ("a.mp4", {"start": Fraction(7, 5)}),
    "open GOPs": (
        "a.mp4",
        {"bframes": 3, "options": {"x264-params": "open-gop=1:scenecut=0"}},
    ),
    "ten bits": ("a.mkv", {"pix_fmt": "yuv420p10le"}),
}


PAIRS = [*((name, ".mp4") for name in SOURCES), ("mp4", ".mkv"), ("matroska", ".mov")]


@pytest.mark.parametrize(("name", "suffix"), PAIRS)
def test_a_copy_begins_at_the_key_frame_before_the_start(
    tmp_path: Path, name: str, suffix: str
) -> None:
    file, settings = SOURCES[name]
    path = render(tmp_path / file, constant(25, 10), gop=50, **settings)
    out = tmp_path / f"out{suffix}"
    late = probe(path).first_frame  # in a transport stream the audio begins earlier
    result = cut(path, 3.1 + late, 5.5 + late, out)
    assert result == Cut(out, pytest.approx(2 + late), result.end, copied=True)
    assert 5.499 + late <= result.end <= 5.5 + late + 5 * FRAME
    shown, audio = decoded(out)
    assert [index for _, index in shown] == list(range(50, 50 + len(shown)))
    for time, index in shown:
        assert time - shown[0][0] == pytest.approx((index or 0) / 25 - 2, abs=0.002)
    assert shown[-1][0] + FRAME == pytest.approx(result.end - result.start, abs=0.01)
    assert probe(out).duration == pytest.approx(result.end - result.start, abs=0.01)
    if "tone" in settings:
        assert audio is not None
        # An audio packet lasts 0.064 s here, and an AAC decoder may drop the first one.
        assert audio[0] - shown[0][0] < 0.15 and audio[1] == pytest.approx(3.5, abs=0.1)


@pytest.mark.parametrize(("name", "suffix"), PAIRS)
def test_an_exact_cut_begins_and_ends_at_the_given_times(
    tmp_path: Path, name: str, suffix: str
) -> None:
    file, settings = SOURCES[name]
    path = render(tmp_path / file, constant(25, 10), gop=50, **settings)
    out = tmp_path / f"out{suffix}"
    late = probe(path).first_frame
    result = cut(path, 3.1 + late, 5.5 + late, out, exact=True)
    assert result == Cut(out, pytest.approx(3.1 + late), pytest.approx(5.5 + late), copied=False)
    shown, audio = decoded(out)
    assert [index for _, index in shown] == list(range(77, 138))
    assert shown[0][0] == 0
    for time, index in shown[1:]:
        assert time == pytest.approx((index or 0) / 25 - 3.1, abs=0.002)
    assert probe(out).duration == pytest.approx(2.4, abs=FRAME)
    if "tone" in settings:
        assert audio is not None
        assert audio[0] < 0.15 and audio[1] == pytest.approx(2.4, abs=0.1)


@pytest.mark.parametrize("start", [2.0, 1.985, 2.015])
def test_a_key_frame_within_half_a_frame_is_the_start(tmp_path: Path, start: float) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 6), gop=50)
    assert cut(path, start, 3, tmp_path / "b.mp4").start == 2
    assert cut(path, 1.9, 3, tmp_path / "b.mp4").start == 0


@pytest.mark.parametrize("exact", [False, True])
def test_unusual_frames(tmp_path: Path, exact: bool) -> None:
    """A variable rate, an odd size, and a rotation in the container."""
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
    result = cut(path, 4, 9, out, exact=exact)
    assert result.start == pytest.approx(4)
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
def test_wrong_times_and_paths_are_refused(
    tmp_path: Path, start: float, end: float, out: str, message: str
) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 5))
    with pytest.raises(GranAlignError, match=message):
        cut(path, start, end, tmp_path / out)
    assert [one.name for one in tmp_path.iterdir()] == ["a.mp4"]


def test_an_error_keeps_an_existing_file(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", constant(25, 3), codec="ffv1", pix_fmt="gray")
    out = tmp_path / "b.mov"
    out.write_bytes(b"precious")
    with pytest.raises(GranAlignError, match=r"does not take the ffv1 .* ends in \.mp4 or \.mkv,"):
        cut(path, 1, 2, out)
    assert out.read_bytes() == b"precious"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.mkv", "b.mov"]
    cut(path, 1, 2, out, exact=True)
    assert decoded(out)[0][0] == (0, 25)


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv"])
@pytest.mark.parametrize("exact", [False, True])
def test_only_the_frames_of_the_moment_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, exact: bool
) -> None:
    path = render(tmp_path / file, constant(25, 30), tone=0 if file == "a.avi" else 30)
    frames: list[Any] = []
    advance = _Cutter._advance

    def counted(self: _Cutter, shown: Any, frame: Any, encode_frame: Any) -> Any:
        frames.append(frame.pts)
        return advance(self, shown, frame, encode_frame)

    monkeypatch.setattr(_Cutter, "_advance", counted)
    late = probe(path).first_frame
    cut(path, 28 + late, 29 + late, tmp_path / "b.mkv", exact=exact)
    assert 25 <= len(frames) <= 60 if exact else not frames


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv", "a.ts", "a.flv"])
def test_an_exact_cut_with_false_key_frames(tmp_path: Path, file: str) -> None:
    """With intra refresh, packets marked as key frames only begin to renew the picture."""
    options = {"x264-params": "intra-refresh=1:scenecut=0"}
    path = render(tmp_path / file, constant(25, 10), gop=40, options=options)
    cut(path, 6.5, 8, tmp_path / "b.mp4", exact=True)
    assert [index for _, index in decoded(tmp_path / "b.mp4")[0]] == list(range(162, 200))


def test_an_exact_cut_of_a_damaged_video(tmp_path: Path) -> None:
    """The cut has the frames that can be decoded, as `read_frames` does."""
    import av

    path = render(tmp_path / "a.mp4", constant(25, 10))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        damaged: list[Any] = [p for p in container.demux(video=0) if p.pts is not None][80:83]
    for packet in damaged:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    out = tmp_path / "b.mp4"
    assert cut(path, 2, 6, out, exact=True) == Cut(out, 2, 6, copied=False)
    shown = [index for _, index in decoded(out)[0]]
    assert shown[:30] == list(range(50, 80)) and shown[-50:] == list(range(100, 150))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, exact: bool
) -> None:
    @contextmanager
    def small(path: Path) -> Iterator[Any]:
        with replacing(path) as sink:
            write = sink.write

            def fail(data: bytes) -> int:
                if sink.tell() + len(data) > 5000:
                    raise OSError(28, "No space left on device")
                return write(data)

            yield SimpleNamespace(write=fail, seek=sink.seek, tell=sink.tell)

    path = render(tmp_path / "a.mp4", constant(25, 8), size=(240, 320))
    monkeypatch.setattr(cutting, "replacing", small)
    with pytest.raises(GranAlignError, match=r"written \(No space left on device\); make room"):
        cut(path, 1, 7, tmp_path / f"b{suffix}", exact=exact)
    assert [one.name for one in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix", "message"),
    [
        (
            "libvpx-vp9",
            "yuv420p",
            ".mov",
            r"take the vp9 .* \.mp4 or \.mkv or \.webm, or use --exact",
        ),
        ("libvpx", "yuv420p", ".mp4", r"take the vp8 .* ends in \.mkv or \.webm, or use --exact"),
        (
            "libx264",
            "yuv420p",
            ".webm",
            r"take the h264 .* \.mp4 or \.mov or \.mkv, or use --exact",
        ),
        ("rawvideo", "yuv420p", ".mkv", r"take the rawvideo .* ends in \.mov, or use --exact"),
    ],
)
def test_a_codec_that_the_format_does_not_support(
    tmp_path: Path, codec: str, pix_fmt: str, suffix: str, message: str
) -> None:
    path = render(tmp_path / "a.mkv", constant(25, 2), codec=codec, pix_fmt=pix_fmt)
    out = tmp_path / f"b{suffix}"
    for refused in (lambda: check_cut(path, out), lambda: cut(path, 0.5, 1, out)):
        with pytest.raises(GranAlignError, match=f"{suffix} does not {message}"):
            refused()
    assert [one.name for one in tmp_path.iterdir()] == ["a.mkv"]
    check_cut(path, out, exact=True)
    cut(path, 0.5, 1, out, exact=True)
    assert [index for _, index in decoded(out)[0]] == list(range(12, 25))


def test_a_video_is_not_overwritten_by_its_cut(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 6), gop=25)
    whole = path.read_bytes()
    (tmp_path / "b.mp4").hardlink_to(path)
    (tmp_path / "c.mp4").symlink_to(path)
    for out in ("a.mp4", "b.mp4", "c.mp4"):
        with pytest.raises(GranAlignError, match=f"{out}: got the video itself"):
            cut(path, 2, 4, tmp_path / out)
    assert path.read_bytes() == whole
