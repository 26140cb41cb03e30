"""Frame embeddings of indexes without captions: when captions are added, frames keep theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.types import FrameSet
from granalign_fast.video.frames import Frame

from .models import Descriptions, IndexModels
from .records import FrameTable
from .video_files import VideoFile
from .video_index import VideoIndex


class StoredFrames:
    """The frame embeddings that the indexes of a folder hold, for videos that get captions now.

    Args:
        out: the folder of indexes.
        fingerprint: of the frame encoder; None: nothing is taken from the indexes.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: the number of frames of each clip.
    """

    def __init__(
        self, out: Path, fingerprint: str | None, clip_seconds: float, frames_per_clip: int
    ) -> None:
        self._out = out
        self._fingerprint = fingerprint
        self._clip_seconds = clip_seconds
        self._frames_per_clip = frames_per_clip
        # A batch begins with the video that the last batch ended with: one table is kept.
        self._latest: tuple[str, FrameTable | None] = "", None

    def describe(
        self,
        models: IndexModels,
        frame_set: FrameSet,
        frames: Sequence[tuple[VideoFile, Frame]],
        finished: Mapping[str, int],
    ) -> Descriptions:
        """Return what `models` say of a batch; frames that were embedded keep their embeddings.

        The frame encoder runs only if the batch has a frame that needs it, and then on the whole
        batch, as in a run that makes the indexes at once.

        Args:
            models: the models.
            frame_set: the batch.
            frames: its frames, each with its video; those of a video are consecutive.
            finished: the number of clips of each video that need no more work.

        Raises:
            GranAlignError: as `IndexModels.describe`.
        """
        images = [frame.image for _, frame in frames]
        stored = [
            self._row(video, frame, name)
            for (video, frame), name in zip(frames, frame_set.hashes, strict=True)
        ]
        known = next((row for row in stored if row is not None), None)
        if known is None:
            return models.describe(frame_set, images)
        needed = [frame.clip >= finished[video.vid] for video, frame in frames]
        if all(row is not None for row, need in zip(stored, needed, strict=True) if need):
            # Nobody reads the rows of finished clips: any number stands for them.
            rows = np.stack([known if row is None else row for row in stored])
            return models.describe(frame_set, images, frame_embeddings=rows)
        described = models.describe(frame_set, images)
        if described.frame_embeddings is None:
            return described
        rows = np.stack(
            [
                made if row is None else row
                for made, row in zip(described.frame_embeddings, stored, strict=True)
            ]
        )
        return described._replace(frame_embeddings=rows)

    def _row(self, video: VideoFile, frame: Frame, name: str) -> npt.NDArray[Any] | None:
        """Return the embedding of a frame, `(dim,)`; None if no index holds that very picture."""
        table = self._table(video)
        if table is None or table.embeddings is None:
            return None
        same = table.hashes[frame.clip : frame.clip + 1] == (name,)
        row: npt.NDArray[Any] | None = table.embeddings[frame.clip] if same else None
        return row

    def _table(self, video: VideoFile) -> FrameTable | None:
        vid, table = self._latest
        if vid != video.vid:
            table = self._read_table(video)
            self._latest = video.vid, table
        return table

    def _read_table(self, video: VideoFile) -> FrameTable | None:
        """Return the frames of the index of a video; None if they cannot be taken."""
        if self._fingerprint is None or not (self._out / video.vid).exists():
            return None
        try:
            index = VideoIndex.load(self._out / video.vid)
        except GranAlignError:  # torn: its frames are embedded again
            return None
        # Of an index with captions nothing is taken: it is made anew, because a model changed.
        fits = (
            index.video.captions is None
            and index.models.get("clip") == self._fingerprint
            and index.video.clip_seconds == self._clip_seconds
            and index.frames_per_clip == self._frames_per_clip
            and index.frames is not None
            and index.frames.source is not None
            and index.frames.source.sha256 == video.source.sha256
        )
        return index.frames if fits else None
