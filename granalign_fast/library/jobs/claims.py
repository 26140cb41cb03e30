"""Two jobs that index into one object store: no video is indexed by both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.storage import Store, StoredFile
from granalign_fast.storage.address import path_text
from granalign_fast.storage.claims import claimed_in_part

from .output import find_manifests, index_name
from .sources import OnFailure, Plan

_SECOND = 1_000_000_000
"""Nanoseconds: a store may tell the time of one object finer in a list than alone."""


@contextmanager
def claimed_videos(out: Store, planned: Plan, on_error: OnFailure) -> Iterator[Plan]:
    """Keep other jobs away from the videos of a job in an object store, for the block.

    Two jobs may give one id to two videos of the same name. The first one keeps it, and the other
    video gets another id when its job is run again.

    Args:
        out: the output. A folder has a lock of its own, and its plan stays as it is.
        planned: the work of the job.
        on_error: called with each video that another job indexes now, or has indexed since the job
            was planned.

    Yields:
        The work without these videos.

    Raises:
        GranAlignError: the store cannot be read or written.
    """
    names = {video.vid: video.name for video in planned.pending}
    names |= {vid: path_text(source.path) for vid, source in planned.moved}
    if isinstance(out.place, Path) or not names:
        yield planned
        return
    with claimed_in_part(out, [index_name(vid) for vid in names]) as taken:
        free = [vid for vid in names if index_name(vid) not in taken]
        now = find_manifests(out, free)
        gone = {
            vid: GranAlignError(
                f"{out}: another job is at work on {index_name(vid)}; run the same command again "
                f"when it has ended"
            )
            for vid in names
            if vid not in free
        } | {
            vid: GranAlignError(
                f"{out}: another job has written {index_name(vid)} since this one began; run the "
                f"same command again"
            )
            for vid in free
            if not _is_same(planned.manifests.get(vid), now.get(vid))
        }
        for vid, error in gone.items():
            on_error(names[vid], error)
        yield replace(
            planned,
            pending=[video for video in planned.pending if video.vid not in gone],
            current=[vid for vid in planned.current if vid not in gone],
            moved=[(vid, source) for vid, source in planned.moved if vid not in gone],
        )


def _is_same(before: StoredFile | None, now: StoredFile | None) -> bool:
    if before is None or now is None:
        return before is now
    return before.bytes == now.bytes and abs(before.modified_ns - now.modified_ns) < _SECOND
