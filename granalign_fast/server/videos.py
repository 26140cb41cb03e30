"""The routes of the library: its videos, and what the service can do."""

from __future__ import annotations

import shutil
from typing import Annotated, Any

from fastapi import APIRouter, Query

from granalign_fast.errors import GranAlignError
from granalign_fast.library.upkeep import remove_videos

from .problems import Problem
from .records import service_record, video_record
from .schemas import PROBLEM, Video, VideoList
from .service import Current

router = APIRouter(tags=["videos"])


@router.get("/v1", summary="Show what the service can do", responses={503: PROBLEM})
def show_service(service: Current) -> dict[str, Any]:
    """Return versions, models, presets (null, or why one cannot be used), formats, and limits."""
    service.check_ready()
    return service_record(service.engine)


@router.get("/v1/videos", summary="List videos", response_model=VideoList, responses={503: PROBLEM})
def list_videos(
    service: Current,
    tag: Annotated[
        list[str] | None, Query(max_length=100, description="Only videos with all of these.")
    ] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """List the videos of the library, sorted by id."""
    service.check_ready()
    wanted = set(tag or ())
    tags = service.engine.tags
    videos = [video for video in service.engine.videos() if wanted <= set(tags.get(video.vid, ()))]
    return {
        "total": len(videos),
        "videos": [
            video_record(service.engine, video) for video in videos[offset : offset + limit]
        ],
        "damaged": dict(service.engine.damaged),
    }


@router.get(
    "/v1/videos/{vid}",
    summary="Show a video",
    response_model=Video,
    responses={404: PROBLEM, 503: PROBLEM},
)
def show_video(vid: str, service: Current) -> dict[str, Any]:
    """Show what the library knows of one video."""
    return video_record(service.engine, service.video(vid))


@router.delete(
    "/v1/videos/{vid}",
    summary="Remove a video",
    responses={404: PROBLEM, 409: PROBLEM, 503: PROBLEM},
)
def remove_video(vid: str, service: Current) -> dict[str, list[str]]:
    """Remove a video from the library: its index and its tags.

    A file that was uploaded to the service is deleted with them; every other file stays. Other
    videos may be indexed meanwhile. A job of the same file is cancelled.
    """
    service.check_writable()
    path = service.video(vid).path
    for job in service.jobs.all():
        if path is not None and job.path == path and not job.has_ended:
            service.indexer.cancel(job)
    try:
        removed = remove_videos(service.engine.folder, [vid])
    except GranAlignError:
        raise Problem(
            "conflict",
            f"video {vid!r}: another process is changing it, or the library cannot be written; try "
            f"again",
            headers={"Retry-After": "5"},
        ) from None
    finally:
        service.engine.refresh()
    if path is not None and (upload := service.jobs.uploaded(path)) is not None:
        shutil.rmtree(upload, ignore_errors=True)
    return {"removed": removed}
