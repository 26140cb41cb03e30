"""The encoder of an exact cut: its codec, its pixel format, and the tags that say how it looks."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .container import Video, display_matrix

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "18", "preset": "medium"},
    "libx265": {"crf": "20", "preset": "medium", "x265-params": "log-level=none"},
    "libvpx-vp9": {"crf": "24", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    "libsvtav1": {"crf": "24", "preset": "8"},
}
"""Options of each encoder: constant quality, at which the result can hardly be told from the
original."""

_H264_FIRST = ("libx264", "libx265")
_WEBM = ("libvpx-vp9", "libsvtav1")
"""The encoders of a container, best first. FFmpeg may be built without 10 bits in the first."""

_RGB_MATRIX, _VIDEO_RANGE = 5, 1
"""FFmpeg's numbers of BT.601, with which swscale converts RGB, and of the range 16 to 235."""


def add_encoder(
    target: OutputContainer, video: Video, frame: VideoFrame, suffix: str
) -> VideoStream:
    """Add a video stream that encodes frames of the video; `frame` is the first of them.

    Frames of more than 8 bits are encoded with 10, so that HDR stays HDR. Size, pixel aspect,
    display matrix, colour tags and the mastering display are those of the source.
    """
    source: Any = video.stream
    name, pixels = _choose(_WEBM if suffix == ".webm" else _H264_FIRST, frame)
    # SVT-AV1 prints its settings on stderr unless this variable limits it to errors.
    os.environ.setdefault("SVT_LOG", "1")
    stream: Any = target.add_stream(
        name,
        rate=source.average_rate or 25,
        options=_with_mastering(name, _ENCODERS[name], frame),
    )
    stream.width, stream.height = frame.width, frame.height
    stream.pix_fmt = pixels
    context = stream.codec_context
    context.time_base = video.time_base
    if source.sample_aspect_ratio:
        context.sample_aspect_ratio = source.sample_aspect_ratio
    for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
        setattr(context, tag, getattr(source.codec_context, tag))
    if frame.format.is_rgb:
        context.colorspace, context.color_range = _RGB_MATRIX, _VIDEO_RANGE
    matrix = display_matrix(frame)
    if matrix is not None:
        stream.set_display_matrix(matrix.tolist())
    encoder: VideoStream = stream
    return encoder


def _choose(encoders: tuple[str, ...], frame: VideoFrame) -> tuple[str, str]:
    """Return the encoder and the pixel format that lose least of the frame."""
    import av
    from av.codec.codec import UnknownCodecError

    formats: dict[str, set[str]] = {}
    for name in encoders:
        try:
            formats[name] = {one.name for one in av.Codec(name, "w").video_formats or ()}
        except UnknownCodecError:
            continue
    for pixels in _pixel_formats(frame):
        for name, possible in formats.items():
            if pixels in possible:
                return name, pixels
    return encoders[0], "yuv420p"


def _pixel_formats(frame: VideoFrame) -> Iterator[str]:
    """Yield pixel formats for a frame, the one that loses least first."""
    # Only 4:4:4 can have an odd width or height: the others share colour between pixels.
    odd = bool(frame.width % 2 or frame.height % 2)
    name = frame.format.name
    planes = "444" if odd else "420"
    if not frame.format.is_rgb and (not odd or "444" in name):
        yield name
    if any(component.bits > 8 for component in frame.format.components):
        yield f"yuv{planes}p10le"
    yield f"yuv{planes}p"


_MASTERING = {
    "libx264": ("x264-params", "mastering-display", "cll", True),
    "libx265": ("x265-params", "master-display", "max-cll", True),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light", False),
}
"""For each encoder: the option that takes its own settings, the names of the two settings, and
whether it counts chromaticities in 1/50000 and luminance in 1/10000 cd/m2, or writes decimals."""


def _with_mastering(name: str, options: dict[str, str], frame: VideoFrame) -> dict[str, str]:
    """Return the encoder's options with the mastering display and light level of the source."""
    display: Any = frame.side_data.get("MASTERING_DISPLAY_METADATA")
    light: Any = frame.side_data.get("CONTENT_LIGHT_LEVEL")
    if name not in _MASTERING:
        return options
    option, display_key, light_key, counts = _MASTERING[name]
    words = [options[option]] if option in options else []
    if display is not None and (text := _mastering_display(bytes(display), counts=counts)):
        words.append(f"{display_key}={text}")
    if light is not None:
        most, average = struct.unpack_from("=II", bytes(light))
        words.append(f"{light_key}={most},{average}")
    return options | ({option: ":".join(words)} if words else {})


def _mastering_display(data: bytes, *, counts: bool) -> str | None:
    """Return FFmpeg's AVMasteringDisplayMetadata as encoders read it, or None if it is partial."""
    numbers = struct.unpack_from("=22i", data)
    pairs = list(zip(numbers[:20:2], numbers[1:20:2], strict=True))
    if not (numbers[20] and numbers[21]) or any(below == 0 for _, below in pairs):
        return None
    units = [50_000] * 8 + [10_000] * 2
    values = [
        str(round(unit * above / below)) if counts else f"{above / below:.5f}"
        for unit, (above, below) in zip(units, pairs, strict=True)
    ]
    red, green, blue, white = (",".join(values[i : i + 2]) for i in range(0, 8, 2))
    return f"G({green})B({blue})R({red})WP({white})L({values[9]},{values[8]})"
