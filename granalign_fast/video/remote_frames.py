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
    times: Sequence[float],
    hashes: Sequence[str],
    sha256: str,
    clip_seconds: float,
) -> list[Image]:
    """Return the frames of these clips, uint8 RGB (height, width, 3), in the order of `clips`.

    Args:
        address: of the video file.
        clips: numbers of clips.
        times: of the frames of these clips, in seconds from the container's start.
        hashes: of these frames, by `frame_hash`.
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
        _log.info("%s: the whole file is copied for %d frames", address, len(missing))
        images |= _copied_frames(store, address, missing, sha256, clip_seconds)
    return [images[clip] for clip in clips]


def _seek_frames(
    store: Store, address: Address, wanted: dict[int, tuple[float, str]]
) -> dict[int, Image]:
    """Return the frames that seeking finds and whose hashes are right."""
    found: dict[int, Image] = {}
    with store.open() as file:
        ranges = RangeReader(file)
        with open_video_stream(ranges, address.to_path(), buffer_bytes=_BLOCK) as video:
            start, _ = FrameReader(video, Fraction(2), skip=False).decode_first()
            for clip, (time, name) in sorted(wanted.items()):
                image = _frame_at(video, round(start + video.ticks(Fraction(time))))
                if image is not None and frame_hash(image) == name:
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
    store: Store, address: Address, clips: Sequence[int], sha256: str, clip_seconds: float
) -> dict[int, Image]:
    with tempfile.TemporaryDirectory(prefix="granalign-") as name:
        path = Path(name, f"video{Path(address.name).suffix}")
        if store.fetch("", path) != sha256:
            raise GranAlignError(
                f"{address}: got another file than the one that was indexed; put the file back, or "
                f"index it again"
            )
        return dict(zip(clips, read_clips(path, clips, clip_seconds=clip_seconds), strict=True))


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
