"""Read what a cut list says about its source: frame rate, time code, size and audio."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from fractions import Fraction

from .container import open_video
from .frame_rate import measure_rate
from .frames import probe
from .reader import FrameReader
from .timecode import read_timecode


class VariableFrameRateWarning(UserWarning):
    """The frames of a video last differently long, but a cut list counts frames of one length.

    The message names the file, the durations, and the rate in which the cut list counts.
    """


@dataclass(frozen=True, slots=True)
class Source:
    """The properties of a video file that `read_source` returns."""

    rate: Fraction | None
    """Exact frames per second, checked against the packets; for a variable rate the nearest nominal
    one. None if the file has no rate."""
    first_frame: float = 0.0
    """Seconds from the container's start to the first frame, from which time codes count."""
    timecode: str | None = None
    """Time code of the first frame, such as ``18:45:23;12``; a semicolon marks drop-frame. None if
    the file has no time code."""
    size: tuple[int, int] | None = None
    """Width and height of the displayed picture."""
    audio_channels: int = 0
    """Channels of the first audio stream; 0 if there is none."""
    audio_rate: int = 0
    """Samples per second of the first audio stream; 0 if there is none."""


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read a video file's properties for a cut list; the first frame alone is decoded.

    A `VariableFrameRateWarning` says that the frame rate is variable.

    Raises:
        GranAlignError: as for `probe`.
    """
    info = probe(path)
    with open_video(path) as video:
        _, first = FrameReader(video, Fraction(2), skip=False).decode_first()
    # A file without seeking is read from its start again.
    with open_video(path) as video:
        measured = measure_rate(video, interlaced=first.interlaced_frame)
        rate = None if measured is None else measured.rate
        code = None if rate is None else read_timecode(video, first, rate)
        audio = next(iter(video.container.streams.audio), None)
        channels = 0 if audio is None else audio.codec_context.channels
        samples = 0 if audio is None else audio.codec_context.sample_rate
    if measured is not None and measured.is_variable:
        warnings.warn(
            f"{path}: variable frame rate, frames last {measured.shortest * 1000:.1f} to "
            f"{measured.longest * 1000:.1f} ms; time codes count {float(measured.rate):.6g} "
            f"frames per second",
            VariableFrameRateWarning,
            stacklevel=2,
        )
    return Source(rate, info.first_frame, code, (info.width, info.height), channels, samples)
