"""The records that annotation files are read into: queries with windows, saliency and rewrites."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from granalign_fast.jsonl import Record
from granalign_fast.types import Rewrites

PathLike = str | os.PathLike[str]

DATASETS = ("qvhighlights", "charades", "activitynet")
"""The names of the datasets, as the command line takes them."""

Window = tuple[float, float]
"""Start and end of a moment in seconds."""

REWRITE_KEYS = ("rewrites", "simplified", "detailed", "entities", "actions")
"""The keys of rewrites in our own form."""

MAX_OVERSHOOT_SECONDS = 10.0
"""Seconds by which a window may end after its video; such a window is scored unclipped.

A model that normalises time by a nominal length (150 s in QVHighlights) overshoots in shorter
videos: two of Moment-DETR's 15,500 published validation windows do, by 2 s and by 10 s, and the
benchmark's figures include both unclipped. Annotations overshoot too, in Charades-STA by up to
1.5 s. An overshoot of more than five clips is no rounding: the window belongs to another video or
has another unit.
"""


@dataclass(frozen=True, slots=True)
class Highlights:
    """The saliency of a query's relevant clips, as three people have scored it."""

    clips: tuple[int, ...]
    """Numbers of the relevant clips of two seconds."""
    scores: tuple[tuple[int, ...], ...]
    """`(clips, annotators)`: 0 to 4, one row for each of `clips`."""


@dataclass(frozen=True, slots=True)
class AnnotatedQuery:
    """A query about a video, with the moments that answer it."""

    qid: int | str
    """As in the file. Files without qids get ``VID_n``: see `read_annotations`."""
    vid: str
    rewrites: Rewrites
    """The query's text, and the rewrites that the files give with it."""
    duration: float | None = None
    """Length of the video in seconds; None: no file says it."""
    windows: tuple[Window, ...] = ()
    """Start and end of each moment in seconds; empty: the files have no ground truth for it."""
    saliency: Highlights | None = None
    """QVHighlights alone has it; None: the files do not."""

    def to_record(self) -> Record:
        """Return the query as one line of our own form, which `read_annotations` reads."""
        record: Record = {"qid": self.qid, "query": self.rewrites.query, "vid": self.vid}
        if self.duration is not None:
            record["duration"] = self.duration
        if self.windows:
            record["relevant_windows"] = [list(window) for window in self.windows]
        if self.saliency is not None:
            record["relevant_clip_ids"] = list(self.saliency.clips)
            record["saliency_scores"] = [list(row) for row in self.saliency.scores]
        rewrites: dict[str, Any] = self.rewrites.to_record()
        del rewrites["query"]
        return record | {key: value for key, value in rewrites.items() if value}


@dataclass(frozen=True, slots=True)
class Annotations:
    """The queries of a dataset, as annotation files give them."""

    dataset: str
    """One of `DATASETS`."""
    queries: tuple[AnnotatedQuery, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    """Sentences on what was taken, ignored and missing. Say them once a run."""
    warnings: tuple[str, ...] = ()
    """Sentences on probable mistakes, such as a key that looks like rewrites and is not used."""

    def ground_truth(self) -> list[Record]:
        """Return the queries that have windows, as `metrics.check_ground_truth` takes them.

        Returns:
            Records of `qid`, `query`, `vid`, `duration` (if known), `relevant_windows` and, where
            the file has saliency, `relevant_clip_ids` and `saliency_scores`.
        """
        return [
            {key: record[key] for key in _TRUTH_KEYS if key in record}
            for record in (query.to_record() for query in self.queries if query.windows)
        ]


_TRUTH_KEYS = (
    "qid",
    "query",
    "vid",
    "duration",
    "relevant_windows",
    "relevant_clip_ids",
    "saliency_scores",
)
