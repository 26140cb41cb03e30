"""Frozen records of queries, moments, results and frames, which check their fields."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import GranAlignError, check_unicode, missing_key, short_repr
from .parsing.limits import MOST_CHARACTERS, MOST_TEXTS

MOST_OVERLAP = 0.3
"""The greatest overlap of two distinct moments, as `Moment.overlap` measures it."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch of a video and how well it fits a query."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    score: float
    """Higher is better."""

    def overlap(self, other: Moment) -> float:
        """Return the seconds that two moments share over the length of the shorter one, 0 to 1.

        A moment inside a longer one overlaps it by 1: who has seen the longer one has seen both.
        Their IoU would be small. The IoU of two moments is never above this measure.

        >>> Moment(0.0, 4.0, 0.9).overlap(Moment(0.0, 22.0, 0.8))
        1.0
        """
        shared = min(self.end, other.end) - max(self.start, other.start)
        shorter = min(self.end - self.start, other.end - other.start)
        return shared / shorter if shared > 0 and shorter > 0 else 0.0


def distinct_moments(ranked: Iterable[Moment], top: int) -> tuple[Moment, ...]:
    """Choose moments that hardly overlap: each of them, unless it overlaps a better one too much.

    Args:
        ranked: moments, best first.
        top: how many are chosen at most.

    Returns:
        Moments of which any two overlap by at most `MOST_OVERLAP`, best first.

    >>> ranked = [Moment(8, 12, 0.9), Moment(0, 22, 0.8), Moment(11, 15, 0.7), Moment(30, 34, 0.6)]
    >>> [moment.start for moment in distinct_moments(ranked, 5)]
    [8, 11, 30]
    """
    chosen: list[Moment] = []
    for moment in ranked:
        if len(chosen) == top:
            break
        if all(moment.overlap(better) <= MOST_OVERLAP for better in chosen):
            chosen.append(moment)
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Rewrites:
    """A query and its rewrites at two granularities.

    Simplified rewrites keep the core entity and action in common words; they are compared with the
    query-agnostic captions. Detailed rewrites keep every detail; they are compared with the
    query-aware captions. Plain rephrasings count as simplified.

    Raises:
        GranAlignError: a text is not a string, is empty, too long, or not valid Unicode; a field
            has one text where a list is expected, or too many; `fallbacks` is not a count.
    """

    query: str
    simplified: tuple[str, ...] = ()
    detailed: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    """The people, animals and things that the query names; they guide query-aware captions."""
    actions: tuple[str, ...] = ()
    """The verbs of the query; they guide query-aware captions too."""
    fallbacks: int = 0
    """How many rewrites are the query itself, because the model's answer was of no use."""

    def __post_init__(self) -> None:
        check_text("query", self.query)
        for field_name, name in (
            ("simplified", "simplified rewrite"),
            ("detailed", "detailed rewrite"),
            ("entities", "entity"),
            ("actions", "action"),
        ):
            texts = getattr(self, field_name)
            if not isinstance(texts, list | tuple):
                raise GranAlignError(
                    f"{field_name}: got {short_repr(texts)}, expected a list of texts"
                )
            if len(texts) > MOST_TEXTS:
                raise GranAlignError(
                    f"{field_name}: got {len(texts):,} texts, expected at most {MOST_TEXTS}"
                )
            for text in texts:
                check_text(name, text)
            object.__setattr__(self, field_name, tuple(texts))
        if type(self.fallbacks) is not int or self.fallbacks < 0:
            raise GranAlignError(
                f"fallbacks: got {short_repr(self.fallbacks)}, expected an integer from 0"
            )

    @classmethod
    def from_record(cls, record: Mapping[str, Any], location: str) -> Rewrites:
        """Read a JSON record: `query`, and either `rewrites` or the fields by their names.

        Args:
            record: the JSON object.
            location: its file and line, for error messages.

        Raises:
            GranAlignError: a field is missing or of the wrong type; the message begins with
                `location`.
        """
        if not isinstance(record, Mapping):
            raise GranAlignError(f"{location}: got {short_repr(record)}, expected a JSON object")
        if "query" not in record:
            raise missing_key(location, "query", record)
        keys = ("rewrites", "simplified", "detailed", "entities", "actions")
        lists = {key: record.get(key, []) for key in keys}
        for key, texts in lists.items():
            if not isinstance(texts, list):
                raise GranAlignError(
                    f"{location}: {key}: got {short_repr(texts)}, expected a list of texts"
                )
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
            raise GranAlignError(f"{location}: {error}") from None

    def to_record(self) -> dict[str, Any]:
        """Return a JSON record, as `from_record` reads it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def check_text(name: str, text: object) -> None:
    """Raise unless a value is a text that a model can read.

    Args:
        name: of the value, with which the message begins.
        text: the value.

    Raises:
        GranAlignError: it is not a string, is blank or too long, or holds half of a surrogate pair,
            as Python gives for bytes of the command line that are not UTF-8.
    """
    if not isinstance(text, str) or not text.strip():
        raise GranAlignError(f"{name}: got {short_repr(text)}, expected a text that is not empty")
    if len(text) > MOST_CHARACTERS:
        raise GranAlignError(
            f"{name}: got {len(text):,} characters, expected at most {MOST_CHARACTERS:,}; say it "
            f"in a sentence"
        )
    check_unicode(name, text)


def check_queries(queries: Sequence[str]) -> None:
    """Raise unless queries are a list of texts that a model can read.

    Raises:
        GranAlignError: it is no list, or a query is not valid text; the message names the query.
    """
    if isinstance(queries, str) or not isinstance(queries, Sequence):
        raise GranAlignError(f"queries: got {short_repr(queries)}, expected a list of texts")
    for query in queries:
        check_text("query", query)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The moments of a video for a query, best first, and a score for every clip."""

    vid: str
    query: str
    moments: tuple[Moment, ...]
    """The list that benchmarks score; its moments may overlap. People want those of `distinct`."""
    saliency: npt.NDArray[np.float32]
    """`(clips,)`. By captions it is the method's S_f: 0 for the clip of this video that fits the
    query least, up to 1. By recognition it is the probability that the clip shows the query."""
    curves: npt.NDArray[np.float32]
    """`(curves, clips)`: the curve of each query variant; their mean is the saliency. Where
    variants are compared with two matrices of captions, the curves by the second follow."""
    exists: float | None = None
    """How likely the video shows the query at all, 0 to 1; None if no model has judged it."""
    probably_absent: bool | None = None
    """Whether `exists` is below the configuration's `exists_threshold`: the video probably does not
    show the query. None if no model has judged it."""
    rewrites: Rewrites | None = None
    """The query with its rewrites."""
    aware: Mapping[int, str] = field(default_factory=dict)
    """The query-aware captions that were used, by clip number."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """The duration of each stage, for the whole batch that this search was in."""
    rank_all: Callable[[SearchResult], Sequence[Moment]] | None = field(default=None, repr=False)
    """Ranks all candidates that the curves give, of which `moments` are the first. None: there are
    no others."""

    def distinct(self, top: int = 5) -> tuple[Moment, ...]:
        """Return moments that hardly overlap, best first: those that `granalign search` shows.

        They are chosen from all candidates, so there can be more of them than in `moments`.

        Args:
            top: how many there are at most.

        Returns:
            Moments of which any two share at most 30% of the shorter one.

        Raises:
            GranAlignError: `top` is not an integer from 1.
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise GranAlignError(f"top: got {short_repr(top)}, expected an integer from 1")
        chosen = distinct_moments(self.moments, top)
        # The whole list begins with `moments`: it is only needed where these do not suffice.
        if len(chosen) < top and self.rank_all is not None:
            chosen = distinct_moments(self.rank_all(self), top)
        return chosen

    def __repr__(self) -> str:
        """Return one line without arrays: video, query, the best moment, existence."""
        best = "None"
        if self.moments:
            first = self.moments[0]
            best = f"{first.start:.1f} to {first.end:.1f} s, score {first.score:.3f}"
        exists = "" if self.exists is None else f", exists={self.exists:.3f}"
        return (
            f"SearchResult(vid={self.vid!r}, query={self.query!r}, moments={len(self.moments)}, "
            f"best=<{best}>{exists})"
        )

    def _repr_html_(self) -> str:
        """Return the distinct moments as an HTML table, which a notebook shows."""
        exists = "" if self.exists is None else f"; shown at all: {self.exists:.0%} likely"
        absent = "probably not in this video: " if self.probably_absent else ""
        caption = html.escape(f"{absent}{self.query} ({self.vid}{exists})")
        rows = "".join(
            f"<tr><td>{m.start:.2f}</td><td>{m.end:.2f}</td><td>{m.score:.3f}</td></tr>"
            for m in self.distinct()
        )
        return (
            f"<table><caption>{caption}</caption><thead><tr><th>start (s)</th><th>end (s)</th>"
            f"<th>score</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    def to_record(self) -> dict[str, Any]:
        """Return the line of a QVHighlights submission, without the `qid`: the caller knows it."""
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
    """Raise for the first item that is not a frame, before any work.

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
    """Frames that are identified by hashes, and decoded only when they are loaded.

    A frame whose prefix is cached under its hash need not be decoded at all. With several frames
    per clip an item is a clip: all its frames, one hash, one caption.

    Attributes:
        hashes: of each item, as `frame_hash` returns it.
        load: returns the items with these numbers, uint8 RGB (height, width, 3) each; with several
            frames per clip (frames, height, width, 3).
        frames_per_clip: the number of frames in each item.
        frame_seconds: from a frame of a clip to the next, for models that are told; 0 if unknown.
    """

    hashes: tuple[str, ...]
    load: Callable[[Sequence[int]], Sequence[Image]]
    frames_per_clip: int = 1
    frame_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.hashes)

    def __repr__(self) -> str:
        """Return the number of frames: hundreds of hashes would tell nothing."""
        return f"FrameSet({len(self)} frames)"

    @property
    def form(self) -> tuple[int, float]:
        """`frames_per_clip` and `frame_seconds`."""
        return self.frames_per_clip, self.frame_seconds

    @classmethod
    def of(
        cls, frames: npt.NDArray[np.uint8] | Sequence[Image], *, frame_seconds: float = 0.0
    ) -> FrameSet:
        """Make a set of frames, or of clips of several frames each, that are in memory.

        Raises:
            GranAlignError: there is no frame, an item is not one, or clips differ in length.
        """
        sizes = {len(frame) if np.ndim(frame) == 4 else 1 for frame in frames}
        if len(sizes) > 1:
            raise GranAlignError(f"frames: got clips of {sorted(sizes)} frames; make a set of each")
        count = max(sizes, default=1)
        check_frames(frames if count == 1 else [image for clip in frames for image in clip])
        hashes = tuple(frame_hash(frame) for frame in frames)
        return cls(hashes, lambda numbers: [frames[i] for i in numbers], count, frame_seconds)

    @classmethod
    def joined(cls, sets: Sequence[FrameSet]) -> FrameSet:
        """Join sets, one after another; each set loads its frames in one call.

        Raises:
            ValueError: the sets have clips of different forms.
        """
        forms = {part.form for part in sets} or {(1, 0.0)}
        if len(forms) > 1:
            raise ValueError(f"sets: got clips of the forms {sorted(forms)}, expected one")
        # The set and the number within it of every frame.
        origins = [(part, number) for part in sets for number in range(len(part))]

        def load(numbers: Sequence[int]) -> list[Image]:
            # Collect the numbers of each set, load each set once, and deal the frames out again.
            by_set: dict[int, tuple[FrameSet, list[int]]] = {}
            for i in numbers:
                part, number = origins[i]
                by_set.setdefault(id(part), (part, []))[1].append(number)
            frames = {key: iter(part.load(within)) for key, (part, within) in by_set.items()}
            return [next(frames[id(origins[i][0])]) for i in numbers]

        return cls(tuple(part.hashes[number] for part, number in origins), load, *forms.pop())

    def take(self, numbers: Sequence[int]) -> FrameSet:
        """Return the frames with these numbers, in this order."""
        chosen = list(numbers)
        hashes = tuple(self.hashes[i] for i in chosen)
        return FrameSet(hashes, lambda some: self.load([chosen[i] for i in some]), *self.form)


def frame_hash(frame: Image) -> str:
    """Return a name of a frame or of a clip of frames, of its size and pixels: 32 hex digits."""
    digest = hashlib.blake2b(repr(frame.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()
