"""Cut a video with a flash and a beep each second; picture and sound stay together in every cut."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.ffmpeg import ffmpeg

from granalign_fast.video.cutting import cut
from granalign_fast.video.frames import probe

RATE = 48_000
LATE = 1.6
"""Seconds by which the picture begins later than the sound in the late sources."""

_FLASHES = "color=black:s=64x48:r=25:d=8,drawbox=t=fill:c=white:enable='lt(mod(n,25),1)'"
_BEEPS = f"aevalsrc='0.8*sin(2000*PI*t)*lt(mod(t,1),0.04)':s={RATE}:d={{seconds}}"
_H264 = ("-c:v", "libx264", "-g", "50", "-bf", "3", "-sc_threshold", "0", "-c:a", "aac")
_VP9 = ("-c:v", "libvpx-vp9", "-g", "50", "-c:a", "libopus")


def source(path: Path, *, late: float = 0.0) -> Path:
    """Write a video with a white frame and a beep at each second since its first picture."""
    beeps = _BEEPS.format(seconds=8 + late).replace("mod(t,1)", f"mod(t-{late}+8,1)")
    ffmpeg(
        *("-itsoffset", str(late), "-f", "lavfi", "-i", _FLASHES, "-f", "lavfi", "-i", beeps),
        *(_VP9 if path.suffix == ".webm" else _H264),
        # Without this option ffmpeg fills the time before a late picture.
        *("-fps_mode", "passthrough", path),
    )
    return path


def flashes(path: Path) -> list[float]:
    """Return the times at which ffmpeg shows a white frame, on the file's own clock."""
    printed = ffmpeg(
        *("-copyts", "-i", path, "-map", "0:v", "-fps_mode", "passthrough"),
        *("-vf", "signalstats,metadata=print:key=lavfi.signalstats.YAVG:file=-", "-f", "null", "-"),
    ).decode()
    frames = re.findall(r"pts_time:(\S+)\s+lavfi\.signalstats\.YAVG=(\S+)", printed)
    return [float(time) for time, luma in frames if float(luma) > 128]


def beeps(path: Path) -> list[float]:
    """Return the times at which beeps begin in what ffmpeg decodes, on the file's own clock."""
    raw = ffmpeg(
        *("-copyts", "-i", path, "-map", "0:a:0", "-ac", "1", "-ar", str(RATE)),
        *("-af", "aresample=async=1:first_pts=0", "-f", "f32le", "-"),
    )
    loud = np.flatnonzero(np.abs(np.frombuffer(raw, np.float32)) > 0.3)
    starts = loud[np.flatnonzero(np.diff(loud, prepend=-RATE) > RATE // 2)]
    return [float(start) / RATE for start in starts]


SOURCES = {
    "mp4": ("a.mp4", 0.0),
    "matroska": ("a.mkv", 0.0),
    "transport stream": ("a.ts", 0.0),
    "webm": ("a.webm", 0.0),
    "late mp4": ("a.mp4", LATE),
    "late matroska": ("a.mkv", LATE),
    "late transport stream": ("a.ts", LATE),
}
CUTS = [
    (name, suffix, exact)
    for name, (file, _) in SOURCES.items()
    for suffix in (".mp4", ".mov", ".mkv", ".webm")
    for exact in (False, True)
    # A copy of VP9 fits no .mov, and one of H.264 no .webm.
    if exact or suffix not in ((".mov",) if file == "a.webm" else (".webm",))
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    written = {}
    for name, (file, late) in SOURCES.items():
        path = written[name] = source(tmp_path_factory.mktemp("sources") / file, late=late)
        # A transport stream begins with the sound, which has 21 ms of priming.
        assert probe(path).first_frame == pytest.approx(late, abs=0.05)
    return written


@pytest.mark.parametrize("start", [0.4, 4.3])
@pytest.mark.parametrize(("name", "suffix", "exact"), CUTS)
def test_flash_and_beep_stay_together(
    tmp_path: Path, sources: dict[str, Path], name: str, suffix: str, exact: bool, start: float
) -> None:
    out = tmp_path / f"cut{suffix}"
    result = cut(sources[name], start, start + 3.4, out, exact=exact)
    assert result.left_out == ()
    seen, heard = flashes(out), beeps(out)
    assert len(seen) >= 2
    # The file's clock is that of the source, moved by the start of the cut: each second since the
    # first picture has a flash and a beep, and beeps come before it. What is at an edge may be cut.
    late, length = SOURCES[name][1], result.end - result.start
    due = [time for k in range(-1, 9) if 0.05 < (time := k + late - result.start) < length - 0.1]
    for time in due:
        assert min(abs(time - beep) for beep in heard) < 0.06
        if time + result.start >= late:
            flash = min(seen, key=lambda one: abs(one - time))
            assert abs(time - flash) < 0.05
            assert min(abs(flash - beep) for beep in heard) < 0.02
