"""The routes of one video's media: the file, frames, clips, and moments for other programs."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.responses import Response

from granalign_fast.errors import GranAlignError
from granalign_fast.library.records import CataloguedVideo
from granalign_fast.types import Moment

from .problems import Problem
from .ranges import check_range
from .schemas import PROBLEM
from .service import Current

router = APIRouter(tags=["media"])

_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".mp4": "video/mp4",
        ".m4v": "video/mp4",
        ".mov": "video/quicktime",
        ".mkv": "video/x-matroska",
        ".webm": "video/webm",
        ".ogv": "video/ogg",
        ".avi": "video/x-msvideo",
        ".mpg": "video/mpeg",
        ".mpeg": "video/mpeg",
        ".ts": "video/mp2t",
        ".gif": "image/gif",
    }
)
"""The media types that a file is sent as; any other file is a stream of bytes."""
_EXPORT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "srt": "application/x-subrip",
        "vtt": "text/vtt",
        "ffmetadata": "text/plain",
        "edl": "text/plain",
        "otio": "application/json",
        "fcpxml": "application/xml",
        "csv": "text/csv",
    }
)
_AN_HOUR = {"cache-control": "private, max-age=3600"}
_STEP = 0.1
"""Seconds to which a frame's time is rounded; steps are longer in videos of more than 10 hours."""
_MOST_STEPS = 400_000
_QUALITY = 85

Width = Annotated[int, Query(ge=16, le=3840, description="Of the picture, in pixels.")]


@router.head("/v1/videos/{vid}/media", include_in_schema=False)
@router.get("/v1/videos/{vid}/media/{name}", include_in_schema=False)
@router.head("/v1/videos/{vid}/media/{name}", include_in_schema=False)
@router.get(
    "/v1/videos/{vid}/media",
    summary="Play the file",
    response_class=FileResponse,
    responses={206: {"description": "A range."}, 404: PROBLEM, 410: PROBLEM, 416: PROBLEM},
)
async def media(
    vid: str, service: Current, request: Request, name: str | None = None
) -> FileResponse:
    """Send the video file, or the ranges of it that are asked for.

    The name of the file may follow in the path, as cut lists have it.
    """
    video = service.video(vid)
    path = await service.run(lambda: service.files.path(vid, video.stamp))
    if name not in (None, path.name):
        raise Problem("not-found", f"media: got {name!r}, expected the name of the file, or none")
    kind, status = _TYPES.get(path.suffix.lower(), "application/octet-stream"), path.stat()
    check_range(request, status.st_size)
    return FileResponse(
        path,
        media_type=kind,
        filename=path.name.encode(errors="replace").decode(),
        content_disposition_type="inline",
        stat_result=status,
        headers={"cache-control": "private, no-cache"},
    )


@router.head("/v1/videos/{vid}/frame", include_in_schema=False)
@router.get(
    "/v1/videos/{vid}/frame",
    summary="Show the frame at a time",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 404: PROBLEM, 410: PROBLEM, 429: PROBLEM},
)
async def frame(
    vid: str,
    service: Current,
    t: Annotated[float, Query(ge=0, allow_inf_nan=False, description="Seconds.")],
    width: Width = 640,
) -> Response:
    """Send the frame that is shown at a time, as JPEG; its time is exact to 0.05 seconds."""
    return await _picture(service, service.video(vid), t, width)


@router.head("/v1/videos/{vid}/thumbnail", include_in_schema=False)
@router.get(
    "/v1/videos/{vid}/thumbnail",
    summary="Show a small picture of the video",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 404: PROBLEM, 410: PROBLEM, 429: PROBLEM},
)
async def thumbnail(
    vid: str,
    service: Current,
    t: Annotated[
        float | None,
        Query(ge=0, allow_inf_nan=False, description="Seconds. Default: the middle."),
    ] = None,
    width: Width = 320,
) -> Response:
    """Send the frame in the middle of the video, or at a time, as a small JPEG."""
    video = service.video(vid)
    return await _picture(service, video, video.seconds / 2 if t is None else t, width)


async def _picture(service: Current, video: CataloguedVideo, t: float, width: int) -> Response:
    if t >= video.seconds:
        raise Problem(
            "invalid", f"t: got {t:g}, expected a second before the end at {video.seconds:g}"
        )
    step = max(_STEP, video.seconds / _MOST_STEPS)
    key = (video.vid, video.stamp), int(t / step), width
    content = service.pictures.get(key)
    service.metrics.cache.labels("pictures", "miss" if content is None else "hit").inc()
    if content is None:
        content = await service.run(lambda: _jpeg(service, video, int(t / step), step, width))
        service.pictures.put(key, content)
    return Response(content, media_type="image/jpeg", headers=_AN_HOUR)


def _jpeg(service: Current, video: CataloguedVideo, number: int, step: float, width: int) -> bytes:
    """Decode the frame of a step, and return it as JPEG of at most so many pixels in width."""
    from granalign_fast.output.frames import fitted
    from granalign_fast.video.frames import read_clips

    path = service.files.path(video.vid, video.stamp)
    (image,) = read_clips(path, [number], clip_seconds=step)
    picture = fitted(image, min(width, image.shape[1]), image.shape[0])
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=_QUALITY)
    return sink.getvalue()


@router.get(
    "/v1/videos/{vid}/clip",
    summary="Cut a moment out",
    response_class=FileResponse,
    responses={404: PROBLEM, 410: PROBLEM, 422: PROBLEM, 429: PROBLEM},
)
async def clip(
    vid: str,
    service: Current,
    start: Annotated[float, Query(ge=0, allow_inf_nan=False, description="Seconds.")],
    end: Annotated[float, Query(gt=0, allow_inf_nan=False, description="Seconds.")],
    exact: Annotated[
        bool, Query(description="Encode, so that it begins exactly at `start`.")
    ] = False,
    container: Annotated[
        Literal["mp4", "mov", "mkv", "webm"] | None, Query(description="Default: as the video.")
    ] = None,
) -> FileResponse:
    """Send a moment of the video as a file of its own.

    Without `exact` the packets are copied, and it begins at the key frame before `start`. The
    headers `x-clip-start` and `x-clip-end` have the seconds of the video that it holds.
    """
    from granalign_fast.video.cut_containers import CannotCopyError, own_suffix
    from granalign_fast.video.cutting import Cut, cut

    video, most = service.video(vid), service.settings.limits.clip_seconds
    if not 0 < end - start <= most:
        raise Problem(
            "invalid",
            f"start, end: got {start:g} to {end:g}, expected an end after the start, and at most "
            f"{most:g} s between them",
        )
    if start >= video.seconds:
        raise Problem(
            "invalid",
            f"start: got {start:g}, expected a second before the end at {video.seconds:g}",
        )

    folder = Path(tempfile.mkdtemp(prefix="granalign-clip-"))

    def make() -> tuple[Path, Cut]:
        path = service.files.path(vid, video.stamp)
        suffix = own_suffix(path) if container is None else f".{container}"
        try:
            written = cut(path, start, end, folder / f"clip{suffix}", exact=exact)
        except CannotCopyError as error:
            others = "".join(f"{name.removeprefix('.')} or " for name in error.containers)
            raise Problem(
                "invalid",
                f"container: got {suffix.removeprefix('.')}, which does not take this video as it "
                f"is, expected {others}exact=true, which encodes it",
            ) from None
        return path, written

    try:
        path, written = await service.run(make)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    suffix = written.path.suffix
    name = f"{path.stem}-{start:.1f}-{end:.1f}{suffix}".encode(errors="replace").decode()
    return FileResponse(
        written.path,
        media_type=_TYPES.get(suffix, "application/octet-stream"),
        filename=name,
        headers={"x-clip-start": f"{written.start:.3f}", "x-clip-end": f"{written.end:.3f}"},
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


@router.get(
    "/v1/videos/{vid}/export",
    summary="Write moments for players and editing programs",
    response_class=Response,
    responses={404: PROBLEM, 410: PROBLEM, 422: PROBLEM},
)
async def export(
    vid: str,
    service: Current,
    request: Request,
    format: Annotated[str, Query(description="srt, vtt, ffmetadata, edl, otio, fcpxml, csv.")],
    moment: Annotated[
        list[str],
        Query(
            max_length=500,
            description="START-END or START-END-SCORE, in seconds; repeated, best first.",
            examples=["12.0-17.5-0.93"],
        ),
    ],
    query: Annotated[str, Query(min_length=1, max_length=4000, description="Their query.")],
    file: Annotated[
        str | None,
        Query(
            max_length=4096,
            description="Path or URL of the video, as the other program shall find it. Default: "
            "its URL here.",
        ),
    ] = None,
) -> Response:
    """Send chosen moments of a video as subtitles, chapters, a cut list or a table.

    A moment's text is the caption of its middle clip.
    """
    from granalign_fast.output.formats import FORMATS, render
    from granalign_fast.output.timeline import Timeline
    from granalign_fast.types import Rewrites
    from granalign_fast.video.source import read_source

    video = service.video(vid)
    moments = tuple(map(_moment, moment))
    if file is not None and not re.match(r"/|[a-z][a-z0-9+.-]*://", file):
        raise Problem("invalid", f"file: got {file[:100]!r}, expected an absolute path or a URL")
    where = f"{request.base_url}v1/videos/{quote(vid, safe='')}/media"
    text = Rewrites(query).query

    def make() -> tuple[str, str]:
        index = service.engine.index(video)
        path = None if video.path is None else service.files.path(vid, video.stamp)
        captions = index.video.captions
        length = index.video.clip_seconds
        middles = [int((one.start + one.end) / 2 / length) for one in moments]
        timeline = Timeline(
            title=vid,
            query=text,
            moments=moments,
            duration=index.seconds(index.video.clips),
            captions=(
                ()
                if captions is None
                else tuple(captions[min(middle, len(captions) - 1)] for middle in middles)
            ),
            media=None if path is None else file or f"{where}/{quote(os.fsencode(path.name))}",
            source=None if path is None else read_source(path),
        )
        return render(format, timeline), FORMATS[format].suffix

    content, suffix = await service.run(make)
    name = quote(f"{vid}{suffix}")
    return Response(
        content.encode(errors="replace"),
        media_type=_EXPORT_TYPES[format],
        headers={"content-disposition": f"attachment; filename*=utf-8''{name}"},
    )


def _moment(text: str) -> Moment:
    """Read ``START-END`` or ``START-END-SCORE``.

    Raises:
        GranAlignError: it is not of this form.
    """
    try:
        numbers = [float(part) for part in text.split("-")]
        start, end, score = numbers if len(numbers) == 3 else (*numbers, 0.0)
        return Moment(start, end, score)
    except ValueError:
        raise GranAlignError(
            f"moment: got {text[:50]!r}, expected START-END or START-END-SCORE in seconds"
        ) from None
