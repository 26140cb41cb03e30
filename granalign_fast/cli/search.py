"""``granalign search``: the moments of a video that fit a query."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from granalign_fast.errors import GranAlignError

from .clips import check_options, check_video, write_clip, write_clips
from .index import clip_progress
from .options import (
    Device,
    Encoder,
    Models,
    Precision,
    PrefixGib,
    Preset,
    check_extra,
    check_target,
    print_json,
    short,
)

if TYPE_CHECKING:
    from granalign_fast.index import CaptionedVideo, VideoIndex
    from granalign_fast.pipeline import ModelFolder
    from granalign_fast.types import SearchResult
    from granalign_fast.video.source import Source

_log = logging.getLogger(__name__)

_CUTS = ("edl", "otio", "fcpxml")
_FORMATS = ("table", "json", "srt", "vtt", "ffmetadata", *_CUTS, "csv")
_PICTURES = (".png", ".svg", ".pdf")


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
            help="The video, where SOURCE holds several: its id, or its file's name or path."
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
    top: Annotated[int, typer.Option(min=1, help="Number of moments.")] = 5,
    preset: Preset = "tuned",
    encoder: Encoder = None,
    precision: Precision = None,
    device: Device = "cpu",
    prefix_gib: PrefixGib = 4.0,
    output: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"Format on stdout: {', '.join(_FORMATS)}. edl, otio and fcpxml are cut lists "
            f"with the time codes of the video file; csv has a row for each moment.",
        ),
    ] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw frames, curve and moments.")
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
) -> None:
    """Rank the moments of a video that fit a query."""
    from granalign_fast.language.rewriters import StoredRewriter
    from granalign_fast.pipeline import open_models, open_retriever
    from granalign_fast.types import Rewrites

    form = "json" if as_json else output
    if form not in _FORMATS:
        raise GranAlignError(f"--format: got {form!r}, expected one of: {', '.join(_FORMATS)}")
    check_target("--plot", plot, _PICTURES)
    check_options(clip, clips, exact=exact)
    if plot is not None:
        check_extra("matplotlib", "drawing", "plot")
    if form == "otio":
        check_extra("opentimelineio", "the format otio", "editors")
    if not source.is_dir():
        _check_video(None if _holds_captions(source) else source, form, clip, clips, exact=exact)
    Rewrites(query)  # an empty query is refused before any work
    request = query if rewrites is None else StoredRewriter(rewrites).rewrite([query])[0]
    opened = None
    if models is not None:
        opened = open_models(models, device=device, prefix_gib=prefix_gib)
    retriever = open_retriever(
        preset, models=opened, encoder=encoder, precision=precision, device=device, top=top
    )
    video: VideoIndex | CaptionedVideo = _open_source(source, vid, opened, hidden=form == "json")
    from granalign_fast.index import CaptionedVideo

    index = retriever.index(video) if isinstance(video, CaptionedVideo) else video
    file = None if index.frames is None else index.frames.path
    if source.is_dir():
        _check_video(file, form, clip, clips, exact=exact)
    media = _read_source(file) if file is not None and form in (*_CUTS, "csv") else None
    result = retriever.search(index, request)
    for stage, seconds in result.seconds.items():
        _log.debug("%s took %.4f s", stage, seconds)
    if plot is not None:
        draw(index, result, plot)
    _show(index, result, form, media)
    if plot is not None and form == "table":
        typer.echo(f"drawn in {short(plot)}")
    if file is None or (clip is None and clips is None):
        return
    if not result.moments:
        option = "--clip" if clips is None else "--clips"
        raise GranAlignError(f"{option}: got no moments, expected one to cut")
    if clip is not None:
        write_clip(file, result.moments[0], clip, exact=exact)
    if clips is not None:
        moments = list(result.moments)
        write_clips(file, moments, clips, exact=exact, on_stdout=form == "table")


def _holds_captions(source: Path) -> bool:
    return source.name.endswith((".jsonl", ".jsonl.gz"))


def _check_video(
    video: Path | None, form: str, clip: Path | None, clips: Path | None, *, exact: bool
) -> None:
    """Raise if a video is needed and missing, or cannot be cut as the options demand."""
    options = {"--clip": clip is not None, "--clips": clips is not None}
    options[f"--format {form}"] = form in _CUTS
    what = next((option for option, needs_video in options.items() if needs_video), None)
    if what is None:
        return
    if video is None:
        raise GranAlignError(f"{what}: got captions alone, expected an index of a video or a video")
    if not video.exists():
        raise GranAlignError(f"{video}: no such file; put the video back, or name another")
    check_video(video, clip, clips, exact=exact)


def _read_source(video: Path) -> Source | None:
    """Return frame rate and time code of the video, or None if the file is gone."""
    from granalign_fast.video.source import read_source

    return read_source(video) if video.exists() else None


def _open_source(
    source: Path, vid: str | None, models: ModelFolder | None, *, hidden: bool
) -> VideoIndex | CaptionedVideo:
    """Return the index of a folder, that of a video which is indexed now, or captions."""
    from granalign_fast.datasets.qvhighlights import read_captions
    from granalign_fast.index import VideoIndex
    from granalign_fast.index.manifest import MANIFEST
    from granalign_fast.index.naming import find_index
    from granalign_fast.index.walk import check_is_file_name

    if not _holds_captions(source):
        check_is_file_name(source)
    if not source.exists():
        raise GranAlignError(
            f"{source}: no such file or folder; expected an index, a video or captions"
        )
    if source.is_dir():
        if not (source / MANIFEST).exists():
            return VideoIndex.load(find_index(source, vid))
        return VideoIndex.load(source)
    if _holds_captions(source):
        videos = read_captions(source)
        if vid is None and len(videos) > 1:
            raise GranAlignError(
                f"{source}: holds {len(videos)} videos; name one with --vid, such as "
                f"{next(iter(videos))!r}"
            )
        video = videos.get(vid if vid is not None else next(iter(videos)))
        if video is None:
            raise GranAlignError(
                f"{source}: has no video {vid!r}; expected one of its {len(videos)}, such as "
                f"{next(iter(videos))!r}"
            )
        return video
    if models is None:
        raise GranAlignError(
            f"{source}: got a video and no models, expected --models DIR with a "
            f"vision-language model; or give captions as .jsonl"
        )
    from granalign_fast.pipeline import index_once

    with clip_progress(hidden=hidden) as progress:
        return index_once(source, models, progress=progress)


def _show(index: VideoIndex, result: SearchResult, form: str, media: Source | None) -> None:
    from granalign_fast.output.tables import print_moments, search_record

    if form == "table":
        print_moments(index, result)
    elif form == "json":
        print_json(search_record(index, result))
    else:
        from granalign_fast.output.formats import render
        from granalign_fast.output.timeline import Timeline

        sys.stdout.write(render(form, Timeline.of_search(index, result, source=media)))


def draw(
    index: VideoIndex,
    result: SearchResult,
    path: Path,
    *,
    truth: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw the result: with frames of the video, or without them if only captions are known."""
    if index.frames is None:
        from granalign_fast.output.plot import draw_search

        draw_search(index, result, path)
        return
    from granalign_fast.output.filmstrip import draw_filmstrip, strip_clips
    from granalign_fast.search.key_frames import frame_set

    clips = strip_clips(len(index.video.captions))
    images = frame_set(index).load(clips)
    times = index.frames.times[clips].tolist()
    strip = list(zip(times, images, strict=True))
    draw_filmstrip(index, result, strip, path, truth=truth)
