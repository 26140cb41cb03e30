"""Read single frames of a video in an object store, by range requests.

Only the parts of the file are fetched that the frames need: its header and index, and the packets
from the key frame before each frame. Each picture is then compared with the hash that the index of
the video holds, so that a file that has changed, or a format that cannot seek exactly, never gives
a wrong frame. Where a picture differs, the whole file is copied and read as a local one is.
"""

from __future__ import annotations

import logging
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.storage import Address, Store
from granalign_fast.types import Image, frame_hash

from .container import open_video_stream
from .frames import read_clips
from .picture import displayed_picture
from .reader import FrameReader

_log = logging.getLogger(__name__)

_BLOCK = 1 << 20
"""Bytes of a range request: at 20 ms each, smaller ones would wait more than they transfer."""
_KEPT = 16
"""Blocks in memory: a decoder goes back to what it read lately."""


def read_remote_clips(
    address: Address,
    clips: Sequence[int],
    *,
    times: Sequence[tuple[float, ...]],
    hashes: Sequence[str],
    sha256: str,
    clip_seconds: float,
) -> list[Image]:
    """Return the frames of these clips, as `read_clips` does, in the order of `clips`.

    Args:
        address: of the video file.
        clips: numbers of clips.
        times: for each clip those of its frames, in seconds from the container's start.
        hashes: for each clip that of its frames, by `frame_hash`.
        sha256: of the file, in hex.
        clip_seconds: length of a clip in seconds.

    Raises:
        GranAlignError: the file is gone, is another one, or cannot be read.
    """
    store = Store(address)
    wanted = dict(zip(clips, zip(times, hashes, strict=True), strict=True))
    images: dict[int, Image] = {}
    try:
        images = _seek_frames(store, address, wanted)
    except GranAlignError as error:
        _log.info("%s: cannot be read in parts: %s", address, error)
    if missing := sorted(wanted.keys() - images.keys()):
        _log.info("%s: the whole file is copied for %d clips", address, len(missing))
        clip_form = clip_seconds, len(times[0])
        images |= _copied_frames(store, address, missing, sha256, clip_form)
    return [images[clip] for clip in clips]


def _seek_frames(
    store: Store, address: Address, wanted: dict[int, tuple[tuple[float, ...], str]]
) -> dict[int, Image]:
    """Return the frames of the clips that seeking finds and whose hashes are right."""
    found: dict[int, Image] = {}
    with store.open() as file:
        ranges = RangeReader(file)
        with open_video_stream(ranges, address.to_path(), buffer_bytes=_BLOCK) as video:
            start, _ = FrameReader(video, Fraction(2), skip=False).decode_first()
            for clip, (times, name) in sorted(wanted.items()):
                seen = [
                    _frame_at(video, round(start + video.ticks(Fraction(time)))) for time in times
                ]
                images = [image for image in seen if image is not None]
                # A clip whose frames differ in size is never right here: the whole file is read.
                if len(images) < len(times) or len({image.shape for image in images}) > 1:
                    continue
                image = images[0] if len(images) == 1 else np.stack(images)
                if frame_hash(image) == name:
                    found[clip] = image
        _log.debug("%s: %d bytes of %d were fetched", address, ranges.fetched, ranges.size)
    return found


def _frame_at(video: Any, pts: int) -> Image | None:
    """Return the picture of the frame that is shown at a PTS; None if it is not found."""
    from av.error import FFmpegError

    try:
        video.container.seek(pts, stream=video.stream, backward=True)
        chosen = None
        for frame in video.container.decode(video.stream):
            if frame.pts is None or frame.pts > pts:
                break
            chosen = frame
    except (FFmpegError, OverflowError) as error:
        _log.debug("%s: no frame at %d (%s)", video.path, pts, one_line(error))
        return None
    return None if chosen is None else displayed_picture(chosen, video.pixel_aspect)


def _copied_frames(
    store: Store,
    address: Address,
    clips: Sequence[int],
    sha256: str,
    clip_form: tuple[float, int],
) -> dict[int, Image]:
    """Return the frames of clips, whose seconds and number of frames are `clip_form`."""
    with tempfile.TemporaryDirectory(prefix="granalign-") as name:
        path = Path(name, f"video{Path(address.name).suffix}")
        if store.fetch("", path) != sha256:
            raise GranAlignError(
                f"{address}: got another file than the one that was indexed; put the file back, or "
                f"index it again"
            )
        seconds, frames = clip_form
        read = read_clips(path, clips, clip_seconds=seconds, frames_per_clip=frames)
        return dict(zip(clips, read, strict=True))


class RangeReader:
    """A file-like object that fetches blocks of a remote file when they are read.

    Args:
        file: has `read`, `seek` and `size`.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.size: int = file.size()
        self.fetched = 0

    def read(self, count: int = -1) -> bytes:
        """Return at most so many bytes: those up to the end of a block."""
        number, offset = divmod(self._position, _BLOCK)
        left = self.size - self._position
        count = min(left if count < 0 else count, left, _BLOCK - offset)
        if count <= 0:
            return b""
        part = self._block(number)[offset : offset + count]
        self._position += len(part)
        return part

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position, as files do, and return it."""
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def _block(self, number: int) -> bytes:
        block = self._blocks.pop(number, None)
        if block is None:
            self._file.seek(number * _BLOCK)
            block = bytes(self._file.read(_BLOCK))
            self.fetched += len(block)
        self._blocks[number] = block
        while len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)
        return block
