"""VideoIndex: what is known of a video before any query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import GranAlignError

CLIP_SECONDS = 2.0
"""QVHighlights annotates clips of two seconds; one caption describes one clip."""


@dataclass(frozen=True, slots=True)
class CaptionedVideo:
    """The query-agnostic captions of a video, one for each clip of `clip_seconds`.

    Raises:
        GranAlignError: a field is of the wrong kind, or captions lie after the video's end.
    """

    vid: str
    captions: tuple[str, ...]
    clip_seconds: float = CLIP_SECONDS
    duration: float | None = None
    """Seconds; where it is not known, the clips' own length. The last clip may be cut short."""

    def __post_init__(self) -> None:
        if not isinstance(self.vid, str):
            raise GranAlignError(f"vid: got {self.vid!r}, expected a text")
        if not self.captions:
            raise GranAlignError(
                f"captions of {self.vid!r}: got none, expected a text for each clip"
            )
        for clip, caption in enumerate(self.captions):
            if not isinstance(caption, str):
                raise GranAlignError(
                    f"caption {clip} of {self.vid!r}: got {caption!r}, expected a text"
                )
        for name in ("clip_seconds", "duration"):
            value = getattr(self, name)
            if value is None and name == "duration":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
                raise GranAlignError(
                    f"{name} of {self.vid!r}: got {value!r}, expected seconds above 0"
                )
        last = (len(self.captions) - 1) * self.clip_seconds
        if self.duration is not None and last >= self.duration:
            raise GranAlignError(
                f"captions of {self.vid!r}: got {len(self.captions)} clips of "
                f"{self.clip_seconds} s, but the video ends at {self.duration} s: drop those after"
            )

    @classmethod
    def from_record(cls, record: Mapping[str, Any], place: str) -> CaptionedVideo:
        """From a JSON record: `vid`, `captions`, and perhaps `clip_seconds` and `duration`.

        Raises:
            GranAlignError: a field is of the wrong kind; the message begins with `place`.
        """
        captions = record["captions"]
        if not isinstance(captions, list):
            raise GranAlignError(f"{place}: captions: got {captions!r}, expected a list of texts")
        try:
            return cls(
                record["vid"],
                tuple(captions),
                record.get("clip_seconds", CLIP_SECONDS),
                record.get("duration"),
            )
        except GranAlignError as error:
            raise GranAlignError(f"{place}: {error}") from None


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """A captioned video and the embeddings of its captions.

    Raises:
        GranAlignError: the embeddings are not float32 or float16 with a row for each caption.
    """

    video: CaptionedVideo
    embeddings: npt.NDArray[Any] = field(repr=False)
    """`(clips, dim)`, rows of unit length."""

    def __post_init__(self) -> None:
        shape, dtype = self.embeddings.shape, np.dtype(self.embeddings.dtype)
        clips = len(self.video.captions)
        if len(shape) != 2 or shape[0] != clips or dtype not in (np.float32, np.float16):
            raise GranAlignError(
                f"embeddings of {self.video.vid!r}: got {dtype} {shape}, expected float32 or "
                f"float16 ({clips}, dim), a row for each caption"
            )

    def seconds(self, clip: int) -> float:
        """Where clip number `clip` begins; the end of the video for the one after the last."""
        time = clip * self.video.clip_seconds
        return time if self.video.duration is None else min(time, self.video.duration)
