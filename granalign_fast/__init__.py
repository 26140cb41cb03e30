"""Find the moment in a video that a sentence describes: GranAlign, training-free and fast."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RetrieverConfig
    from .datasets import AnnotatedQuery, Annotations, read_annotations, read_captions
    from .errors import GranAlignError
    from .evaluation import CaptionFile, Evaluation, IndexFolder, VideoFiles, evaluate
    from .export.frame_encoder import export_clip
    from .export.llm import export_llm
    from .export.model_set import export_model_set
    from .export.sentence_encoder import export_sentence_encoder
    from .export.tensorrt import export_tensorrt
    from .export.vlm import export_vlm
    from .index import CaptionedVideo, UncaptionedVideo, VideoIndex
    from .language.captioner import VlmCaptioner
    from .language.llm_rewriter import LlmRewriter
    from .language.remote_models import RemoteModels
    from .language.rewriters import RuleRewriter, StoredRewriter
    from .library import Filters, Library, LibraryMoment, LibraryResult, search_video
    from .models.frame_encoder import FrameEncoder
    from .models.language_model import CausalLM
    from .models.vision_language_model import VisionLanguageModel
    from .pipeline import ModelFolder, MomentRetriever, SentenceEncoder
    from .runtime.workers import Limits, WorkerError, Workers
    from .search.request import Request
    from .types import Moment, Rewrites, SearchResult

__version__ = "0.1.0"

# ONNX Runtime records events for its maker in the user's cache folder, unless this variable stands
# before its import. A value that is set already stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The application chooses what becomes of log messages; without a choice they go nowhere.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_MODULES = {
    "AnnotatedQuery": "datasets",
    "Annotations": "datasets",
    "CaptionFile": "evaluation",
    "CaptionedVideo": "index",
    "CausalLM": "models.language_model",
    "Evaluation": "evaluation",
    "Filters": "library",
    "FrameEncoder": "models.frame_encoder",
    "GranAlignError": "errors",
    "IndexFolder": "evaluation",
    "Library": "library",
    "LibraryMoment": "library",
    "LibraryResult": "library",
    "Limits": "runtime.workers",
    "LlmRewriter": "language.llm_rewriter",
    "ModelFolder": "pipeline",
    "Moment": "types",
    "MomentRetriever": "pipeline",
    "RemoteModels": "language.remote_models",
    "Request": "search.request",
    "RetrieverConfig": "config",
    "Rewrites": "types",
    "RuleRewriter": "language.rewriters",
    "SearchResult": "types",
    "SentenceEncoder": "pipeline",
    "StoredRewriter": "language.rewriters",
    "UncaptionedVideo": "index",
    "VideoFiles": "evaluation",
    "VideoIndex": "index",
    "VisionLanguageModel": "models.vision_language_model",
    "VlmCaptioner": "language.captioner",
    "WorkerError": "runtime.workers",
    "Workers": "runtime.workers",
    "evaluate": "evaluation",
    "export_clip": "export.frame_encoder",
    "export_llm": "export.llm",
    "export_model_set": "export.model_set",
    "export_sentence_encoder": "export.sentence_encoder",
    "export_tensorrt": "export.tensorrt",
    "export_vlm": "export.vlm",
    "read_annotations": "datasets",
    "read_captions": "datasets",
    "search_video": "library",
}
"""Public names, and the module that defines each."""

__all__ = [
    "AnnotatedQuery",
    "Annotations",
    "CaptionFile",
    "CaptionedVideo",
    "CausalLM",
    "Evaluation",
    "Filters",
    "FrameEncoder",
    "GranAlignError",
    "IndexFolder",
    "Library",
    "LibraryMoment",
    "LibraryResult",
    "Limits",
    "LlmRewriter",
    "ModelFolder",
    "Moment",
    "MomentRetriever",
    "RemoteModels",
    "Request",
    "RetrieverConfig",
    "Rewrites",
    "RuleRewriter",
    "SearchResult",
    "SentenceEncoder",
    "StoredRewriter",
    "UncaptionedVideo",
    "VideoFiles",
    "VideoIndex",
    "VisionLanguageModel",
    "VlmCaptioner",
    "WorkerError",
    "Workers",
    "evaluate",
    "export_clip",
    "export_llm",
    "export_model_set",
    "export_sentence_encoder",
    "export_tensorrt",
    "export_vlm",
    "read_annotations",
    "read_captions",
    "search_video",
]


def __dir__() -> list[str]:
    """Return the public names, imported or not yet, for `dir` and completion."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import granalign_fast`` is instant."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
