"""The videos, the rewriter and the set-up of `granalign evaluate`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError

from .diagnosis import installed_version
from .index import index_progress

if TYPE_CHECKING:
    from granalign_fast.config import RetrieverConfig
    from granalign_fast.evaluation import Videos
    from granalign_fast.pipeline import ModelFolder, MomentRetriever
    from granalign_fast.protocols import Rewriter

REWRITERS = ("given", "rules", "models", "none")
_PACKAGES = ("granalign-fast", "numpy", "onnxruntime", "onnxruntime-gpu")


def open_source(
    captions: Path | None,
    videos: Path | None,
    indexes: Path | None,
    models: ModelFolder | None,
    other_encoder: str | None,
    *,
    config: RetrieverConfig,
    hidden: bool,
) -> Videos:
    """Return the videos of an evaluation.

    Args:
        captions: a file or folder of captions, or
        videos: a folder of video files, or
        indexes: a folder of indexes; with `videos`, where their indexes are kept.
        models: index the video files.
        other_encoder: the value of an option that replaces the sentence encoder of `models`.
        config: of the searches; video files are indexed in clips for which it is made.
        hidden: show no progress.

    Raises:
        GranAlignError: none of the three is given, or two that exclude each other, or the source
            cannot be used.
    """
    from granalign_fast.evaluation import CaptionFile, IndexFolder, VideoFiles
    from granalign_fast.index import CLIP_SECONDS

    if captions is not None and videos is None and indexes is None:
        return CaptionFile(captions)
    if captions is not None or (videos is None and indexes is None):
        got = "no captions and no videos" if captions is None else "--captions and another source"
        raise GranAlignError(
            f"got {got}, expected one of: --captions FILE, --videos DIR, --indexes DIR"
        )
    if videos is None:
        return IndexFolder(indexes or "")
    if models is None:
        raise GranAlignError(
            "--videos: got no models, expected --models DIR with a vision-language model"
        )
    if other_encoder is not None:
        raise GranAlignError(
            f"--videos: got another sentence encoder, {other_encoder}, expected that of --models, "
            f"by which they are indexed; leave --encoder and --precision out"
        )
    return VideoFiles(
        videos,
        models,
        indexes,
        bars=lambda: index_progress(hidden=hidden),
        clip_seconds=config.clip_seconds or CLIP_SECONDS,
        frames_per_clip=config.frames_per_clip or 1,
    )


def rewriter_of(name: str, models: ModelFolder | None) -> Rewriter | None:
    """Return a rewriter by its name; None for the rewrites of the files.

    Raises:
        GranAlignError: there is none of that name, or it needs models.
    """
    from granalign_fast.language.rewriters import NoRewriter, RuleRewriter

    if name not in REWRITERS:
        raise GranAlignError(f"--rewriter: got {name!r}, expected one of: {', '.join(REWRITERS)}")
    if name == "rules":
        return RuleRewriter()
    if name == "none":
        return NoRewriter()
    if name == "models":
        if models is None:
            raise GranAlignError("--rewriter models: got no models, expected --models DIR")
        return models.rewriter
    return None


def setup_record(
    retriever: MomentRetriever,
    models: ModelFolder | None,
    *,
    preset: str,
    rewriter: str,
    device: str,
) -> dict[str, Any]:
    """Return what searches, for the record of an evaluation."""
    encoder = getattr(retriever.encoder, "encoder", retriever.encoder)  # the one that is cached
    manifest = getattr(encoder, "manifest", None)
    versions = {name: installed_version(name) for name in _PACKAGES}
    return {
        "preset": preset,
        "rewriter": rewriter,
        "encoder": {
            "source": getattr(manifest, "source", None),
            "precision": getattr(manifest, "precision", None),
            "fingerprint": getattr(encoder, "fingerprint", None),
        },
        "device": device,
        "models": {
            kind: {"source": source, "sha256": sha256}
            for kind, (source, sha256) in (models.sources if models else {}).items()
        },
        "versions": {"python": platform.python_version()}
        | {name: number for name, number in versions.items() if number},
    }
