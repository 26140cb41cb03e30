"""``granalign search``: the moments of a video, or of a whole library, that fit a query."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from granalign_fast.errors import GranAlignError

from .library_search import check_library_models, is_library, open_library, search_library
from .options import CaptionsOnly, Device, Encoder, Models, Precision, PrefixGib, SearchPreset
from .search_outputs import FORMATS, Answer, Outputs
from .search_sources import (
    check_source,
    check_video_source,
    choose_preset,
    holds_captions,
    index_video,
    load_index,
    read_captioned,
)

if TYPE_CHECKING:
    from granalign_fast.index import VideoIndex
    from granalign_fast.pipeline import ModelFolder
    from granalign_fast.types import SearchResult

_log = logging.getLogger(__name__)


def search(
    source: Annotated[
        Path,
        typer.Argument(help="An index, a folder of indexes, a video, or JSON Lines of captions."),
    ],
    query: Annotated[str, typer.Argument(help="The sentence that describes the moment.")],
    models: Models = None,
    vid: Annotated[
        str | None,
        typer.Option(
            help="The video, where SOURCE holds several: its id, or its file's name or path. "
            "Default: all of them."
        ),
    ] = None,
    refine: Annotated[
        int,
        typer.Option(min=0, help="Of a library: videos that the method searches, the best first."),
    ] = 20,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Of a library: begin no search of a further video after so long.",
        ),
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VIDEO",
            help="Of a library: only this video, or those of a pattern such as 'GX*'; can be "
            "repeated.",
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Of a library: only videos with this tag; can be repeated."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Of a library: only videos made on this date or later."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Of a library: only videos made before this date."),
    ] = None,
    min_length: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Of a library: only videos as long as this."),
    ] = 0.0,
    rewrites: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines of query and rewrites. Default: written by the language model, or by "
            "rules.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Most moments.")] = 5,
    overlapping: Annotated[
        bool,
        typer.Option(
            "--overlapping",
            help="Show the ranked list that benchmarks score. Default: distinct moments, of which "
            "any two share at most 30% of the shorter one.",
        ),
    ] = False,
    captions_only: CaptionsOnly = False,
    preset: SearchPreset = None,
    encoder: Encoder = None,
    precision: Precision = None,
    device: Device = "cpu",
    prefix_gib: PrefixGib = 4.0,
    output: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"Format on stdout: {', '.join(FORMATS)}. edl, otio and fcpxml are cut lists "
            f"with the time codes of the video file; csv has a row for each moment.",
        ),
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw moments, frames and curve; .png, .svg or .pdf."),
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="JPG",
            help="Draw a frame of each moment shown with its times and score, to a .jpg or .png.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="Write a page with the curve and a frame of each moment shown; one file.",
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cut the best moment out of the video, to a .mp4, .mov, .mkv or .webm.",
        ),
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Cut all moments shown, to files named RANK-START-END in seconds."
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Encode cuts, so that they begin and end with the moment. Default: copy the "
            "video from the key frame before it.",
        ),
    ] = False,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="Export and cut even if the query is probably not in the video. Default: print "
            "and draw, but write no file for other programs.",
        ),
    ] = False,
) -> None:
    """Rank the moments of a video, or of all videos of a library, that fit a query."""
    from granalign_fast.config import resolve_config
    from granalign_fast.index.model_checks import check_encoder, check_frames, check_models
    from granalign_fast.language.rewriters import StoredRewriter
    from granalign_fast.library import Filters
    from granalign_fast.pipeline import open_models, open_retriever
    from granalign_fast.types import Rewrites

    # 1. Refuse what cannot be done, before any work.
    outputs = Outputs(
        form="json" if as_json else output,
        plot=plot,
        contact_sheet=contact_sheet,
        report=report,
        clip=clip,
        clips=clips,
        exact=exact,
        anyway=anyway,
    )
    outputs.check()
    if not source.is_dir():
        outputs.check_video(None if holds_captions(source) else source)
    Rewrites(query)  # an empty query is refused
    request = query if rewrites is None else StoredRewriter(rewrites).rewrite([query])[0]
    if preset is not None:
        resolve_config(preset)  # an unknown name is refused
    opened = None
    if models is not None:
        opened = open_models(models, device=device, prefix_gib=prefix_gib)
    used = _models_used(opened, captions_only=captions_only)
    check_source(source)
    filters = Filters(
        videos=tuple(video or ()),
        tags=tuple(tag or ()),
        after=after,
        before=before,
        min_length=min_length,
    )
    many = vid is None and is_library(source)
    if many:
        outputs.check_library()
    elif not filters.is_empty or budget is not None:
        raise GranAlignError(
            f"{source}: got one video, expected a library for --budget, --video, --tag, --after, "
            f"--before and --min-length; leave them out"
        )
    index = None
    if source.is_dir() and not many:
        index = load_index(source, vid)
        preset = choose_preset(source, index, preset, captions_only=captions_only)
        frames = index.frames
        outputs.check_video(
            None if frames is None else frames.path, None if frames is None else frames.source
        )
        scorer = resolve_config(preset).scorer
        if scorer == "frames":
            check_frames(source, index, used)
        elif not captions_only:
            check_models(source, index.models, used, frames=scorer == "captions")
    elif not many and not holds_captions(source):
        check_video_source(source, vid, opened)
        if preset is None and opened is not None and "vlm" not in opened:
            preset = "visual"  # its index will have no captions
    preset = "tuned" if preset is None else preset

    # 2. Load the models, and the captions or the video unless there is an index.
    retriever = open_retriever(
        preset,
        models=opened,
        encoder=encoder,
        precision=precision,
        device=device,
        top=top,
        captions_only=captions_only,
    )
    if many:
        library = open_library(source, retriever, hidden=outputs.form == "json")
        if not captions_only:
            check_library_models(library, used, frames=retriever.config.scorer == "captions")
        search_library(
            library,
            request,
            top=top,
            refine=refine,
            budget=budget,
            filters=filters,
            as_json=outputs.form == "json",
        )
        return
    if index is not None:
        check_encoder(source, index, retriever.encoder)
    elif holds_captions(source):
        index = retriever.index(read_captioned(source, vid))
    elif opened is not None:
        index = index_video(source, opened, hidden=outputs.form == "json")
    assert index is not None  # a video without models was refused
    media = outputs.read_source(None if index.frames is None else index.frames.path)

    # 3. Search, choose the moments to show, and show them.
    result = retriever.search(index, request)
    for stage, seconds in result.seconds.items():
        _log.debug("%s took %.4f s", stage, seconds)
    answer = _answer(index, result, top, overlapping, used, preset)
    outputs.write(answer, media)


def _models_used(opened: ModelFolder | None, *, captions_only: bool) -> dict[str, tuple[str, str]]:
    """Return name and hash of the models that search, by kind."""
    if opened is None:
        return {}
    left_out = ("vlm", "clip") if captions_only else ()
    return {kind: source for kind, source in opened.sources.items() if kind not in left_out}


def _answer(
    index: VideoIndex,
    result: SearchResult,
    top: int,
    overlapping: bool,
    models: dict[str, tuple[str, str]],
    preset: str,
) -> Answer:
    """Choose the moments to show, and collect what is to be said about them."""
    from granalign_fast.output.warnings import search_warnings

    note = None
    shown = result.moments if overlapping else result.distinct(top)
    if len(shown) < top and len(shown) < len(result.moments) and not overlapping:
        note = "fewer moments are distinct than asked for; --overlapping shows the whole list"
    facts = {
        "Models": ", ".join(f"{kind} {name} ({sha[:8]})" for kind, (name, sha) in models.items()),
        "Index made by": ", ".join(f"{kind} {name}" for kind, name in index.models.items()),
        "Preset": preset,
        "Moments": "the ranked list, which may overlap" if overlapping else "distinct ones",
    }
    warnings = search_warnings(index, result, {kind: sha for kind, (_, sha) in models.items()})
    return Answer(index, replace(result, moments=shown), overlapping, warnings, note, facts)
