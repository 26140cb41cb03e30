"""The interfaces between the parts of the package, in texts and frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .types import FrameSet, Image, Rewrites

Progress = Callable[[int], None]
"""Called with the number of items that are done since the last call."""


class TextEncoder(Protocol):
    """Embeds texts; `SentenceEncoder` is one."""

    def encode(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """Return embeddings `(texts, dim)`, rows of unit length."""
        ...


def query_encoder(encoder: TextEncoder) -> TextEncoder:
    """Return the encoder of queries: `for_queries` of one that has it, otherwise the same encoder.

    A model may put other words before a query than before a caption. Such an encoder has a property
    `for_queries`, a `TextEncoder` in the same space. If that has a `for_queries`, it is itself.
    """
    asking: TextEncoder = getattr(encoder, "for_queries", encoder)
    return asking


class Rewriter(Protocol):
    """Turns queries into rewrites, a batch at a time."""

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """Return one `Rewrites` for each query, in order."""
        ...


@runtime_checkable
class Captioner(Protocol):
    """Frames to captions: a local model, a remote service, or a table in a test.

    With several frames per clip an item of a `FrameSet` is a clip, which gets one caption.
    """

    def agnostic(self, frames: FrameSet) -> list[str]:
        """Return a caption of each frame, written without knowing a query."""
        ...

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        """Return a caption of each frame, guided by the entities and actions of a query."""
        ...


@runtime_checkable
class BatchCaptioner(Captioner, Protocol):
    """A captioner that takes the frames of several queries in one call."""

    def aware_many(self, targets: Sequence[tuple[FrameSet, Sequence[str]]]) -> list[list[str]]:
        """Return for each target, frames and focus, what `aware` returns."""
        ...


@runtime_checkable
class Recogniser(Protocol):
    """Frames and queries to probabilities."""

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return how likely each frame shows each query, `(queries, frames)`, 0 to 1."""
        ...


@runtime_checkable
class BatchRecogniser(Recogniser, Protocol):
    """A recogniser that takes the frames of several queries in one call."""

    def recognise_many(
        self, targets: Sequence[tuple[FrameSet, Sequence[str]]]
    ) -> list[npt.NDArray[np.float32]]:
        """Return for each target, frames and queries, what `recognise` returns."""
        ...


@runtime_checkable
class Prefiller(Protocol):
    """A captioner that can compute and cache the prefixes of frames before it knows the query."""

    @property
    def frame_capacity(self) -> int:
        """How many frames' prompt prefixes fit in the cache."""
        ...

    def prefill(self, frames: FrameSet) -> None:
        """Compute and cache the prefixes of frames."""
        ...


@runtime_checkable
class ClipCaptioner(Protocol):
    """A captioner that knows how many frames a clip may have; see `Captioner` for the rest."""

    def check_clips(self, frames: int) -> None:
        """Raise unless it takes clips of so many frames."""
        ...


class ImageTextEncoder(Protocol):
    """Embeds frames and texts in one space; `FrameEncoder` is one."""

    @property
    def fingerprint(self) -> str:
        """The name of the embeddings: equal for equal model and precision."""
        ...

    def encode_frames(self, frames: Sequence[Image]) -> npt.NDArray[np.float32]:
        """Return embeddings `(frames, dim)`, rows of unit length."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return embeddings `(texts, dim)`, rows of unit length."""
        ...
