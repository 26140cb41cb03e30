"""Functions that recognise the miniatures, and the videos that their renderer wrote."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.models.manifest import exported_models, model_sources, same_weights
from granalign_fast.video.container import open_video

from . import NAMES

TAG, MARK = "comment", "scenes of granalign-fast, rendered"
"""A tag in the metadata of every video that `videos.render_video` writes. MP4 keeps comments, and
programs that convert a video copy them."""


def are_miniatures(fingerprints: Iterable[str]) -> bool:
    """Return whether one of some models is a miniature of the package, in whatever precision.

    Args:
        fingerprints: of the models, or the SHA-256 of their sources.
    """
    return miniatures_named(fingerprints) is not None


def miniatures_named(fingerprints: Iterable[str]) -> str | None:
    """Return the name of the package's folder that has one of some models; None if none has.

    Args:
        fingerprints: as for `are_miniatures`.
    """
    given = list(fingerprints)
    for name, sources in _sources().items():
        if any(same_weights(model, source) for model in given for source in sources):
            return name
    return None


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
def _sources() -> dict[str, tuple[str, ...]]:
    """Return the SHA-256 of each miniature's source, by the name of its folder."""
    return {
        name: tuple(sha256 for _, sha256 in model_sources(exported_models(folder)).values())
        for name, folder in NAMES.items()
    }
