"""``granalign search`` of one video: an index, captions, or a video that is indexed now."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from .search_outputs import Answer, Outputs
from .search_settings import SearchSettings
from .search_sources import (
    check_video_source,
    choose_preset,
    holds_captions,
    index_video,
    load_index,
    read_captioned,
)

if TYPE_CHECKING:
    from granalign_fast.index import VideoIndex
    from granalign_fast.search.retriever import Retriever
    from granalign_fast.types import SearchResult

_log = logging.getLogger(__name__)


def search_video(
    settings: SearchSettings, outputs: Outputs, *, vid: str | None, overlapping: bool
) -> None:
    """Search one video, and write what the options ask for.

    Args:
        settings: the source, the query and the models.
        outputs: what is printed and written.
        vid: names the video, if the source holds several.
        overlapping: show the list that benchmarks score, not distinct moments.

    Raises:
        GranAlignError: there is no such video, or the models do not fit it.
    """
    from granalign_fast import library
    from granalign_fast.index.model_checks import check_encoder

    # 1. Read the index, if there is one, and refuse models that do not fit it.
    index, preset = _find_index(settings, outputs, vid)
    # 2. Load the models, and the captions or the video unless there is an index.
    retriever = settings.open_retriever(preset)
    if index is not None:
        check_encoder(settings.source, index, retriever.encoder)
    else:
        index = _make_index(settings, retriever, vid, hidden=outputs.form == "json")
    facts = outputs.read_source(None if index.frames is None else index.frames.source)
    # 3. Search, choose the moments to show, and show them.
    result = library.search_video(retriever, index, settings.query)
    for stage, seconds in result.seconds.items():
        _log.debug("%s took %.4f s", stage, seconds)
    outputs.write(_answer(settings, index, result, overlapping, preset), facts)


def _find_index(
    settings: SearchSettings, outputs: Outputs, vid: str | None
) -> tuple[VideoIndex | None, str]:
    """Return the index, or None where it is made later, and the preset of the search."""
    from granalign_fast.index.media import with_media, with_store

    source, preset, models = settings.source, settings.preset, settings.models
    if source.is_dir():
        index = load_index(source, vid)
        if settings.store is not None:
            index = with_store(index, settings.store)
        if settings.media is not None:
            index = with_media(index, settings.media)
        preset = choose_preset(source, index, preset, captions_only=settings.captions_only)
        frames = index.frames
        outputs.check_video(
            None if frames is None else frames.path, None if frames is None else frames.source
        )
        _check_models(settings, index, preset)
        return index, preset
    if not holds_captions(source):
        check_video_source(source, vid, models)
        if preset is None and models is not None and "vlm" not in models:
            preset = "visual"  # its index will have no captions
    return None, "tuned" if preset is None else preset


def _check_models(settings: SearchSettings, index: VideoIndex, preset: str) -> None:
    """Raise unless the models that made an index are there to search it."""
    from granalign_fast.config import resolve_config
    from granalign_fast.index.model_checks import check_frames, check_models

    scorer = resolve_config(preset).scorer
    if scorer == "frames":
        check_frames(settings.source, index, settings.used)
    elif not settings.captions_only:
        check_models(settings.source, index.models, settings.used, frames=scorer == "captions")


def _make_index(
    settings: SearchSettings, retriever: Retriever, vid: str | None, *, hidden: bool
) -> VideoIndex:
    """Embed the captions of a file, or index a video file."""
    if holds_captions(settings.source):
        return retriever.index(read_captioned(settings.source, vid))
    assert settings.models is not None  # a video without models was refused
    return index_video(settings.source, settings.models, retriever.config, hidden=hidden)


def _answer(
    settings: SearchSettings,
    index: VideoIndex,
    result: SearchResult,
    overlapping: bool,
    preset: str,
) -> Answer:
    """Choose the moments to show, and collect what is to be said about them."""
    from granalign_fast.config import resolve_config
    from granalign_fast.output.warnings import search_warnings

    note, top, models = None, settings.top, settings.used
    shown = result.moments if overlapping else result.distinct(top)
    if len(shown) < top and len(shown) < len(result.moments) and not overlapping:
        note = "fewer moments are distinct than asked for; --overlapping shows the whole list"
    facts = {
        "Models": ", ".join(f"{kind} {name} ({sha[:8]})" for kind, (name, sha) in models.items()),
        "Index made by": ", ".join(f"{kind} {name}" for kind, name in index.models.items()),
        "Preset": preset,
        "Moments": "the ranked list, which may overlap" if overlapping else "distinct ones",
    }
    sources = {kind: sha for kind, (_, sha) in models.items()}
    warnings = search_warnings(index, result, sources, resolve_config(preset))
    return Answer(index, replace(result, moments=shown), overlapping, warnings, note, facts)
