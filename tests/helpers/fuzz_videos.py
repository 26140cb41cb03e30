"""Read hundreds of damaged videos: ``cd tests && python -m helpers.fuzz_videos 500 [SEED]``.

Every file is read in its own process, with 2 GB of memory and 10 seconds of a processor (and 60
by the wall, so that a busy machine is no hang). The result must be a
`GranAlignError`, or frames whose clips count up and whose times lie before their clips' ends. If
only pictures are damaged and no time stamps, the times must also belong to the pictures.
"""

from __future__ import annotations

import collections
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.video.frames import DamagedVideoWarning, probe, read_frames
from helpers.videos import Image, constant, draw, read, render

RATE, SECONDS, CLIP = 25, 8, 1.0
MEMORY, LIMIT, WALL_LIMIT = 2 * 2**30, 10, 60
MAX_CLIPS = 5000
"""Clips to read of a file: a damaged header may claim any length for the last picture."""
OUTCOMES = {0: "all frames", 1: "frames and a warning", 2: "refused"}
WRONG = 9

Mutation = Callable[[random.Random, bytearray, int, int], bytes]


def flip(rng: random.Random, data: bytearray, low: int, high: int) -> bytes:
    for _ in range(rng.choice((1, 3, 10, 100))):
        data[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    return bytes(data)


def zero(rng: random.Random, data: bytearray, low: int, high: int) -> bytes:
    begin, end = sorted((rng.randrange(low, high), rng.randrange(low, high)))
    data[begin:end] = bytes(end - begin)
    return bytes(data)


def noise(rng: random.Random, data: bytearray, low: int, high: int) -> bytes:
    begin = rng.randrange(low, high)
    end = min(high, begin + rng.choice((4, 100, 2000)))
    data[begin:end] = rng.randbytes(end - begin)
    return bytes(data)


def cut_off(rng: random.Random, data: bytearray, low: int, high: int) -> bytes:
    return bytes(data[: rng.randrange(low, high)])


def take_out(rng: random.Random, data: bytearray, low: int, high: int) -> bytes:
    begin, end = sorted((rng.randrange(low, high), rng.randrange(low, high)))
    return bytes(data[:begin] + data[end:])


def repeat(rng: random.Random, data: bytearray, low: int, high: int) -> bytes:
    begin, end = sorted((rng.randrange(low, high), rng.randrange(low, high)))
    return bytes(data[:end] + data[begin:])


ANYWHERE: tuple[Mutation, ...] = (flip, flip, zero, noise, noise, cut_off, take_out, repeat)
IN_PICTURES: tuple[Mutation, ...] = (flip, zero, noise)


def sources(folder: Path) -> list[Path]:
    times = constant(RATE, SECONDS)
    return [
        render(folder / "a.mp4", times, gop=50, bframes=2),
        render(folder / "b.mp4", times, gop=10, tone=SECONDS, muxing={"movflags": "faststart"}),
        render(folder / "c.mkv", times, gop=30, bframes=3, tone=SECONDS),
        render(folder / "d.ts", times, gop=20, bframes=3, start=Fraction(7, 5)),
        render(folder / "e.avi", times, codec="mpeg4", gop=12, time_base=Fraction(1, RATE)),
        render(folder / "f.webm", times, codec="libvpx-vp9", options={"deadline": "realtime"}),
        render(folder / "g.flv", times, gop=25, bframes=2, tone=SECONDS),
        render(folder / "h.gif", times, codec="gif", pix_fmt="gray"),
        render(folder / "i.mov", times, codec="libx265", gop=25, bframes=2, muxing=FRAGMENTS),
        render(folder / "j.vob", times, codec="mpeg2video", gop=12, time_base=Fraction(1, RATE)),
    ]


SOURCES = 10
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def mutate(rng: random.Random, source: Path) -> tuple[bytes, bool]:
    """Return a damaged copy, and whether its time stamps are undamaged."""
    data = bytearray(source.read_bytes())
    only_pictures = source.suffix == ".mp4" and rng.random() < 0.5
    if only_pictures:
        begin = data.index(b"mdat") + 4
        size = int.from_bytes(data[begin - 8 : begin - 4], "big")
        return rng.choice(IN_PICTURES)(rng, data, begin, begin - 8 + size), True
    return rng.choice(ANYWHERE)(rng, data, 0, len(data)), False


def is_clear(image: Image, number: int) -> bool:
    """Return True if the image is an undamaged picture of frame `number`."""
    difference = image.astype(np.int16) - draw(number, image.shape[:2])
    return float(np.abs(difference).mean()) < 8


def check(path: Path, whole_times: bool) -> int:
    """Return the outcome, a key of `OUTCOMES`, or raise AssertionError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            probe(path, clip_seconds=CLIP)
            before = -1.0
            for clip, frame in enumerate(read_frames(path, clip_seconds=CLIP)):
                assert frame.clip == clip, f"clip {frame.clip} came as number {clip}"
                assert before <= frame.time < (clip + 1) * CLIP, f"{frame.time} in clip {clip}"
                assert frame.image.ndim == 3 and frame.image.shape[2] == 3
                if whole_times:
                    number = read(frame.image)
                    steps = frame.time * RATE
                    assert abs(steps - round(steps)) < 0.001, f"no frame is at {frame.time} s"
                    # A damaged picture may show any number; a clear one must be recent.
                    if number is not None and is_clear(frame.image, number):
                        age = abs(number / RATE - frame.time)
                        assert age <= CLIP, f"frame {number} came at {frame.time} s"
                before = frame.time
                if clip >= MAX_CLIPS:
                    break
        except GranAlignError as error:
            assert "\n" not in str(error)
            return 2
    assert all(issubclass(one.category, DamagedVideoWarning) for one in caught), caught
    return 1 if caught else 0


def in_a_fork(work: Callable[[], int]) -> int:
    """Run `work` in a child process and return the exit code.

    Every encoder and decoder runs in a child. FFmpeg's threads do not survive a fork, and the
    locks that they hold would stay locked in the child.
    """
    child = os.fork()
    if child == 0:
        code = WRONG
        try:
            code = work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def limited(path: Path, whole_times: bool) -> str:
    """Run `check` in its own process, with limits, and return the outcome in words."""

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        signal.alarm(WALL_LIMIT)
        return check(path, whole_times)

    code = in_a_fork(work)
    return OUTCOMES.get(code, "wrong" if code == WRONG else f"ended by signal {-code}")


def main(count: int, seed: int) -> int:
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        assert in_a_fork(lambda: len(sources(Path(folder)))) == SOURCES
        originals = sorted(Path(folder).iterdir())
        for source in originals:
            assert limited(source, source.suffix == ".mp4") == OUTCOMES[0], source.name
        for number in range(count):
            rng = random.Random(seed * 1_000_003 + number)
            source = originals[number % len(originals)]
            broken, whole_times = mutate(rng, source)
            path = source.with_name(f"{number}{source.suffix}")
            path.write_bytes(broken)
            outcome = limited(path, whole_times)
            outcomes[outcome] += 1
            if outcome not in OUTCOMES.values():
                print(f"seed {seed}, file {number} ({source.name}): {outcome}", flush=True)
            path.unlink()
    print(", ".join(f"{outcome}: {times}" for outcome, times in sorted(outcomes.items())))
    return 0 if set(outcomes) <= set(OUTCOMES.values()) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
