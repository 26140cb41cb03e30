"""Warnings about the answer of a library: one list for the command and for the service."""

from __future__ import annotations

import functools
from pathlib import Path

from granalign_fast.errors import counted, listed
from granalign_fast.language.rewriters import fallback_warning
from granalign_fast.miniatures.provenance import are_miniatures, is_rendered
from granalign_fast.storage.address import address_of

from .records import CataloguedVideo
from .results import LibraryResult


def library_warnings(result: LibraryResult) -> list[str]:
    """Return warnings about the answer of a library, each in one line."""
    warnings = list(result.warnings)
    warnings += [f"{vid}: {reason}" for vid, reason in result.errors.items()]
    warnings += [
        f"{counted(count, 'video')} not searched: {reason}"
        for reason, count in result.left_out.items()
        if reason != "not chosen by the filters"
    ]
    shown = {moment.vid for moment in result.moments}
    videos = [hit.video for hit in result.videos if hit.video.vid in shown]
    if strange := [video.vid for video in videos if _is_strange(video)]:
        names = listed([repr(vid) for vid in strange])
        warnings.append(
            f"{names}: the miniatures know rendered scenes of coloured shapes alone, and this is "
            f"not known to be one: the answer means nothing; take real models"
        )
    if fallback := fallback_warning(result.query):
        warnings.append(fallback)
    return warnings


def _is_strange(video: CataloguedVideo) -> bool:
    """Return whether miniatures indexed a video that their renderer did not write."""
    if not are_miniatures(video.models.values()):
        return False
    if video.path is not None and address_of(video.path) is not None:
        return False  # the file in the object store is not read for this
    return not _is_rendered(video.path, video.stamp)


@functools.lru_cache(maxsize=4096)
def _is_rendered(path: Path | None, stamp: str) -> bool:
    """Return what `is_rendered` does, asked once for a video of an index of one stamp."""
    return is_rendered(path)
