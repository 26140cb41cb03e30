"""What goes in and comes out: checked, frozen records without behaviour of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import GranAlignError


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch of the video, in seconds, and how well it fits the query (higher is better)."""

    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Rewrites:
    """A query and its rewrites at two granularities.

    `simplified` ones keep the core entity and action in common words and meet the query-agnostic
    captions; `detailed` ones keep every detail and meet the query-aware captions. Plain rephrasings
    count as simplified.

    Raises:
        GranAlignError: a text is not a string, or is empty; a bare string stands where several
            texts are expected; fallbacks are no count.
    """

    query: str
    simplified: tuple[str, ...] = ()
    detailed: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    """The people, animals and things that the query names; they guide query-aware captions."""
    actions: tuple[str, ...] = ()
    """What they do."""
    fallbacks: int = 0
    """How many rewrites are the query itself, because the rewriter gave nothing of use."""

    def __post_init__(self) -> None:
        _check_texts("query", (self.query,))
        for field_name, name in (
            ("simplified", "simplified rewrite"),
            ("detailed", "detailed rewrite"),
            ("entities", "entity"),
            ("actions", "action"),
        ):
            texts = getattr(self, field_name)
            if not isinstance(texts, list | tuple):
                raise GranAlignError(f"{field_name}: got {texts!r}, expected a list of texts")
            _check_texts(name, texts)
            object.__setattr__(self, field_name, tuple(texts))
        if type(self.fallbacks) is not int or self.fallbacks < 0:
            raise GranAlignError(f"fallbacks: got {self.fallbacks!r}, expected an integer from 0")

    @classmethod
    def from_record(cls, record: Mapping[str, Any], place: str) -> Rewrites:
        """From a JSON record: `query`, and either `rewrites` or the fields by their names.

        Raises:
            GranAlignError: a field is of the wrong kind; the message begins with `place`.
        """
        keys = ("rewrites", "simplified", "detailed", "entities", "actions")
        lists = {key: record.get(key, []) for key in keys}
        for key, texts in lists.items():
            if not isinstance(texts, list):
                raise GranAlignError(f"{place}: {key}: got {texts!r}, expected a list of texts")
        try:
            return cls(
                query=record["query"],
                simplified=(*lists["simplified"], *lists["rewrites"]),
                detailed=tuple(lists["detailed"]),
                entities=tuple(lists["entities"]),
                actions=tuple(lists["actions"]),
                fallbacks=record.get("fallbacks", 0),
            )
        except GranAlignError as error:
            raise GranAlignError(f"{place}: {error}") from None

    def to_record(self) -> dict[str, Any]:
        """As JSON, for `from_record`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def _check_texts(name: str, texts: Sequence[Any]) -> None:
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise GranAlignError(f"{name}: got {text!r}, expected a text that is not empty")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the video shows of a query: moments, best first, and a score for every clip."""

    vid: str
    query: str
    moments: tuple[Moment, ...]
    saliency: npt.NDArray[np.float32]
    """`(clips,)`, the method's S_f: 0 for what fits the query least in this video, up to 1. Under
    recognition the probability that the clip shows it."""
    curves: npt.NDArray[np.float32] = field(repr=False)
    """`(variants, clips)`: the curve of each query variant, whose mean is the saliency."""
    exists: float | None = None
    """How likely the video shows this at all, 0 to 1; None where no model was asked."""
    rewrites: Rewrites | None = field(default=None, repr=False)
    """What was searched for."""
    aware: Mapping[int, str] = field(default_factory=dict, repr=False)
    """The query-aware captions that took part, by clip."""
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    """What each stage took, of the whole batch that this search was in."""

    def to_record(self) -> dict[str, Any]:
        """The line of a QVHighlights submission, without the `qid`, which is the caller's."""
        return {
            "query": self.query,
            "vid": self.vid,
            "pred_relevant_windows": [
                [round(m.start, 3), round(m.end, 3), round(m.score, 6)] for m in self.moments
            ],
            "pred_saliency_scores": [round(s, 4) for s in self.saliency.tolist()],
        }


Image = npt.NDArray[np.uint8]
"""uint8 RGB (height, width, 3)."""


_FRAMES = "expected uint8 (height, width, 3) in RGB"


def check_frames(frames: npt.NDArray[Any] | Sequence[npt.NDArray[Any]]) -> None:
    """Raise for the first thing that is not a frame, before any work.

    Raises:
        GranAlignError: there is no frame, or one is not uint8 (height, width, 3).
    """
    if isinstance(frames, np.ndarray) and frames.ndim != 4:
        raise GranAlignError(
            f"frames: got shape {frames.shape}, expected (frames, height, width, 3); "
            f"pass one frame as frame[None]"
        )
    if len(frames) == 0:
        raise GranAlignError("frames: got none, expected at least one")
    for i, frame in enumerate(frames):
        if not isinstance(frame, np.ndarray):
            raise GranAlignError(
                f"frames[{i}]: got {type(frame).__name__}, {_FRAMES}; pass NumPy arrays"
            )
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise GranAlignError(
                f"frames[{i}]: got {frame.dtype} {frame.shape}, {_FRAMES}; "
                f"convert the frame as its decoder gives it, before any scaling"
            )


@dataclass(frozen=True, slots=True)
class FrameSet:
    """Frames that are known by their hashes, so that one whose prefix is kept need not be decoded.

    Attributes:
        hashes: of each frame, as `frame_hash` gives it.
        load: gives the frames with these numbers, uint8 RGB (height, width, 3) each.
    """

    hashes: tuple[str, ...]
    load: Callable[[Sequence[int]], Sequence[Image]]

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, frames: npt.NDArray[np.uint8] | Sequence[Image]) -> FrameSet:
        """Frames that are in memory.

        Raises:
            GranAlignError: there is no frame, or something is not one.
        """
        check_frames(frames)
        hashes = tuple(frame_hash(frame) for frame in frames)
        return cls(hashes, lambda numbers: [frames[i] for i in numbers])

    @classmethod
    def joined(cls, sets: Sequence[FrameSet]) -> FrameSet:
        """The frames of all sets, one after another; each set loads its own in one call."""
        places = [(part, number) for part in sets for number in range(len(part))]

        def load(numbers: Sequence[int]) -> list[Image]:
            wanted: dict[int, tuple[FrameSet, list[int]]] = {}
            for i in numbers:
                part, number = places[i]
                wanted.setdefault(id(part), (part, []))[1].append(number)
            loaded = {key: iter(part.load(own)) for key, (part, own) in wanted.items()}
            return [next(loaded[id(places[i][0])]) for i in numbers]

        return cls(tuple(part.hashes[number] for part, number in places), load)

    def take(self, numbers: Sequence[int]) -> FrameSet:
        """Some of them, in the order of `numbers`."""
        chosen = list(numbers)
        hashes = tuple(self.hashes[i] for i in chosen)
        return FrameSet(hashes, lambda own: self.load([chosen[i] for i in own]))


def frame_hash(frame: Image) -> str:
    """Names a frame by its size and pixels: 32 hex digits."""
    digest = hashlib.blake2b(repr(frame.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()
