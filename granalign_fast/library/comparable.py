"""Which videos of a catalogue can be compared with queries: told once, not for each query."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .catalogue import Catalogue
from .filters import Filters
from .first_stage import Part, Texts
from .segment import Segment
from .spaces import Spaces
from .tags import Tags
from .words import Collection, Postings


class _Segment(NamedTuple):
    """A segment, and what can be compared in it."""

    segment: Segment
    live: npt.NDArray[np.int64]
    """The numbers of its videos that count."""
    fits: npt.NDArray[np.bool_]
    """`(videos,)`: which of all its videos count and can be compared."""
    framed: npt.NDArray[np.bool_]
    """`(videos,)`: which of these have frames that can be compared."""
    reasons: dict[int, str]
    """Why others that count cannot, by their numbers."""


class Comparable:
    """The videos of one catalogue that can be compared with queries in some spaces.

    Args:
        catalogue: of the videos.
        spaces: in which they are compared.
        texts: any query; only the lengths of its embeddings count.
    """

    def __init__(self, catalogue: Catalogue, spaces: Spaces, texts: Texts) -> None:
        self.catalogue = catalogue
        self._dims = _dims(texts)
        self._segments = [
            _compared(segment, np.array(numbers, np.int64), spaces, texts)
            for segment, numbers in zip(catalogue.segments, catalogue.live, strict=True)
        ]

    def suits(self, catalogue: Catalogue, texts: Texts) -> bool:
        """Return whether this is about a catalogue, and queries with embeddings of such lengths."""
        return self.catalogue is catalogue and self._dims == _dims(texts)

    @cached_property
    def collection(self) -> Collection:
        """All stretches of the videos that count and have captions.

        Removed videos do not count, though their rows stay until segments are merged; those that
        filters leave out do. So a score does not depend on how the videos lie in segments.

        Raises:
            GranAlignError: the words of a segment are damaged.
        """
        parts: list[tuple[Postings, npt.NDArray[np.bool_] | None]] = []
        for one in self._segments:
            if not len(one.live) or not one.segment.record.dim:  # without captions
                continue
            if len(one.live) == len(one.fits):
                parts.append((one.segment.postings, None))
            else:
                counts = np.isin(one.segment.stretches.videos, one.live)
                parts.append((one.segment.postings, counts))
        return Collection(parts)

    def parts(self, filters: Filters, tags: Tags) -> tuple[list[Part], dict[str, int]]:
        """Return the segments and videos that are searched, and why how many others are not.

        Args:
            filters: which videos are wanted.
            tags: of the videos, if the filters ask for some.
        """
        left_out: Counter[str] = Counter()
        parts, everything = [], filters.is_empty
        for segment, live, fits, framed, reasons in self._segments:
            chosen, why = fits, reasons
            if not everything:
                passing = np.zeros(len(fits), bool)
                for number in live.tolist():
                    passing[number] = filters.passes(segment.videos[number], tags)
                chosen = fits & passing
                why = {number: reason for number, reason in reasons.items() if passing[number]}
                if out := len(live) - int(passing.sum()):
                    left_out["not chosen by the filters"] += out
            left_out.update(why.values())
            if chosen.any():
                parts.append(Part(segment, chosen, framed & chosen))
        if self.catalogue.damaged:
            left_out["damaged index"] = len(self.catalogue.damaged)
        return parts, dict(left_out)


def _dims(texts: Texts) -> list[int | None]:
    """Return the lengths of a query's embeddings in each space; None where it is not compared."""
    return [
        None if one is None else int(one.rows.shape[1]) for one in (texts.captions, texts.frames)
    ]


def _compared(
    segment: Segment, live: npt.NDArray[np.int64], spaces: Spaces, texts: Texts
) -> _Segment:
    """Ask for each video of a segment whether it can be compared."""
    fits = np.zeros(len(segment.videos), bool)
    framed = np.zeros(len(segment.videos), bool)
    reasons = {}
    for number in live.tolist():
        video = segment.videos[number]
        if reason := spaces.reason_against(texts, segment.record, video):
            reasons[number] = reason
        else:
            fits[number] = True
            framed[number] = spaces.has_frames(texts, segment.record, video)
    return _Segment(segment, live, fits, framed, reasons)
