"""Find the moment in a video that a sentence describes: GranAlign, training-free and fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RetrieverConfig
    from .encoders import SentenceEncoder
    from .errors import GranAlignError
    from .index import CaptionedVideo, VideoIndex
    from .model_folder import ModelFolder
    from .retriever import MomentRetriever, Request
    from .rewrites import RuleRewriter, StoredRewriter
    from .types import Moment, Rewrites, SearchResult

__version__ = "0.1.0"

_HOME = {
    "CaptionedVideo": "index",
    "GranAlignError": "errors",
    "ModelFolder": "model_folder",
    "Moment": "types",
    "MomentRetriever": "retriever",
    "Request": "retriever",
    "RetrieverConfig": "config",
    "Rewrites": "types",
    "RuleRewriter": "rewrites",
    "SearchResult": "types",
    "SentenceEncoder": "encoders",
    "StoredRewriter": "rewrites",
    "VideoIndex": "index",
}

__all__ = [
    "CaptionedVideo",
    "GranAlignError",
    "ModelFolder",
    "Moment",
    "MomentRetriever",
    "Request",
    "RetrieverConfig",
    "Rewrites",
    "RuleRewriter",
    "SearchResult",
    "SentenceEncoder",
    "StoredRewriter",
    "VideoIndex",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import granalign_fast`` is instant."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
