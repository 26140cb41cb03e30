"""``granalign search``: the moments of a video, or of a whole library, that fit a query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.storage import Address

from .library_search import is_library, is_remote, search_library
from .options import (
    Approximate,
    CaptionsOnly,
    Device,
    Encoder,
    Models,
    Precision,
    PrefixGib,
    SearchPreset,
)
from .remote import RemoteOptions, open_chosen, with_remote_models
from .search_outputs import FORMATS, Outputs
from .search_settings import SearchSettings, check_preset
from .search_sources import check_source, fetch_source, holds_captions
from .video_search import search_video


@with_remote_models
def search(
    source: Annotated[
        Path,
        typer.Argument(
            help="An index, a folder of indexes, either also in an object store (s3://, gs://), a "
            "video, or JSON Lines of captions."
        ),
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
    approximate: Approximate = 0.0,
    media: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The video file of the index, or a folder that holds it or those of a library. "
            "Also s3://BUCKET, if the index names a video there and is not there itself. "
            "Default: where the index says.",
        ),
    ] = None,
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
    remote: RemoteOptions | None = None,
) -> None:
    """Rank the moments of a video, or of all videos of a library, that fit a query."""
    from granalign_fast.language.rewriters import StoredRewriter
    from granalign_fast.library import Filters
    from granalign_fast.types import Rewrites

    # 1. Refuse what cannot be done, before any work.
    if as_json and output not in ("table", "json"):
        raise GranAlignError(f"--json and --format {output}: got both, expected one of them")
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
    outputs.check((source, rewrites, media))
    store = Address.find(source)
    source, vid = fetch_source(source, vid)
    if not source.is_dir() and not is_remote(source):
        outputs.check_video(None if holds_captions(source) else source)
        if media is not None:
            raise GranAlignError(f"--media: got {source}, expected an index; leave it out")
    Rewrites(query)  # an empty query is refused
    check_preset(preset)
    settings = SearchSettings(
        source=source,
        query=query if rewrites is None else StoredRewriter(rewrites).rewrite([query])[0],
        preset=preset,
        models=open_chosen(
            models, remote, device=device, prefix_gib=prefix_gib, encoder=encoder or precision
        ),
        encoder=encoder,
        precision=precision,
        device=device,
        top=top,
        captions_only=captions_only,
        media=media,
        store=store,
        approximate=approximate,
    )
    check_source(source)
    filters = Filters(
        videos=tuple(video or ()),
        tags=tuple(tag or ()),
        after=after,
        before=before,
        min_length=min_length,
    )

    # 2. Search all videos of a library, or one video.
    if vid is None and is_library(source):
        search_library(
            settings,
            outputs,
            filters=filters,
            refine=refine,
            budget=budget,
            overlapping=overlapping,
        )
        return
    if not filters.is_empty or budget is not None or approximate:
        raise GranAlignError(
            f"{source}: got one video, expected a library for --budget, --video, --tag, --after, "
            f"--before, --min-length and --approximate; leave them out"
        )
    search_video(settings, outputs, vid=vid, overlapping=overlapping)
