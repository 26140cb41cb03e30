"""Warnings about the answer of a search: one list for every kind of output."""

from __future__ import annotations

from collections.abc import Mapping

from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import listed
from granalign_fast.index import VideoIndex
from granalign_fast.index.model_checks import clips_warning
from granalign_fast.language.rewriters import fallback_warning
from granalign_fast.miniatures.provenance import are_miniatures, is_rendered
from granalign_fast.models.manifest import same_weights
from granalign_fast.types import SearchResult

from .tables import clocks, missing_stretches


def search_warnings(
    index: VideoIndex,
    result: SearchResult,
    models: Mapping[str, str] | None = None,
    config: RetrieverConfig | None = None,
) -> list[str]:
    """Return warnings about the answer of a search, each in one line.

    Args:
        index: the video that was searched.
        result: the result of the search.
        models: fingerprints of the models that searched, or the SHA-256 of their sources, by kind;
            None if only a sentence encoder did.
        config: the configuration of the search; None for one that suits all clips.
    """
    models = models or {}
    warnings = []
    if stretches := missing_stretches(index):
        text = listed([" to ".join(clocks(*stretch)) for stretch in stretches])
        warnings.append(f"this index is partial: the file lacks the picture of {text}")
    video = None if index.frames is None else index.frames.path
    if are_miniatures((*index.models.values(), *models.values())) and not is_rendered(video):
        warnings.append(
            "the miniatures know rendered scenes of coloured shapes alone, and this video is not "
            "known to be one: the answer means nothing; take real models"
        )
    made, used = index.models.get("vlm"), models.get("vlm")
    if made is not None and used is not None and not same_weights(made, used):
        warnings.append(
            f"the captions are by another vision-language model ({made}) than the one that "
            f"searched ({used[:16]}); index the video with the models that search it"
        )
    if index.video.captions is None and result.exists is None:
        warnings.append(
            "this index has no captions: the query was compared with frames alone, and no model "
            "judged whether the video shows it"
        )
    if config is not None and (other := clips_warning(index, config)):
        warnings.append(other)
    if result.rewrites is not None and (fallback := fallback_warning(result.rewrites)):
        warnings.append(fallback)
    return warnings
