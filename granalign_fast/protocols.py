"""The interfaces between the parts, in texts and frames: what each part asks of the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .types import FrameSet, Image, Rewrites

Progress = Callable[[int], None]
"""Called with how many more are done."""


class TextEncoder(Protocol):
    """What the retriever asks of a sentence encoder; `SentenceEncoder` is one."""

    def encode(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> npt.NDArray[np.float32]:
        """`(texts, dim)`, rows of unit length."""
        ...


class Rewriter(Protocol):
    """Turns queries into rewrites, a batch at a time."""

    def rewrite(self, queries: Sequence[str]) -> list[Rewrites]:
        """One `Rewrites` for each query, in order."""
        ...


@runtime_checkable
class Captioner(Protocol):
    """Frames to texts; a table in a test, or a service, can be one."""

    def agnostic(self, frames: FrameSet) -> list[str]:
        """A caption of each frame, no query known."""
        ...

    def aware(self, frames: FrameSet, focus: Sequence[str]) -> list[str]:
        """A caption of each frame, guided by what a query is about."""
        ...


@runtime_checkable
class BatchCaptioner(Captioner, Protocol):
    """A captioner that can answer for several queries at once."""

    def aware_many(self, asked: Sequence[tuple[FrameSet, Sequence[str]]]) -> list[list[str]]:
        """What `aware` gives for each of these."""
        ...


@runtime_checkable
class Recogniser(Protocol):
    """Frames and queries to probabilities."""

    def recognise(self, frames: FrameSet, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """How likely each frame shows each query, (queries, frames), 0 to 1."""
        ...


@runtime_checkable
class Prefiller(Protocol):
    """A captioner that can look at frames before it is known what is asked of them."""

    @property
    def room(self) -> int:
        """How many frames it can keep in mind."""
        ...

    def prefill(self, frames: FrameSet) -> None:
        """Look at frames, and keep them in mind."""
        ...


class ImageTextEncoder(Protocol):
    """Embeds frames and texts in one space; `FrameEncoder` is one."""

    @property
    def fingerprint(self) -> str:
        """Names the embeddings: equal for equal model and precision."""
        ...

    def encode_frames(self, frames: Sequence[Image]) -> npt.NDArray[np.float32]:
        """`(frames, dim)`, rows of unit length."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """`(texts, dim)`, rows of unit length."""
        ...
