"""The application: all routes, behind one gate."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from . import health, media, problems, search, videos
from .access import Tokens
from .batcher import Batcher
from .engine import Engine
from .files import CheckedFiles
from .gate import Gate
from .metrics import Metrics
from .pictures import Pictures
from .service import Service
from .settings import Settings

_log = logging.getLogger(__name__)

_REFRESH_SECONDS = 5.0
"""How often the service looks whether another process has indexed or removed videos."""

_DESCRIPTION = """
Find the moments in a library of videos that a sentence describes. Times are in seconds on the clock
of players. Errors are problem details (RFC 9457).
"""


def create_app(settings: Settings, failed: Callable[[], None] | None = None) -> ASGIApp:
    """Return the application; the models are loaded after it has started.

    Args:
        settings: of the service.
        failed: called if the models cannot be loaded.

    Raises:
        GranAlignError: the library, the models or the tokens cannot be used.
    """
    metrics = Metrics()
    engine = Engine(settings)
    service = Service(
        settings=settings,
        engine=engine,
        metrics=metrics,
        batcher=Batcher(engine, metrics),
        files=CheckedFiles(engine),
        pictures=Pictures(),
        media=ThreadPoolExecutor(settings.limits.media_threads, "media"),
    )
    tokens = None if settings.tokens is None else Tokens.read(settings.tokens)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loader = threading.Thread(target=_load, args=(service, failed), daemon=True)
        loader.start()
        refreshing = asyncio.create_task(_keep_fresh(service))
        yield
        service.draining.set()
        refreshing.cancel()
        with suppress(asyncio.CancelledError):
            await refreshing
        await asyncio.to_thread(service.batcher.stop)
        service.media.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="granalign-fast",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for part in (health, search, videos, media):
        app.include_router(part.router)
    problems.install(app)
    metrics.before_text.append(lambda: _update_gauges(service))
    gate: ASGIApp = Gate(app, settings, metrics, tokens, lambda method, path: False)
    if settings.origins:
        gate = CORSMiddleware(
            gate,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("authorization", "content-type", "x-request-id"),
            expose_headers=("x-request-id", "retry-after", "x-clip-start", "x-clip-end"),
        )
    return gate


def _load(service: Service, failed: Callable[[], None] | None) -> None:
    service.open()
    if service.failure is None:
        service.batcher.start()
        _log.info("ready: %d videos", len(service.engine.videos()))
        return
    _log.error("%s", service.failure)
    if failed is not None:
        failed()


async def _keep_fresh(service: Service) -> None:
    """Take up what other processes do with the library."""
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        if service.engine.ready.is_set():
            await asyncio.to_thread(service.engine.refresh)


def _update_gauges(service: Service) -> None:
    videos = service.engine.videos()
    service.metrics.videos.set(len(videos))
    service.metrics.clips.set(sum(video.clips for video in videos))
    service.metrics.queued.set(service.batcher.waiting)


def app_of_worker() -> ASGIApp:
    """Return the application of one of several worker processes, by its environment."""
    return create_app(Settings.from_json(os.environ["GRANALIGN_SERVE"]))
