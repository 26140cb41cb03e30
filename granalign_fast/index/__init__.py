"""Video indexes: everything that is computed about a video before any query, kept on disk."""

from __future__ import annotations

from .models import IndexModels
from .records import (
    CLIP_SECONDS,
    CaptionedVideo,
    FrameTable,
    IndexedVideo,
    UncaptionedVideo,
    VideoSource,
)
from .video_index import VideoIndex

__all__ = [
    "CLIP_SECONDS",
    "CaptionedVideo",
    "FrameTable",
    "IndexModels",
    "IndexedVideo",
    "UncaptionedVideo",
    "VideoIndex",
    "VideoSource",
]
