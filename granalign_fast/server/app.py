"""The application: all routes, behind one gate."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from granalign_fast.errors import counted
from granalign_fast.runtime.allocator import return_freed, use_one_arena

from . import (
    health,
    job_routes,
    media,
    page,
    problems,
    reference,
    search,
    sessions,
    uploads,
    videos,
)
from .access import Tokens
from .batcher import Batcher
from .engine import Engine
from .files import CheckedFiles
from .gate import Gate
from .indexing import Indexer
from .jobs import STATES, Jobs
from .logs import configure_logs
from .metrics import Metrics
from .pictures import Pictures
from .records import can_index
from .schemas import ProblemRecord
from .service import Service
from .settings import Settings

_log = logging.getLogger(__name__)

_REFRESH_SECONDS = 5.0
"""How often the service looks whether another process has indexed or removed videos."""

_LOOKS_BETWEEN_TRIMS = 3
"""After so many looks, fifteen seconds, freed memory is given back."""

_DESCRIPTION = (
    "Find the moments in a library of videos that a sentence describes. Times are in seconds on "
    "the clock of players. Errors are problem details (RFC 9457)."
)


def create_service(settings: Settings) -> Service:
    """Return the parts of a service; its models are loaded when the application starts.

    Raises:
        GranAlignError: the library, the models or the tokens cannot be used.
    """
    metrics, engine, jobs = Metrics(), Engine(settings), Jobs(settings.library)

    def count_texts(kept: int, others: int) -> None:
        metrics.cache.labels("texts", "hit").inc(kept)
        metrics.cache.labels("texts", "miss").inc(others)

    pictures, batcher = Pictures(), Batcher(engine, metrics)

    def take_up(videos: Set[tuple[str, str]]) -> None:
        pictures.keep(videos)
        batcher.wake()

    engine.seen, engine.changed = count_texts, take_up
    if not settings.read_only:
        jobs.create_folders()
    return Service(
        settings=settings,
        engine=engine,
        metrics=metrics,
        tokens=None if settings.tokens is None else Tokens.read(settings.tokens),
        batcher=batcher,
        files=CheckedFiles(engine),
        pictures=pictures,
        jobs=jobs,
        indexer=Indexer(engine, jobs),
        media=ThreadPoolExecutor(settings.limits.media_threads, "media"),
    )


def create_app(service: Service, failed: Callable[[str], None] | None = None) -> ASGIApp:
    """Return the application of a service.

    Args:
        service: its parts.
        failed: called with the reason if the models cannot be loaded.
    """
    settings = service.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _drain_at_signals(service)
        threading.Thread(target=_load, args=(service, failed), daemon=True).start()
        refreshing = asyncio.create_task(_keep_fresh(service))
        yield
        service.draining.set()
        refreshing.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing
        await asyncio.to_thread(service.indexer.stop)
        await asyncio.to_thread(service.batcher.stop)
        service.media.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="granalign-fast",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"auto_configure": settings.telemetry, "logs": False},
    )
    app.state.service = service
    for part in (page, health, search, videos, uploads, job_routes, media, sessions, reference):
        app.include_router(part.router)
    problems.install(app)
    _describe_problems(app)
    service.metrics.before_text.append(lambda: _update_gauges(service))

    def check_room(method: str, path: str) -> None:
        if (method, path) == ("POST", search.PATH) and service.engine.ready.is_set():
            search.check_room(service)

    gate: ASGIApp = Gate(app, settings, service.metrics, service.tokens, _is_upload, check_room)
    if settings.origins:
        gate = CORSMiddleware(
            gate,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("authorization", "content-type", "x-request-id"),
            expose_headers=("x-request-id", "retry-after", "x-clip-start", "x-clip-end"),
        )
    return gate


def _describe_problems(app: FastAPI) -> None:
    """Put problem details in the place of the framework's own errors in the OpenAPI."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        described = generate()
        components = described["components"]["schemas"]
        if "ProblemRecord" not in components:
            components["ProblemRecord"] = ProblemRecord.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                components.pop(name, None)
            content = {
                "application/problem+json": {
                    "schema": {"$ref": "#/components/schemas/ProblemRecord"}
                }
            }
            problem = {"description": "Any other problem.", "content": content}
            for methods in described["paths"].values():
                for route in methods.values():
                    # Of the gate before all routes: no token, a wrong host, too large, not ready.
                    route["responses"]["default"] = problem
                    if "422" in route["responses"]:
                        route["responses"]["422"]["content"] = content
        return described

    app.openapi = openapi  # type: ignore[method-assign]


def _is_upload(method: str, path: str) -> bool:
    return method == "POST" and path == "/v1/videos"


def _drain_at_signals(service: Service) -> None:
    """Let the service know at once that it is to end; the server's own handlers run as well."""
    if threading.current_thread() is not threading.main_thread():
        return  # a server in a thread has no signals
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def drain(got: int, frame: FrameType | None, before: Any = before) -> None:
            loop.call_soon_threadsafe(service.draining.set)
            if callable(before):
                before(got, frame)

        signal.signal(number, drain)


def _load(service: Service, failed: Callable[[str], None] | None) -> None:
    service.open()
    if service.failure is not None:
        _log.error("%s", service.failure)
        if failed is not None:
            failed(service.failure)
        return
    service.batcher.start()
    if not service.settings.read_only and can_index(service.engine):
        service.indexer.start()
    _log.info("ready: %s", counted(len(service.engine.videos()), "video"))


async def _keep_fresh(service: Service) -> None:
    """Take up what other processes do with the library; give back memory that peaks have left."""
    for look in itertools.count(1):
        await asyncio.sleep(_REFRESH_SECONDS)
        if service.engine.ready.is_set():
            await asyncio.to_thread(service.engine.refresh)
        if look % _LOOKS_BETWEEN_TRIMS == 0:
            await asyncio.to_thread(return_freed)


def _update_gauges(service: Service) -> None:
    videos = service.engine.videos()
    service.metrics.videos.set(len(videos))
    service.metrics.clips.set(sum(video.clips for video in videos))
    service.metrics.queued.set(service.batcher.waiting)
    states = Counter(job.state for job in service.jobs.all())
    for state in STATES:
        service.metrics.jobs.labels(state).set(states[state])


SETTINGS, FAILURE = "GRANALIGN_SERVE", "GRANALIGN_SERVE_FAILURE"
"""Variables that tell a worker process its settings, and the file for the reason of a failure."""


def app_of_worker() -> ASGIApp:
    """Return the application of one of several worker processes, by its environment."""
    settings = Settings.from_json(os.environ[SETTINGS])
    configure_logs(as_json=settings.log_json)
    use_one_arena()

    def failed(reason: str) -> None:
        Path(os.environ[FAILURE]).write_text(reason, encoding="utf-8")
        os.kill(os.getppid(), signal.SIGTERM)  # every worker would fail so

    return create_app(create_service(settings), failed)
