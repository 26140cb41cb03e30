"""The routes of jobs: what became of a video that was taken in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from .events import Event, event_stream
from .jobs import Job
from .problems import Problem
from .schemas import PROBLEM, JobList, JobRecord
from .service import Current, Service

router = APIRouter(tags=["jobs"])

_LOOK_SECONDS = 0.25
_QUIET_LOOKS = 60
"""Looks without a change after which a comment is sent."""


@router.get("/v1/jobs", summary="List jobs", response_model=JobList)
def list_jobs(
    service: Current, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """List jobs, the newest first."""
    return {"jobs": [job.shown() for job in reversed(service.jobs.all()[-limit:])]}


@router.get(
    "/v1/jobs/{id}", summary="Show a job", response_model=JobRecord, responses={404: PROBLEM}
)
def show_job(id: str, service: Current) -> dict[str, Any]:
    """Show the state of a job."""
    return _find(service, id).shown()


@router.delete(
    "/v1/jobs/{id}",
    status_code=202,
    summary="Cancel a job",
    response_model=JobRecord,
    responses={404: PROBLEM, 409: PROBLEM},
)
def cancel_job(id: str, service: Current) -> dict[str, Any]:
    """Cancel a job that has not ended; its upload is deleted."""
    service.check_writable()
    job = _find(service, id)
    if job.has_ended:
        raise Problem("conflict", f"job: it is {job.state}, expected one that has not ended")
    service.indexer.cancel(job)
    return job.shown()


@router.get(
    "/v1/jobs/{id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}, 404: PROBLEM, 429: PROBLEM},
)
async def follow_job(id: str, service: Current) -> StreamingResponse:
    """Send the job whenever it changes: events `progress`, and at last one named by its state."""
    first = await asyncio.to_thread(_find, service, id)
    if service.following >= service.settings.limits.followers:
        service.metrics.refused.labels("too-many").inc()
        raise Problem(
            "too-many",
            f"got {service.following} clients that follow jobs, expected fewer; ask for the job "
            f"from time to time",
            headers={"Retry-After": "5"},
        )
    return event_stream(_counted(service, first))


async def _counted(service: Service, job: Job) -> AsyncIterator[Event | None]:
    service.following += 1
    try:
        async for event in _changes(service, job):
            yield event
    finally:
        service.following -= 1


async def _changes(service: Service, job: Job) -> AsyncIterator[Event | None]:
    yield ("progress" if not job.has_ended else job.state, job.shown())
    quiet = 0
    while not job.has_ended and not service.draining.is_set():
        await asyncio.sleep(_LOOK_SECONDS)
        found = await asyncio.to_thread(service.jobs.get, job.id)
        if found is None:  # an upload that did not arrive
            return
        if found == job:
            quiet += 1
            if quiet % _QUIET_LOOKS == 0:
                yield None
            continue
        job, quiet = found, 0
        yield ("progress" if not job.has_ended else job.state, job.shown())


def _find(service: Service, id: str) -> Job:
    job = service.jobs.get(id)
    if job is None:
        raise Problem("not-found", f"job: got {id[:64]!r}, expected an id of GET /v1/jobs")
    return job
