"""Answers of the library as the JSON of the service."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from granalign_fast.config import PRESETS
from granalign_fast.files import escape_undecodable
from granalign_fast.library.records import CataloguedVideo
from granalign_fast.library.results import LibraryMoment, LibraryResult, VideoHit
from granalign_fast.library.warnings import library_warnings

from .engine import Engine
from .schemas import VERSION, Units


def search_answer(
    engine: Engine, preset: str, results: Sequence[LibraryResult], *, saliency: bool
) -> dict[str, Any]:
    """Return the answer to a search request.

    Args:
        engine: that searched.
        preset: that it searched with.
        results: of the queries, in their order.
        saliency: whether the score of every clip is wanted.
    """
    return {
        "version": VERSION,
        "software": software(),
        "units": Units().model_dump(),
        "preset": preset,
        "models": engine.model_records,
        "results": [result_record(engine, result, saliency=saliency) for result in results],
    }


@cache
def software() -> str:
    """Return name and version of the package."""
    from importlib.metadata import version

    return f"granalign-fast {version('granalign-fast')}"


def result_record(engine: Engine, result: LibraryResult, *, saliency: bool) -> dict[str, Any]:
    """Return the answer to one query."""
    return {
        "query": result.query.query,
        "rewrites": result.query.to_record(),
        "searched": result.searched,
        "left_out": dict(result.left_out),
        "complete": result.complete,
        "probably_absent": bool(result.probably_absent),
        "warnings": [engine.shown(text) for text in library_warnings(result)],
        "moments": [_moment_record(moment) for moment in result.moments],
        "videos": [_hit_record(engine, hit, saliency=saliency) for hit in result.videos],
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
    }


def _moment_record(moment: LibraryMoment) -> dict[str, Any]:
    return {
        "vid": moment.vid,
        "start": moment.start,
        "end": moment.end,
        "score": round(moment.score, 6),
        "refined": moment.refined,
        "exists": _rounded(moment.exists),
        "caption": moment.caption,
    }


def _hit_record(engine: Engine, hit: VideoHit, *, saliency: bool) -> dict[str, Any]:
    found = hit.result
    return {
        "vid": hit.video.vid,
        "file": engine.named(hit.video.path),
        "score": round(hit.score, 6),
        "start": hit.start,
        "end": hit.end,
        "seconds": hit.video.seconds,
        "refined": found is not None,
        "exists": None if found is None else _rounded(found.exists),
        "probably_absent": None if found is None else found.probably_absent,
        "clip_seconds": hit.video.clip_seconds,
        "saliency": (
            [round(value, 4) for value in found.saliency.tolist()]
            if saliency and found is not None
            else None
        ),
    }


def video_record(engine: Engine, video: CataloguedVideo) -> dict[str, Any]:
    """Return what the library knows of a video."""
    date = None
    if video.date is not None:
        date = datetime.fromtimestamp(video.date).astimezone().isoformat(timespec="seconds")
    return {
        "vid": video.vid,
        "file": engine.named(video.path),
        "seconds": video.seconds,
        "clips": video.clips,
        "clip_seconds": video.clip_seconds,
        "frames_per_clip": video.frames_per_clip,
        "date": date,
        "tags": list(engine.tags.get(video.vid, ())),
        "models": dict(video.models),
    }


def service_record(engine: Engine) -> dict[str, Any]:
    """Return what the service can do."""
    from granalign_fast.output.formats import FORMATS

    limits = engine.settings.limits
    return {
        "version": VERSION,
        "software": software(),
        "units": Units().model_dump(),
        "preset": engine.preset,
        "presets": {name: engine.unavailable.get(name) for name in PRESETS},
        "models": engine.model_records,
        "formats": list(FORMATS),
        "uploads": can_index(engine),
        "roots": [escape_undecodable(root.name) for root in engine.settings.roots],
        "limits": {
            "queries": limits.queries,
            "query_characters": limits.query_characters,
            "top": limits.top,
            "refine": limits.refine,
            "timeout": limits.timeout,
            "upload_bytes": limits.upload_bytes,
            "clip_seconds": limits.clip_seconds,
        },
    }


def can_index(engine: Engine) -> bool:
    """Return whether there is a model that captions or embeds frames."""
    return engine.models is not None and ("vlm" in engine.models or "clip" in engine.models)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
