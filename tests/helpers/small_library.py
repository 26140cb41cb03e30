"""A small library for services: two indexed videos, and one that has no index."""

from __future__ import annotations

from pathlib import Path

from granalign_fast.miniatures.videos import render_video
from granalign_fast.pipeline import open_models
from granalign_fast.video.cutting import cut


def write_small_library(folder: Path) -> dict[str, Path]:
    """Write ``library`` and ``videos`` below a folder; return the video files by name.

    ``first`` and ``second`` are indexed, ``new`` is not: each has 14 seconds of ``long``.
    """
    found = {"long": folder / "long.mp4"}
    videos = folder / "videos"
    videos.mkdir()
    render_video(found["long"], 7, seconds=(54.0, 60.0))
    for number, name in enumerate(("first", "second", "new")):
        start = 16.0 * number
        found[name] = videos / f"{name}.mp4"
        cut(found["long"], start, start + 14, found[name], exact=True)
    models = open_models("miniatures", prefix_gib=0.0)
    models.index([found["first"], found["second"]], folder / "library")
    return found
