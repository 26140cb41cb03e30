"""Which segments of a catalogue are merged, and the writing of new ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .records import VideoRows
from .segment import Segment, SegmentRecord, SegmentWriter

MOST_CLIPS = 1 << 20
"""Clips of a segment, which bounds the memory of writing one; a longer video has one of its own."""

Key = tuple[int, int]
"""Numbers of a caption's and of a frame's embedding, which are the same in a segment."""


@dataclass(frozen=True, slots=True)
class Group:
    """The videos of a segment that count."""

    segment: Segment
    numbers: tuple[int, ...]

    @property
    def clips(self) -> int:
        """The clips of these videos."""
        return sum(self.segment.videos[number].clips for number in self.numbers)

    @property
    def key(self) -> Key:
        """The properties that segments must share to be merged."""
        return self.segment.record.dim, self.segment.record.frame_dim


def merge_plan(groups: Sequence[Group]) -> Iterator[tuple[list[Group], bool]]:
    """Yield which segments become one, and whether a segment stays as it is.

    A segment is merged with the one before it unless that has at least twice its clips. So there
    are few segments, and each row is written again as often as the library has doubled. A segment
    of which less than half counts is written again without the rest.
    """
    by_key: dict[Key, list[list[Group]]] = {}
    for group in groups:
        runs = by_key.setdefault(group.key, [])
        runs.append([group])
        while len(runs) > 1 and _should_join(_clips(runs[-2]), _clips(runs[-1])):
            last = runs.pop()
            runs[-1] += last
    for runs in by_key.values():
        for run in runs:
            yield run, len(run) == 1 and 2 * run[0].clips >= run[0].segment.record.clips


def find_damaged(
    plan: Iterable[tuple[list[Group], bool]], known: Container[Segment]
) -> dict[str, str]:
    """Return why segments that are to be written again are damaged, by the names of their folders.

    The rows of a segment get new hashes when they are written again. So they are compared with the
    old ones first: otherwise damage on the disk would look whole from then on.

    Args:
        plan: as from `merge_plan`; a segment that stays as it is is not read.
        known: segments that need no check, because this process has just written them.
    """
    segments = (group.segment for groups, whole in plan if not whole for group in groups)
    reasons = ((one.folder.name, one.find_altered()) for one in segments if one not in known)
    return {name: reason for name, reason in reasons if reason is not None}


def _clips(groups: Iterable[Group]) -> int:
    return sum(group.clips for group in groups)


def _should_join(before: int, last: int) -> bool:
    return before < 2 * last and before + last <= MOST_CLIPS


def grouped(groups: Iterable[Group]) -> Iterator[VideoRows]:
    """Yield the rows of the videos that count."""
    for group in groups:
        yield from group.segment.rows(group.numbers)


def write_segments(root: Path, rows: Iterable[VideoRows]) -> list[SegmentRecord]:
    """Write rows as new segments, one for each length of embeddings, or several if they are many.

    Args:
        root: the folder in which the segments are made.
        rows: of videos.

    Raises:
        OSError: the disk is full, or the folder cannot be written; nothing of it is left.
    """
    writers: dict[Key, SegmentWriter] = {}
    made: list[Path] = []
    records: list[SegmentRecord] = []
    try:
        for one in rows:
            key = one.embeddings.shape[1], 0 if one.frames is None else one.frames.shape[1]
            writer = writers.get(key)
            if writer is not None and writer.clips + one.video.clips > MOST_CLIPS:
                records.append(writers.pop(key).close())
                writer = None
            if writer is None:
                made.append(root / f"segment-{os.urandom(6).hex()}")
                writer = writers[key] = SegmentWriter(made[-1])
            writer.add(one)
        while writers:
            records.append(writers.popitem()[1].close())
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return records
