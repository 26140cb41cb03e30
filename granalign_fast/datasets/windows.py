"""Check the windows of queries against their videos, as the loaders of each dataset do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from granalign_fast.errors import GranAlignError, counted, listed

from .records import MAX_OVERSHOOT_SECONDS, AnnotatedQuery, Window
from .statements import Statement


@dataclass(slots=True)
class WindowCheck:
    """Checks windows, and counts those that it changes.

    Windows of QVHighlights stay as they are. Those of the other datasets are clipped to the video,
    and left out where they start at or after their ends; so is a query that has no other.
    """

    dataset: str
    durations: Mapping[str, float]
    """Seconds, by video."""
    clipped: int = 0
    left_out: list[str] = field(default_factory=list)
    """Video and sentence of each window that is left out."""
    queries_left_out: int = 0

    def kept(self, statements: Iterable[Statement]) -> Iterable[AnnotatedQuery]:
        """Yield the queries with valid windows, and those that never had any.

        Raises:
            GranAlignError: a window is outside its video.
        """
        for one in statements:
            assert one.qid is not None and one.vid is not None and one.rewrites is not None
            duration = self.durations.get(one.vid)
            checked = [self._checked(one, window, duration) for window in one.windows]
            windows = tuple(window for window in checked if window is not None)
            self.left_out += [f"{one.vid} {one.rewrites.query!r}"] * (len(checked) - len(windows))
            if checked and not windows:
                self.queries_left_out += 1
                continue
            yield AnnotatedQuery(one.qid, one.vid, one.rewrites, duration, windows, one.saliency)

    def _checked(self, one: Statement, window: Window, duration: float | None) -> Window | None:
        """Return a window in its video; None if it is to be left out.

        Raises:
            GranAlignError: the window is outside its video, or starts at or after its end in
                QVHighlights.
        """
        start, end = window
        as_is = self.dataset == "qvhighlights"
        if start >= end and not as_is:
            return None
        if problem := _problem(start, end, duration, as_is=as_is):
            raise GranAlignError(
                f"{one.location}: the window {list(window)} {problem}; expected seconds of the "
                f"video {one.vid!r}: correct the line or remove it"
            )
        if as_is or (start >= 0 and (duration is None or end <= duration)):
            return window
        self.clipped += 1
        return max(start, 0.0), end if duration is None else min(end, duration)

    def notes(self) -> list[str]:
        """Say what was changed."""
        notes = []
        if self.clipped:
            notes.append(f"Clipped to the video: {counted(self.clipped, 'window')}.")
        if self.left_out:
            notes.append(
                f"Left out, because it starts at or after its end: "
                f"{counted(len(self.left_out), 'window')}, and with it "
                f"{counted(self.queries_left_out, 'query', 'queries')}: {listed(self.left_out)}."
            )
        return notes


def _problem(start: float, end: float, duration: float | None, *, as_is: bool) -> str:
    """Say what is wrong with a window; empty: nothing that clipping would not mend.

    Args:
        start: seconds.
        end: seconds.
        duration: of the video in seconds, if it is known.
        as_is: whether the window is not going to be clipped.
    """
    if start >= end:
        return "starts at or after its end"
    if start < 0 and (as_is or end <= 0):
        return "starts before the video"
    if duration is not None and start >= duration:
        return f"starts after its video, which lasts {duration:g} s"
    if duration is not None and end > duration + MAX_OVERSHOOT_SECONDS:
        return f"ends {end - duration:g} s after its video, which lasts {duration:g} s"
    return ""
