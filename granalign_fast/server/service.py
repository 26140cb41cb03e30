"""The parts of a running service, which its routes share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from granalign_fast.errors import GranAlignError
from granalign_fast.library.records import CataloguedVideo

from .access import Tokens
from .batcher import Batcher
from .engine import Engine
from .files import CheckedFiles
from .indexing import Indexer
from .jobs import Jobs
from .metrics import Metrics
from .pictures import Pictures
from .problems import Problem
from .settings import Settings

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Service:
    """A running service.

    Attributes:
        settings: all that it was told.
        engine: the models and the library.
        batcher: searches.
        metrics: of everything.
        tokens: None if nobody needs one.
        files: of the videos, checked.
        pictures: that were made.
        jobs: that index videos.
        indexer: runs them.
        media: the threads that decode frames and cut clips.
        draining: set when the service is to end: streams of events end, it is not ready.
        failure: why the models could not be loaded.
    """

    settings: Settings
    engine: Engine
    metrics: Metrics
    tokens: Tokens | None
    batcher: Batcher
    files: CheckedFiles
    pictures: Pictures
    jobs: Jobs
    indexer: Indexer
    media: ThreadPoolExecutor
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str | None = None
    media_waiting: int = 0
    receiving: int = 0
    """Uploads that are under way."""
    following: int = 0
    """Clients that follow a job."""

    def check_ready(self) -> None:
        """Raise unless the models are loaded and warm, and the service is not ending.

        Raises:
            Problem: they are not.
        """
        if self.draining.is_set():
            raise Problem("not-ready", "the service is ending", headers={"Retry-After": "10"})
        if not self.engine.ready.is_set():
            detail = self.failure or "the models are being loaded; try again soon"
            raise Problem("not-ready", detail, headers={"Retry-After": "2"})

    def check_writable(self) -> None:
        """Raise if the service must not change the library.

        Raises:
            Problem: it was started to read alone.
        """
        if self.settings.read_only:
            raise Problem("not-available", "the service was started with --read-only")

    def video(self, vid: str) -> CataloguedVideo:
        """Return a video by its id.

        Raises:
            Problem: there is none, or the service is not ready.
        """
        self.check_ready()
        video = self.engine.video(vid)
        if video is None:
            raise Problem("not-found", f"video: got {vid!r}, expected an id of GET /v1/videos")
        return video

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function on one of the threads for media, when one is free.

        Raises:
            Problem: too many wait already.
        """
        limits = self.settings.limits
        if self.media_waiting >= limits.media_threads + limits.media_queue:
            self.metrics.refused.labels("too-many").inc()
            raise Problem(
                "too-many",
                f"got {self.media_waiting} frames, clips and exports in work, expected fewer; "
                f"try again soon",
                headers={"Retry-After": "1"},
            )
        self.media_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.media, function)
        finally:
            self.media_waiting -= 1

    def open(self) -> None:
        """Load the models and start to search; errors are kept in `failure`."""
        try:
            self.engine.open()
        except GranAlignError as error:
            self.failure = str(error)
        except Exception as error:
            _log.error("the models cannot be loaded: %s", error, exc_info=error)
            self.failure = f"{type(error).__name__}: {error}"
        else:
            for kind in self.engine.model_records:
                self.metrics.model_loads.labels(kind).inc()
            self.metrics.ready.set(1)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Current = Annotated[Service, Depends(_service)]
"""The service of a request, as a parameter of a route."""
