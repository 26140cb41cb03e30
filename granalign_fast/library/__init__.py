"""Many videos: their catalogue, the search of all of them, and their upkeep."""

from __future__ import annotations

from .filters import Filters
from .library import Library
from .one_video import search_video
from .results import LibraryMoment, LibraryResult, VideoHit

__all__ = ["Filters", "Library", "LibraryMoment", "LibraryResult", "VideoHit", "search_video"]
