"""Check that the models that search an index are those that made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.miniatures.provenance import are_miniatures
from granalign_fast.models.manifest import same_weights
from granalign_fast.protocols import TextEncoder

from .video_index import VideoIndex


def check_models(
    source: Path, models: Mapping[str, str], given: Iterable[str], *, frames: bool
) -> None:
    """Raise unless the models that looked at the frames of indexes are there to look again.

    Args:
        source: the folder of the index or the library.
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
    miniature = are_miniatures(models[kind] for kind in missing)
    remedy = "--models miniatures" if miniature else "--models DIR with them"
    raise GranAlignError(
        f"{source}: was made with models that are not given ({named}), expected {remedy}; or "
        f"compare captions alone with --captions-only"
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
