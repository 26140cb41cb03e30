"""The tracks that a cut has besides its picture: sound and text, copied, converted or left out."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .container import Video
from .cut_containers import add_copy, codec_name, describe, refusal
from .track_clock import shift_timestamps

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.stream import Stream

_TEXT_CODECS = {".mp4": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}
"""The codec to which text subtitles are converted where a container does not take their own."""

_SOUND_CODECS = {".mp4": "aac", ".mov": "aac", ".mkv": "aac", ".webm": "libopus"}
"""The encoder of an exact cut for sound that the container does not take as it is."""

_SOUND_BITS = 96_000
"""Bits a second for each channel of encoded sound: at this rate AAC and Opus are transparent."""


class Track:
    """A track whose packets are copied.

    Attributes:
        source: the stream of the source.
    """

    def __init__(self, source: Stream) -> None:
        self.source = source
        self._target: Any = None

    def add_to(self, target: OutputContainer) -> None:
        """Add the track's stream to the cut, before its header is written."""
        self._target = add_copy(target, self.source)

    def convert(self, packet: Packet[Any], begin: Fraction, end: Fraction) -> Iterator[Packet[Any]]:
        """Yield the packets of the cut for one of the source.

        Args:
            packet: a packet of `source`; it is changed.
            begin: second of the source at which the cut begins, on the clock of the packets.
            end: second at which it ends.

        Raises:
            FFmpegError: the packet is damaged.
            ValueError: the packet is damaged.
        """
        if _lies_within(packet, begin, end):
            shift_timestamps(packet, round(begin / packet.time_base))
            packet.stream = self._target
            yield packet

    def flush(self) -> Iterator[Packet[Any]]:
        """Yield the packets that are left when the source ends."""
        yield from ()


class CaptionTrack(Track):
    """A text track; `codec` is the encoder that it is converted to, or None for a copy."""

    def __init__(self, source: Stream, codec: str | None) -> None:
        super().__init__(source)
        self._codec = codec
        self._encoder: Any = None

    def add_to(self, target: OutputContainer) -> None:
        """Add the stream; an encoder starts from the decoder's header, which holds the styles."""
        if self._codec is None:
            super().add_to(target)
            return
        self._target = target.add_stream(self._codec)
        describe(self._target, self.source)
        decoder: Any = self.source.codec_context
        decoder.open(strict=False)
        self._encoder = self._target.codec_context
        self._encoder.subtitle_header = decoder.subtitle_header
        self._encoder.time_base = Fraction(1, 1000)

    def convert(self, packet: Packet[Any], begin: Fraction, end: Fraction) -> Iterator[Packet[Any]]:
        """Yield the caption if it is shown in the cut; one that begins earlier begins with it."""
        if packet.pts is None or not packet.time_base:
            return
        first = packet.pts * packet.time_base
        last = first + (packet.duration or 0) * packet.time_base
        if first >= end or (last <= begin and first < begin):
            return
        base, converted = packet.time_base, packet
        if self._encoder is not None:
            decoder: Any = self.source.codec_context
            text = decoder.decode2(packet)
            # Between two captions, mov_text has an empty one, which decodes to nothing.
            if not text:
                return
            converted = self._encoder.encode_subtitle(text)
            converted.time_base = base
        converted.pts = converted.dts = round((max(first, begin) - begin) / base)
        converted.duration = round((min(last, end) - max(first, begin)) / base)
        converted.stream = self._target
        yield converted


class EncodedSound(Track):
    """A sound track that is decoded and encoded, for a container that does not take its codec."""

    def __init__(self, source: Stream, codec: str) -> None:
        super().__init__(source)
        self._codec = codec

    def add_to(self, target: OutputContainer) -> None:
        """Add the encoder: the source's rate and channels where the codec has them."""
        import av

        source: Any = self.source.codec_context
        rates = av.Codec(self._codec, "w").audio_rates or [source.sample_rate]
        rate = source.sample_rate if source.sample_rate in rates else 48000
        layout = _layout(source.layout, self._codec)
        bits = _SOUND_BITS * av.AudioLayout(layout).nb_channels
        stream = target.add_stream(self._codec, rate=rate, layout=layout, bit_rate=bits)
        describe(stream, self.source)
        self._target = stream

    def convert(self, packet: Packet[Any], begin: Fraction, end: Fraction) -> Iterator[Packet[Any]]:
        """Yield encoded sound for the decoded frames that begin in the cut."""
        decoder: Any = self.source.codec_context
        for frame in decoder.decode(packet):
            if _lies_within(frame, begin, end):
                frame.pts -= round(begin / frame.time_base)
                yield from self._target.encode(frame)

    def flush(self) -> Iterator[Packet[Any]]:
        """Yield what the encoder holds back."""
        if self._target.codec_context.is_open:
            yield from self._target.encode(None)


def _layout(source: Any, codec: str) -> str:
    """Return the channel layout for the encoder; one it may not take becomes stereo."""
    count = source.nb_channels
    if count <= 2:
        return "mono" if count == 1 else "stereo"
    # Opus in WebM has its own order of channels. A layout such as "6 channels" has no order.
    return "stereo" if codec == "libopus" or "channels" in source.name else str(source.name)


def plan_tracks(video: Video, suffix: str, *, exact: bool) -> tuple[list[Track], tuple[str, ...]]:
    """Return the tracks of a cut besides its picture, and a line for each stream it lacks.

    All sound and text that the container takes is there. What it does not take is converted where
    that is possible: text always, sound in an exact cut. Everything else is named.
    """
    tracks: list[Track] = []
    left_out = []
    for stream in video.container.streams:
        if stream.index == video.stream.index:
            continue
        track, reason = _plan_track(stream, suffix, exact=exact)
        if track is not None:
            tracks.append(track)
        else:
            left_out.append(f"{stream_name(stream)}: {reason}")
    return tracks, tuple(left_out)


def _plan_track(stream: Stream, suffix: str, *, exact: bool) -> tuple[Track | None, str]:
    """Return the track for a stream, or None and the reason why the cut has none."""
    from av.error import FFmpegError

    if stream.type not in ("audio", "subtitle"):
        return None, "a cut has one picture, sound and subtitles"
    if stream.codec_context is None:
        return None, "FFmpeg cannot read it"
    taken = refusal(stream, suffix) is None
    if stream.type == "audio":
        if taken:
            return Track(stream), ""
        if exact:
            return EncodedSound(stream, _SOUND_CODECS[suffix]), ""
        return None, f"{suffix} does not take it; --exact (exact=True) encodes it"
    if taken:
        return CaptionTrack(stream, None), ""
    decoder: Any = stream.codec_context
    try:
        decoder.open(strict=False)
    except (FFmpegError, ValueError):
        return None, "FFmpeg cannot read it"
    # Only decoders of text state a header; pictures of text cannot become text.
    if decoder.subtitle_header:
        return CaptionTrack(stream, _TEXT_CODECS[suffix]), ""
    return None, f"{suffix} does not take it, and it is no text"


def stream_name(stream: Stream) -> str:
    """Return a stream's number in the file and what it is: ``stream 2 (audio, aac)``."""
    return f"stream {stream.index} ({_kind(stream)})"


def _kind(stream: Stream) -> str:
    """Return what a stream is, with its codec if it has one."""
    from av.stream import Disposition

    if stream.disposition & Disposition.attached_pic:
        return "cover art"
    if stream.type == "data" and "timecode" in stream.metadata:
        return f"time code {stream.metadata['timecode']}"
    if stream.type == "attachment":
        return f"attachment {stream.metadata.get('filename', 'without a name')}"
    name = codec_name(stream)
    return f"{stream.type}, {name}" if stream.type in ("audio", "video", "subtitle") else "data"


def _lies_within(timed: Any, begin: Fraction, end: Fraction) -> bool:
    """Return True if a packet or a frame of sound begins in the stretch."""
    if timed.pts is None or not timed.time_base:
        return False
    return bool(begin <= timed.pts * timed.time_base < end)
