"""The route that takes videos in: an upload, or a path below a configured folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from granalign_fast.errors import GranAlignError
from granalign_fast.files import appearing
from granalign_fast.library.tags import check_tags
from granalign_fast.parsing.json_values import parse_json

from .forms import FormReader
from .jobs import QUEUED, RECEIVING, Job, file_name
from .problems import Problem
from .records import can_index
from .schemas import PROBLEM, JobRecord, PathRequest
from .service import Current, Service

router = APIRouter(tags=["videos"])

_WRITE_BYTES = 1 << 20
"""Bytes that are collected before they are written."""
_PROGRESS_SECONDS = 0.5


@router.post(
    "/v1/videos",
    status_code=202,
    summary="Add a video",
    response_model=JobRecord,
    responses=dict.fromkeys((400, 403, 404, 408, 409, 413, 415, 422, 429, 501, 503, 507), PROBLEM),
    openapi_extra={
        "parameters": [
            {
                "name": "name",
                "in": "query",
                "schema": {"type": "string"},
                "description": "Name of the file, where the body is the file itself.",
            },
            {
                "name": "tag",
                "in": "query",
                "schema": {"type": "array", "items": {"type": "string"}},
                "description": "A tag of the video; repeated.",
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": PathRequest.model_json_schema(),
                    "example": {"path": "holiday/pool.mp4", "tags": ["holiday"]},
                },
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "tag": {"type": "array", "items": {"type": "string"}},
                        },
                        "required": ["file"],
                    }
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    },
)
async def add_video(request: Request, service: Current) -> JSONResponse:
    """Take a video in, and index it: the answer is a job.

    The body is a form with the part `file`, or the file itself with its `name` in the URL, or JSON
    with a `path` below a folder that the service was started with. What the file is, its decoder
    decides when the job begins: a file that is no video fails the job, and is deleted.
    """
    service.check_ready()
    service.check_writable()
    if not can_index(service.engine):
        raise Problem(
            "not-available",
            "the service has no model that captions or embeds frames; start it with --models DIR",
        )
    jobs = await asyncio.to_thread(service.jobs.all)
    if sum(not job.has_ended for job in jobs) >= service.settings.limits.jobs:
        raise Problem("too-many", "too many jobs wait", headers={"Retry-After": "60"})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        job = await _add_path(request, service)
    else:
        job = await _Upload(request, service, kind).receive()
    service.indexer.wake()
    return JSONResponse(job.shown(), status_code=202, headers={"location": f"/v1/jobs/{job.id}"})


async def _add_path(request: Request, service: Service) -> Job:
    """Make a job of a file below one of the roots.

    Raises:
        Problem: there is no such file there.
    """
    most, content = service.settings.limits.body_bytes, b""
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise Problem("too-large", f"got more than {most:,} bytes, expected at most that")
    try:
        asked = PathRequest.model_validate(parse_json(content))
    except ValueError:
        raise Problem(
            "bad-request", 'got no such JSON, expected {"path": "...", "tags": ["..."]}'
        ) from None
    roots = service.settings.roots
    if not roots:
        raise Problem("forbidden", "the service has no folder of videos; start it with --root DIR")
    path = await asyncio.to_thread(find_below, roots, asked.path)
    job = Job(name=file_name(path.name), upload=False, path=path, tags=check_tags(asked.tags))
    return service.jobs.write(job)


def find_below(roots: Sequence[Path], name: str) -> Path:
    """Return a file below one of the roots, as it is named without links.

    Args:
        roots: folders.
        name: a path from a root on, or an absolute one inside a root.

    Raises:
        Problem: there is no file of this name, or a link leads out of the root. The two are not
            told apart, so that nobody learns which files this machine has.
    """
    for root in roots:
        try:
            real = root.resolve(strict=True)
            path = (root / name).resolve(strict=True)
            if path.is_relative_to(real) and stat.S_ISREG(path.stat().st_mode):
                return path
        except (OSError, ValueError, RuntimeError):
            continue
    raise Problem("not-found", "path: got no video file below a folder of the service")


class _Upload:
    """Receives a file into the folder of its job: whole, or not at all."""

    def __init__(self, request: Request, service: Service, kind: str) -> None:
        self._request, self._service, self._kind = request, service, kind
        self._sink: IO[bytes] | None = None
        self._parts: list[bytes] = []
        self._held = 0
        self._name: str | None = None
        self._draft = Path()

    async def receive(self) -> Job:
        """Receive the file, and return its job.

        Raises:
            Problem: too many uploads are under way, or the disk is full.
            GranAlignError: the name, a tag or the form is wrong.
            ClientDisconnect: the client has gone.
        """
        service, limits = self._service, self._service.settings.limits
        self._check_space()
        if service.receiving >= limits.uploads:
            raise Problem(
                "too-many", f"got {limits.uploads} uploads", headers={"Retry-After": "10"}
            )
        service.receiving += 1
        job: Job | None = None
        try:
            length = self._request.headers.get("content-length", "")
            total = int(length) if length.isdecimal() else None
            given = self._request.query_params.get("name", "")
            job = Job(name=file_name(given), upload=True, state=RECEIVING, total=total)
            service.jobs.write(job)
            with ExitStack() as stack:
                folder = service.jobs.upload_folder(job.id)
                self._draft = stack.enter_context(appearing(folder))
                fields = await self._read(job, stack, given)
                await asyncio.to_thread(self._flush)
                if self._sink is not None:
                    os.fsync(self._sink.fileno())
                assert self._name is not None
            tags = check_tags([*self._request.query_params.getlist("tag"), *fields])
            done = replace(job, name=self._name, tags=tags, path=folder.absolute() / self._name)
            return service.jobs.change(done, QUEUED, done=0, total=None)
        except BaseException:
            if job is not None:
                service.jobs.forget(job)
                shutil.rmtree(service.jobs.upload_folder(job.id), ignore_errors=True)
            raise
        finally:
            service.receiving -= 1

    def _check_space(self) -> None:
        """Raise unless the disk has room for the file.

        Raises:
            Problem: it has not.
        """
        free = shutil.disk_usage(self._service.settings.library).free
        length = self._request.headers.get("content-length", "0")
        needed = int(length) if length.isdecimal() else 0
        if free - needed < self._service.settings.limits.spare_bytes:
            raise Problem("no-space", f"got {needed:,} bytes, and too little room for them")

    async def _read(self, job: Job, stack: ExitStack, given: str) -> list[str]:
        """Read the body into the draft; return the tags that a form names."""
        form: FormReader | None = None
        if self._kind == "multipart/form-data":
            header = self._request.headers["content-type"]
            form = FormReader(header, lambda name: self._open(stack, name or given), self._take)
        elif self._kind and not self._kind.startswith(("video/", "application/", "image/gif")):
            raise Problem(
                "wrong-type",
                f"content-type: got {self._kind!r}, expected multipart/form-data, video/* or "
                f"application/octet-stream",
            )
        elif not given:
            raise GranAlignError("name: got none, expected ?name= with the name of the file")
        else:
            self._open(stack, given)
        got, written = 0, time.monotonic()
        async for part in self._request.stream():
            got += len(part)
            if form is None:
                self._take(part)
            else:
                form.feed(part)
            if self._held >= _WRITE_BYTES:
                await asyncio.to_thread(self._flush)
                self._check_space()
            if time.monotonic() - written > _PROGRESS_SECONDS:
                written = time.monotonic()
                self._tell(replace(job, name=self._name or job.name, done=got))
        if form is not None:
            form.end()
        if not got:
            raise GranAlignError("body: got no bytes, expected a video file")
        return [] if form is None else form.fields.get("tag", [])

    def _tell(self, job: Job) -> None:
        """Write how far the upload is, and end it if it was cancelled."""
        if self._service.jobs.is_to_cancel(job):
            raise Problem("conflict", f"{job.name}: the upload was cancelled")
        self._service.jobs.write(job, durably=False)

    def _open(self, stack: ExitStack, name: str) -> None:
        self._name = file_name(name)
        self._sink = stack.enter_context((self._draft / self._name).open("xb"))

    def _take(self, data: bytes) -> None:
        self._parts.append(data)
        self._held += len(data)

    def _flush(self) -> None:
        if self._sink is not None:
            for part in self._parts:
                self._sink.write(part)
            self._sink.flush()
        self._parts, self._held = [], 0
