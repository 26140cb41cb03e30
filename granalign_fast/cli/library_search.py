"""``granalign search LIBRARY``: the moments of all videos that fit a query."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError, counted
from granalign_fast.files import escape_undecodable
from granalign_fast.storage import Address
from granalign_fast.storage.address import path_text

from .options import print_json
from .progress import progress_bar
from .search_outputs import Outputs
from .search_settings import SearchSettings

if TYPE_CHECKING:
    from granalign_fast.library import Filters, Library
    from granalign_fast.library.catalogue import Catalogue
    from granalign_fast.library.results import LibraryMoment, LibraryResult, VideoHit
    from granalign_fast.search.retriever import Retriever

_log = logging.getLogger(__name__)


def is_remote(source: Path) -> bool:
    """Return whether a source lies in an object store."""
    return Address.find(source) is not None


def is_library(source: Path) -> bool:
    """Return whether a folder holds the indexes of several videos, and is not one itself.

    A source in an object store is one, unless it was copied as an index.
    """
    if is_remote(source):
        return True
    from granalign_fast.index.manifest import MANIFEST
    from granalign_fast.library.records import index_stamps

    return source.is_dir() and not (source / MANIFEST).exists() and len(index_stamps(source)) > 1


def open_library(source: Path, retriever: Retriever, *, hidden: bool) -> Library:
    """Open a library; show how many indexes are read into its catalogue, if there are any."""
    from granalign_fast.library import Library

    return Library(_open_catalogue(source, hidden=hidden), retriever)


def _open_catalogue(source: Path, *, hidden: bool) -> Catalogue:
    from granalign_fast.library.opening import open_library_catalogue

    with progress_bar("reading new indexes", "videos", hidden=hidden) as advance:
        progress = None if advance is None else lambda _, total: advance(1, total)
        return open_library_catalogue(source, progress=progress)


def search_library(
    settings: SearchSettings,
    outputs: Outputs,
    *,
    filters: Filters,
    refine: int,
    budget: float | None,
    overlapping: bool,
) -> None:
    """Search a library, and print the moments of all its videos.

    Args:
        settings: the library, the query and the models.
        outputs: what is printed; a library writes no other file.
        filters: which videos are searched.
        refine: how many videos the second stage searches.
        budget: seconds after which it begins no further one; None for no limit.
        overlapping: show the list that benchmarks score, not distinct moments.

    Raises:
        GranAlignError: something is wanted that is made of one video, a model is missing, or no
            video is left to be searched.
    """
    from granalign_fast.library import Library

    outputs.check_library()
    media = settings.media
    if media is not None and Address.find(media) is None and not media.is_dir():
        raise GranAlignError(f"--media {media}: expected a folder for a library, or s3://...")
    hidden = outputs.form == "json"
    catalogue = _open_catalogue(settings.source, hidden=hidden)
    preset = _preset_of(settings, catalogue)
    _check_models(settings, catalogue, preset)
    library = Library(catalogue, settings.open_retriever(preset), media=media)
    result = library.search(
        settings.query,
        top=settings.top,
        refine=refine,
        budget=budget,
        filters=filters,
        overlapping=overlapping,
    )
    for stage, seconds in result.seconds.items():
        _log.debug("%s took %.4f s", stage, seconds)
    if not result.searched:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result.left_out.items())
        raise GranAlignError(
            f"{library.catalogue.name}: got no video to search ({reasons or 'there is none'}); "
            f"choose others, or give the models that made the indexes"
        )
    if hidden:
        print_json(library_record(library, result))
    else:
        _print(library, result, chosen=not filters.is_empty)


def _preset_of(settings: SearchSettings, catalogue: Catalogue) -> str:
    """Return the preset of a search: the one that is named, or the one that suits the videos."""
    if settings.preset is not None:
        return settings.preset
    videos = catalogue.videos()
    framed = any(video.frame_encoder is not None for video in videos)
    captioned = any(video.captioned for video in videos)
    return "visual" if framed and not captioned and not settings.captions_only else "tuned"


def _check_models(settings: SearchSettings, catalogue: Catalogue, preset: str) -> None:
    """Raise unless the models that looked at frames of any video are there to look again.

    The preset visual looks at none again, and needs the encoder of frames alone.
    """
    from granalign_fast.config import resolve_config
    from granalign_fast.index.model_checks import check_frame_encoder, check_models

    models: dict[str, str] = {}
    for video in catalogue.videos():
        models |= video.models
    scorer = resolve_config(preset).scorer
    if scorer == "frames" and "clip" in models:
        check_frame_encoder(catalogue.name, models["clip"], settings.used)
    elif scorer != "frames" and not settings.captions_only:
        check_models(catalogue.name, models, settings.used, frames=scorer == "captions")


def library_record(library: Library, result: LibraryResult) -> dict[str, Any]:
    """Return the answer of a library as JSON."""
    from granalign_fast.library.warnings import library_warnings

    files = {hit.video.vid: hit.video.path for hit in result.videos}
    return {
        "query": result.query.query,
        "rewrites": result.query.to_record(),
        "library": escape_undecodable(library.catalogue.name),
        "searched": result.searched,
        "left_out": dict(result.left_out),
        "complete": result.complete,
        "probably_absent": result.probably_absent,
        "warnings": library_warnings(result),
        "moments": [_moment_record(moment, files[moment.vid]) for moment in result.moments],
        "videos": [_video_record(hit) for hit in result.videos],
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
    }


def _moment_record(moment: LibraryMoment, path: Path | None) -> dict[str, Any]:
    return {
        "vid": moment.vid,
        "video": None if path is None else escape_undecodable(path_text(path)),
        "start": moment.start,
        "end": moment.end,
        "score": round(moment.score, 6),
        "refined": moment.refined,
        "exists": None if moment.exists is None else round(moment.exists, 4),
        "caption": moment.caption,
    }


def _video_record(hit: VideoHit) -> dict[str, Any]:
    path = hit.video.path
    return {
        "vid": hit.video.vid,
        "video": None if path is None else escape_undecodable(path_text(path)),
        "score": round(hit.score, 6),
        "similarity": round(hit.similarity, 6),
        "words": round(hit.words, 6),
        "start": hit.start,
        "end": hit.end,
        "refined": hit.result is not None,
    }


def _print(library: Library, result: LibraryResult, *, chosen: bool) -> None:
    from rich.table import Table

    from granalign_fast.library.warnings import library_warnings
    from granalign_fast.output.tables import clocks, show

    if result.probably_absent:
        judged = sum(hit.result is not None for hit in result.videos)
        show(f"probably in none of the videos ({counted(judged, 'video')} judged by a model)")
    of = counted(result.searched, "video") + (" that the filters choose" if chosen else "")
    table = Table(title=f"{result.query.query}  ({of})", title_justify="left")
    table.add_column("video", overflow="fold")
    for name in ("start", "end", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("its best clip")
    for moment in result.moments:
        mark = "" if moment.refined else " *"
        cells = *clocks(moment.start, moment.end), f"{moment.score:.3f}{mark}"
        table.add_row(moment.vid, *cells, moment.caption or "")
    show(table)
    if not all(moment.refined for moment in result.moments):
        show("* by the first stage alone: --refine or --budget did not reach the video")
    for warning in library_warnings(result):
        show(f"warning: {warning}")
    if result.moments:
        vid = shlex.quote(result.moments[0].vid)
        show(f"more about one video: the same command with --vid {vid}")
