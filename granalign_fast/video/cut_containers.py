"""Tell which of the containers that a cut may have takes a stream of the source as it is."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError

from .container import Video, ffmpeg_reason, open_video

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.stream import Stream

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""FFmpeg's name of the container format for each suffix that a cut may have."""

REORDERED_AVI = (
    "an AVI has no presentation times, and its frames are not stored in the order in which they "
    "are shown"
)
"""The reason why such a file cannot be copied: every frame would get a wrong time."""


def own_suffix(path: Path) -> str:
    """Return the suffix of a cut in the video's own container, or .mkv if cuts cannot have it.

    Raises:
        GranAlignError: the video cannot be opened.
    """
    with open_video(path) as video:
        family = video.format_name
        if "matroska" in family:
            suffixes = [".mkv", ".webm"]
        else:
            suffixes = [".mp4", ".mov"] if "mp4" in family else [".mkv"]
        suffix = path.suffix.lower() if path.suffix.lower() in suffixes else suffixes[0]
        return suffix if refusal(video.stream, suffix) is None else ".mkv"


class CannotCopyError(GranAlignError):
    """A container does not take the packets of a video as they are.

    Attributes:
        containers: the suffixes of those that do.
    """

    def __init__(self, message: str, containers: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.containers = tuple(containers)


def check_copy(video: Video, out: Path) -> None:
    """Raise if the container of `out` cannot hold a copy of the picture and of any sound.

    A track that nobody can read does not count, and neither does one of several that could be
    copied. Without this check a cut would lose its picture, or all of its sound.

    Raises:
        CannotCopyError: the error names the codec and the containers that take it.
    """
    suffix = out.suffix.lower()
    sounds = readable_sound(video)
    if video.is_reordered:
        raise CannotCopyError(
            f"{video.path}: {REORDERED_AVI}; cut it with --exact (exact=True), which encodes it"
        )
    fits = [name for name in FORMATS if takes_picture_and_sound(video, sounds, name)]
    if suffix in fits:
        return
    picture = refusal(video.stream, suffix) is not None
    codecs = {codec_name(one) for one in ([video.stream] if picture else sounds)}
    what = f"{' and '.join(sorted(codecs))} {'video' if picture else 'audio'}"
    remedy = f"name a file that ends in {' or '.join(fits)}, or use" if fits else "use"
    raise CannotCopyError(
        f"{out}: {suffix} does not take the {what} of {video.path} as it is; "
        f"{remedy} --exact (exact=True), which encodes it",
        fits,
    )


def takes_picture_and_sound(video: Video, sounds: Sequence[Stream], suffix: str) -> bool:
    """Return True if the container takes the picture and, of readable tracks, at least one."""
    if refusal(video.stream, suffix) is not None:
        return False
    return not sounds or any(refusal(sound, suffix) is None for sound in sounds)


def codec_name(stream: Stream) -> str:
    """Return FFmpeg's name of the codec of a stream, such as ``h264``, or ``unknown codec``."""
    context = stream.codec_context
    return "unknown codec" if context is None else context.codec.canonical_name


def readable_sound(video: Video) -> list[Stream]:
    """Return the audio streams for which there is a decoder."""
    return [stream for stream in video.container.streams.audio if stream.codec_context is not None]


def refusal(stream: Stream, suffix: str) -> str | None:
    """Return why a container does not take a copy of the stream, or None if it does.

    FFmpeg's muxer is the judge: it writes the header of a file that holds this stream alone.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(BytesIO(), "w", format=FORMATS[suffix]) as target:
            add_copy(target, stream)
            target.start_encoding()
    except (FFmpegError, ValueError) as error:
        return ffmpeg_reason(error)
    return None


def add_copy(target: OutputContainer, stream: Stream) -> Any:
    """Add a stream for copied packets of `stream`, with its language, title and disposition."""
    try:
        added = target.add_stream_from_template(stream)
    except ValueError:
        # PyAV asks for an encoder of the decoder's name, which libdav1d, for example, lacks. It
        # does not if the template's own codec is to be used.
        added = target.add_stream_from_template(stream, opaque=True)
    describe(added, stream)
    return added


def describe(added: Stream, stream: Stream) -> None:
    """Give a new stream the language, the title and the disposition of its source."""
    for key in ("language", "title"):
        if key in stream.metadata:
            added.metadata[key] = stream.metadata[key]
    added.disposition = stream.disposition
