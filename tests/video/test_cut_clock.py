"""Cuts of files whose clock is discontinuous: on the clock of the index, with their sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.ffmpeg import ffmpeg, ffprobe
from helpers.times import SIZE, shown_frames
from helpers.videos import draw, read

from granalign_fast.video.cutting import cut
from granalign_fast.video.frames import probe, read_frames

RATE, SECONDS = 25, 20
_BEEPS = f"aevalsrc='0.8*sin(2000*PI*t)*lt(mod(t,1),0.04)':s=48000:d={SECONDS}"
CODECS = ("-c:v", "libx264", "-g", "25", "-bf", "2", "-sc_threshold", "0", "-pix_fmt", "yuv420p")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 s with a key frame and a beep each second; frames show their number."""
    path = tmp_path_factory.mktemp("recording") / "a.mp4"
    raw = b"".join(draw(number, SIZE).tobytes() for number in range(SECONDS * RATE))
    pictures = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", str(RATE), "-i", "-")
    ffmpeg(*pictures, "-f", "lavfi", "-i", _BEEPS, *CODECS, "-c:a", "aac", path, data=raw)
    return path


def joined(recording: Path, path: Path) -> Path:
    """Two recordings in one file, as ``cat`` makes it."""
    ffmpeg("-i", recording, "-c", "copy", path)
    data = path.read_bytes()
    path.write_bytes(data + (data[13:] if path.suffix == ".flv" else data))
    return path


def thrice(recording: Path, path: Path) -> Path:
    """Three recordings, of which the second begins 500 s behind the first, and the third anew."""
    parts = []
    for offset in ("10", "510", "13"):
        part = path.with_name(f"part{path.suffix}")
        ffmpeg("-i", recording, "-c", "copy", "-output_ts_offset", offset, part)
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


def with_gap(recording: Path, path: Path) -> Path:
    """Without the packets from 8 to 11 s."""
    ffmpeg("-i", recording, "-c", "copy", path)
    entries = ("-select_streams", "v", "-show_entries", "packet=pos,flags", "-of", "csv=p=0")
    lines = [line.split(",") for line in ffprobe(*entries, path).split()]
    keys = [int(pos) for pos, flags, *_ in lines if "K" in flags]
    data = path.read_bytes()
    path.write_bytes(data[: keys[8]] + data[keys[11] :])
    return path


def wrapped(recording: Path, path: Path) -> Path:
    """33 bits of 90 kHz end at 8 s of the recording."""
    ffmpeg("-i", recording, "-c", "copy", "-output_ts_offset", "95435", path)
    return path


def beeps(path: Path) -> list[float]:
    """Return the times at which beeps begin in what ffmpeg decodes, on the file's own clock."""
    raw = ffmpeg(
        *("-copyts", "-i", path, "-map", "0:a:0", "-ac", "1", "-ar", "48000"),
        *("-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"),
    )
    loud = np.flatnonzero(np.abs(np.frombuffer(raw, np.float32)) > 0.3)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-48000) > 24000)]
    return [float(start) / 48000 for start in starts]


Make = Callable[[Path, Path], Path]
FILES: list[tuple[Make, str, list[tuple[float, float]]]] = [
    (joined, "ts", [(0, 20), (20, 40)]),
    (joined, "mkv", [(0, 20), (20, 40)]),
    (joined, "flv", [(0, 20), (20, 40)]),
    (thrice, "ts", [(0, 20), (500, 520), (520, 540)]),
    (with_gap, "ts", [(0, 8), (11, 20)]),
    (wrapped, "ts", [(0, 20)]),
]


@pytest.fixture(scope="module")
def files(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        f"{make.__name__}.{suffix}": make(recording, folder / f"{make.__name__}.{suffix}")
        for make, suffix, _ in FILES
    }


@pytest.mark.filterwarnings("ignore::granalign_fast.video.frames.DamagedVideoWarning")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("make", "suffix", "stretches"), FILES)
def test_a_cut_is_on_the_clock_of_the_index(
    files: dict[str, Path],
    tmp_path: Path,
    make: Make,
    suffix: str,
    stretches: list[tuple[float, float]],
    exact: bool,
) -> None:
    path = files[f"{make.__name__}.{suffix}"]
    # Sound has up to 21 ms of priming before the picture.
    late = probe(path).first_frame
    assert late < 0.03 and probe(path).duration == pytest.approx(stretches[-1][1], abs=0.06)

    def due(time: float) -> list[int]:
        """The numbers that a frame at this time may show."""
        return [
            number
            for begin, end in stretches
            if begin - 0.1 <= time < end + 0.1
            # The stretch behind a gap belongs to the same recording.
            for number in range(SECONDS * RATE)
            # The first frame of an exact cut may have begun up to 40 ms before the cut.
            if abs((begin if make is not with_gap else 0) + number / RATE + late - time) < 0.045
        ]

    # The index agrees with it.
    for frame in read_frames(path):
        if not frame.missing:
            assert read(frame.image) in due(frame.time)
    first = stretches[0][1]
    last = stretches[-1][0]
    moments = [(first - 2.6, first + 0.4), (last + 5.24, last + 7.04)]
    if len(stretches) > 1 and last - first < 10:  # across the join
        moments.append((first - 1.5, last + 1.5))
    for number, (start, end) in enumerate(moments):
        out = tmp_path / f"{number}.mp4"
        result = cut(path, start, end, out, exact=exact)
        assert result.left_out == ()
        assert result.start == pytest.approx(start, abs=0.04 if exact else 1.05)
        shown = shown_frames(out)
        for one in shown:
            assert one.number in due(one.time + result.start)
        length = sum(
            max(0.0, min(stop, end) - max(begin, result.start)) for begin, stop in stretches
        )
        assert len(shown) == pytest.approx(length * RATE, abs=5)
        # Every second of the recordings has its beep, and there are no others. What is at an edge
        # of the cut may be cut.
        low, high = result.start + 0.15, min(result.end, end) - 0.15
        heard = [beep + result.start for beep in beeps(out)]
        heard = [beep for beep in heard if low < beep < high]
        seconds = [float(second) for second in range(int(stretches[-1][1]))]
        expected = [
            second
            for second in seconds
            if low < second < high and any(begin <= second < stop for begin, stop in stretches)
        ]
        assert heard == pytest.approx(expected, abs=0.08)
