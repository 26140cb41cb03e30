"""Functions that recognise the miniatures, and the videos that their renderer wrote."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.models.manifest import exported_models, model_sources, same_weights
from granalign_fast.video.container import open_video

from . import MODELS

TAG, MARK = "comment", "scenes of granalign-fast, rendered"
"""A tag in the metadata of every video that `videos.render_video` writes. MP4 keeps comments, and
programs that convert a video copy them."""


def are_miniatures(fingerprints: Iterable[str]) -> bool:
    """Return whether one of some models is a miniature of the package, in whatever precision.

    Args:
        fingerprints: of the models, or the SHA-256 of their sources.
    """
    return any(same_weights(name, source) for name in fingerprints for source in _sources())


def is_rendered(video: Path | None) -> bool:
    """Return whether a video shows scenes that the miniatures know: their renderer wrote it.

    A file that is unknown, missing or unreadable was not.
    """
    if video is None:
        return False
    try:
        with open_video(video) as opened:
            # Matroska writes the tag's name in capitals.
            tags = opened.container.metadata.items()
            return any(name.lower() == TAG and value == MARK for name, value in tags)
    except GranAlignError:
        return False


@functools.cache
def _sources() -> tuple[str, ...]:
    """Return the SHA-256 of each miniature's source."""
    return tuple(sha256 for _, sha256 in model_sources(exported_models(MODELS)).values())
