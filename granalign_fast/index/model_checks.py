"""Check that the models that search an index are those that made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import GranAlignError, counted
from granalign_fast.miniatures.provenance import miniatures_named
from granalign_fast.models.manifest import same_weights
from granalign_fast.protocols import TextEncoder

from .video_index import VideoIndex


def check_models(
    source: str | Path, models: Mapping[str, str], given: Iterable[str], *, frames: bool
) -> None:
    """Raise unless the models that looked at the frames of indexes are there to look again.

    Args:
        source: the folder of the index or the library, or its address.
        models: fingerprints of the models that made it, by kind.
        given: kinds of the models that search.
        frames: whether the search needs the encoder of frames.

    Raises:
        GranAlignError: a model is missing.
    """
    kinds = ("vlm", "clip") if frames else ("vlm",)
    missing = [kind for kind in kinds if kind in models and kind not in given]
    if not missing:
        return
    named = ", ".join(f"{kind} {models[kind]}" for kind in missing)
    miniatures = miniatures_named(models[kind] for kind in missing)
    remedy = f"--models {miniatures}" if miniatures else "--models DIR with them"
    if "-remote" in models.get("vlm", ""):
        remedy = "--vlm-url with the server that is named"
    raise GranAlignError(
        f"{source}: was made with models that are not given ({named}), expected {remedy}; or "
        f"compare captions alone with --captions-only"
    )


def clips_warning(index: VideoIndex, config: RetrieverConfig) -> str | None:
    """Return a warning if a configuration is made for other clips than an index has; else None."""
    seconds, frames = index.video.clip_seconds, index.frames_per_clip
    wanted = config.clip_seconds or seconds, config.frames_per_clip or frames
    if wanted == (seconds, frames):
        return None
    return (
        f"the preset is made for clips of {wanted[0]:g} s with {counted(wanted[1], 'frame')}, and "
        f"this index has clips of {seconds:g} s with {frames}: index the video again with "
        f"--clip-seconds {wanted[0]:g} --frames-per-clip {wanted[1]}"
    )


def check_frames(source: Path, index: VideoIndex, given: Iterable[str]) -> None:
    """Raise unless the index has embeddings of frames, and their encoder is there.

    Args:
        source: the folder of the index.
        index: the index.
        given: kinds of the models that search.

    Raises:
        GranAlignError: the embeddings or the model are missing.
    """
    made = index.models.get("clip")
    if index.frames is None or index.frames.embeddings is None or made is None:
        raise GranAlignError(
            f"{source}: got an index without embeddings of frames, which the preset 'visual' "
            f"compares; take the preset 'tuned', or index the video with a model of kind 'clip'"
        )
    check_frame_encoder(source, made, given)


def check_frame_encoder(source: str | Path, made: str, given: Iterable[str]) -> None:
    """Raise unless the encoder of the frames of indexes is there.

    Args:
        source: the folder of the index or the library.
        made: its fingerprint.
        given: kinds of the models that search.

    Raises:
        GranAlignError: it is missing.
    """
    if "clip" not in given:
        miniatures = miniatures_named([made])
        models = f"--models {miniatures}" if miniatures else "--models DIR with it"
        raise GranAlignError(
            f"{source}: its frames were embedded by a model that is not given (clip {made}), "
            f"expected {models}"
        )


def check_encoder(source: Path, index: VideoIndex, encoder: TextEncoder) -> None:
    """Raise if the captions were embedded by another model; its precision may be another.

    Raises:
        GranAlignError: they were.
    """
    made, got = index.models.get("sentence-encoder"), getattr(encoder, "fingerprint", None)
    if made is not None and got is not None and not same_weights(made, got):
        raise GranAlignError(
            f"{source}: its captions were embedded by the sentence encoder {made}, got {got}; name "
            f"the one that made the index, or index the video again"
        )
