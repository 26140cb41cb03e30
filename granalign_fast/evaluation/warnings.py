"""Warnings about the searches of an evaluation: each said once, with a count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from granalign_fast.config import RetrieverConfig
from granalign_fast.errors import counted, listed
from granalign_fast.index import VideoIndex
from granalign_fast.language.rewriters import fallback_warning
from granalign_fast.output.warnings import search_warnings
from granalign_fast.types import SearchResult


def result_warnings(
    indexes: Mapping[str, VideoIndex],
    vids: Sequence[str],
    results: Sequence[SearchResult],
    sources: Mapping[str, str] | None,
    config: RetrieverConfig,
) -> list[str]:
    """Return warnings about searches, equal ones of many videos as one.

    Args:
        indexes: of the videos, by vid.
        vids: the video of each search.
        results: of the searches.
        sources: the SHA-256 of the source of each model that searched, by kind.
        config: the configuration of the searches.
    """
    # What concerns the video is the same for all of its queries, so one result of each will do.
    videos_of: dict[str, list[str]] = {}
    for vid, result in dict(zip(vids, results, strict=True)).items():
        bare = replace(result, rewrites=None)
        for text in search_warnings(indexes[vid], bare, sources, config):
            videos_of.setdefault(text, []).append(vid)
    warnings = [f"{listed(vids)}: {text}" for text, vids in videos_of.items()]
    if len(warnings) > _MOST:
        more = len(warnings) - _MOST
        warnings = [*warnings[:_MOST], f"{more} more warnings of this kind are left out"]
    # Rewrites that are the query itself are counted: each query would have a warning of its own.
    rewritten = [result.rewrites for result in results if result.rewrites]
    useless = [rewrites.query for rewrites in rewritten if fallback_warning(rewrites)]
    if useless:
        warnings.append(
            f"{len(useless):,} of {counted(len(rewritten), 'query', 'queries')} have rewrites that "
            f"are mostly the query itself, because the language model's answers held none: "
            f"{listed(list(map(repr, useless)))}"
        )
    return warnings


_MOST = 5
"""Warnings that are shown; an evaluation may have one for each of its thousands of videos."""
