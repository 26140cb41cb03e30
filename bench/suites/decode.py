"""Suite ``decode``: read from a video file one frame for each clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.bench.harness.limits import Work
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, require
from granalign_fast.bench.harness.workloads import video
from granalign_fast.bench.peers import runtimes as peers
from granalign_fast.video.frames import VideoInfo, probe, read_clips, read_frames

_CLIP_SECONDS = 2.0
_CHOSEN = 8
"""Clips that are read at random."""
_PIXEL_TOLERANCE = 3.0
"""Largest mean difference of two decoders' pixels, of 255: their colour conversions differ."""


def run(bench: Bench) -> None:
    """Read all clips in order, a few at random, and a file's properties."""
    path = video(bench.folder)
    info = probe(path)
    sizes = {"seconds": round(info.duration), "wide": info.width, "high": info.height}
    _all(bench, path, info, sizes)
    _some(bench, path, info, sizes)
    bench.race(
        "probe a file",
        [Runner(run=probe)],
        lambda rng: path,
        lambda inputs, outputs: require(
            outputs[OURS].clips == info.clips, "probe: another number of clips"
        ),
        unit="file",
        clock=HostClock(),
        parameters=sizes,
    )


def middles(info: VideoInfo, clips: list[int]) -> list[float]:
    """Return the middle of each clip, in seconds: the time of its frame."""
    ends = [min((clip + 1) * _CLIP_SECONDS, info.duration) for clip in clips]
    return [(clip * _CLIP_SECONDS + end) / 2 for clip, end in zip(clips, ends, strict=True)]


def _work(path: Path, info: VideoInfo, frames: int) -> Work:
    """Count bytes: the file, every decoded picture at 12 bits a pixel, the results at 24."""
    pixels = info.width * info.height
    pictures = info.duration * (info.frame_rate or 25.0)
    return Work(path.stat().st_size + 1.5 * pixels * pictures + 3.0 * pixels * frames)


def _readers(bench: Bench, path: Path) -> dict[str, Any]:
    """Return the peers that read frames by their times, by name."""
    readers: dict[str, Any] = {"PyAV, every frame": peers.every_frame}
    for peer, reader in (
        (peers.OPENCV, peers.opencv_frames()),
        (peers.TORCHCODEC, peers.torchcodec_frames(bench.note)),
    ):
        if reader is not None:
            readers[peer.name] = reader
    return readers


def _judged(name: str, images: list[Any], expected: list[Any]) -> None:
    require(len(images) == len(expected), f"{name}: {len(images)} frames, not {len(expected)}")
    for number, (one, other) in enumerate(zip(images, expected, strict=True)):
        off = float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())
        require(off < _PIXEL_TOLERANCE, f"{name}: frame {number} is another picture")


def _all(bench: Bench, path: Path, info: VideoInfo, sizes: Mapping[str, Any]) -> None:
    clips = list(range(info.clips))
    times = middles(info, clips)
    work = _work(path, info, info.clips)

    def judge(inputs: Path, outputs: Mapping[str, Any]) -> None:
        for name, images in outputs.items():
            _judged(name, images, outputs["PyAV, every frame"])

    device = "cuda" if bench.on_gpu else "cpu"
    runners = [
        Runner(run=lambda p: [frame.image for frame in read_frames(p, device=device)], work=work)
    ]
    runners += [
        Runner(name=name, run=lambda p, read=read: read(p, times), work=work, peer=True)  # type: ignore[misc]
        for name, read in _readers(bench, path).items()
    ]
    samples = bench.race(
        "a frame for each clip",
        runners,
        lambda rng: path,
        judge,
        unit="clip",
        items=info.clips,
        clock=HostClock(),
        parameters=sizes,
    )
    bench.constant("decode_seconds_per_clip", samples[OURS].median / info.clips)


def _some(bench: Bench, path: Path, info: VideoInfo, sizes: Mapping[str, Any]) -> None:
    count = min(_CHOSEN, info.clips)

    def draw(rng: np.random.Generator) -> list[int]:
        chosen: list[int] = np.sort(rng.choice(info.clips, count, replace=False)).tolist()
        return chosen

    def judge(inputs: list[int], outputs: Mapping[str, Any]) -> None:
        for name, images in outputs.items():
            _judged(name, images, outputs["PyAV, every frame"])

    runners = [Runner(run=lambda clips: read_clips(path, clips))]
    runners += [
        Runner(name=name, run=lambda c, read=read: read(path, middles(info, c)), peer=True)  # type: ignore[misc]
        for name, read in _readers(bench, path).items()
    ]
    bench.race(
        "frames of a few clips",
        runners,
        draw,
        judge,
        unit="clip",
        items=count,
        clock=HostClock(),
        parameters=dict(sizes) | {"clips": count},
    )
