"""Time the indexing of generated videos: ``python -m granalign_fast.bench.commands.indexing``.

ffmpeg encodes a few seconds of a test picture in each codec and size, and repeats their packets up
to the length of a real file. ``granalign index`` with the miniatures then runs in a new process.
With ``--against CHECKOUT`` the code of another checkout takes turns with this one. Processor time
is the sum over all cores; it is steadier than the wall's where other programs run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from granalign_fast.bench.harness.machine import facts
from granalign_fast.errors import GranAlignError

_X264 = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "3")
_X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "bframes=3:log-level=none")
_GOP = 250
"""Frames from one key frame to the next, and of the stretch that is encoded: 10 s."""

FILES = {
    "h264-1080p": ("1920x1080", _X264, 1.0),
    "hevc-1080p": ("1920x1080", _X265, 0.2),
    "h264-4k": ("3840x2160", _X264, 0.1),
    "hevc-4k": ("3840x2160", _X265, 0.1),
}
"""Size, encoder, and the part of the whole length that a file has."""


def generate(folder: Path, name: str, seconds: float) -> Path:
    """Write a video of 25 frames a second.

    Raises:
        GranAlignError: ffmpeg is not installed, or fails.
    """
    size, encoder, part = FILES[name]
    short, path = folder / "short.mp4", folder / f"{name}.mp4"
    picture = f"testsrc2=s={size}:r=25:d={_GOP // 25}"
    options = (*encoder, "-g", str(_GOP), "-pix_fmt", "yuv420p")
    times = max(1, round(seconds * part * 25 / _GOP))
    for line in (
        ("-f", "lavfi", "-i", picture, *options, str(short)),
        ("-stream_loop", str(times - 1), "-i", str(short), "-c", "copy", str(path)),
    ):
        try:
            subprocess.run(("ffmpeg", "-v", "error", "-y", *line), check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise GranAlignError(f"ffmpeg: cannot write the video ({error}); install it") from None
    short.unlink()
    return path


def index_once(checkout: Path, video: Path, scratch: Path) -> tuple[float, float]:
    """Index a video with the code of a checkout; return wall and processor time in seconds."""
    out = scratch / "out"
    environment = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(scratch)}
    line = ("index", str(video), "--models", "miniatures", "--out", str(out))
    before, begin = os.times(), time.perf_counter()
    subprocess.run(
        (sys.executable, "-m", "granalign_fast", *line),
        cwd=checkout,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall, after = time.perf_counter() - begin, os.times()
    shutil.rmtree(out)
    used = after.children_user + after.children_system
    return wall, used - before.children_user - before.children_system


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Time the indexing of generated videos.")
    parser.add_argument("--against", type=Path, help="another checkout, which takes turns")
    parser.add_argument("--seconds", type=float, default=600, help="of the longest file (600)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    options = parser.parse_args(arguments)
    checkouts = {"now": Path(__file__).resolve().parents[2]}
    if options.against:
        checkouts["before"] = options.against.resolve()
    print(facts("cpu")["cpu"], flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in options.files:
            video = generate(folder, file, options.seconds)
            runs: dict[str, list[tuple[float, float]]] = {one: [] for one in checkouts}
            for turn in range(options.rounds):
                order = list(checkouts.items())
                for version, checkout in order if turn % 2 else reversed(order):
                    runs[version].append(index_once(checkout, video, folder))
            seconds = max(1, round(options.seconds * FILES[file][2] * 25 / _GOP)) * _GOP // 25
            for version, pairs in runs.items():
                wall, used = (median(column) for column in zip(*pairs, strict=True))
                print(
                    f"{file}, {seconds} s, {version}: {wall:.1f} s, {seconds / wall:.1f} times as "
                    f"fast as it plays; processor {used:.1f} s",
                    flush=True,
                )
            video.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
