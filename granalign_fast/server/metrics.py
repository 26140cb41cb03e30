"""The metrics of the service, in the names and units of Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one service.

    With several worker processes each keeps its own in a folder, which
    ``PROMETHEUS_MULTIPROC_DIR`` names, and `text` adds them up.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "granalign_http_requests_total",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.durations = Histogram(
            "granalign_http_request_duration_seconds",
            "Time from the headers of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_work = Gauge(
            "granalign_http_requests_in_progress",
            "Requests that are being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.batches = Histogram(
            "granalign_search_batch_size",
            "Queries of a batch.",
            buckets=_SIZES,
            registry=registry,
        )
        self.waited = Histogram(
            "granalign_search_queue_seconds",
            "Time that a query waited for its batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queued = Gauge(
            "granalign_search_queue_size",
            "Queries that wait for a batch.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.stages = Histogram(
            "granalign_stage_duration_seconds",
            "Time that a batch spent in a stage of the search.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.dropped = Counter(
            "granalign_search_dropped_total",
            "Queries that were dropped because nobody waited for them any more.",
            registry=registry,
        )
        self.refused = Counter(
            "granalign_http_requests_refused_total",
            "Requests that were refused, by the kind of the problem.",
            ("problem",),
            registry=registry,
        )
        self.videos = Gauge(
            "granalign_library_videos",
            "Videos of the library.",
            registry=registry,
            multiprocess_mode="max",
        )
        self.clips = Gauge(
            "granalign_library_clips",
            "Clips of the library.",
            registry=registry,
            multiprocess_mode="max",
        )
        self.jobs = Gauge(
            "granalign_jobs",
            "Jobs that index videos, by state.",
            ("state",),
            registry=registry,
            multiprocess_mode="max",
        )
        self.cache = Counter(
            "granalign_cache_requests_total",
            "Look-ups in a cache of the service, by cache and result.",
            ("cache", "result"),
            registry=registry,
        )
        self.model_loads = Counter(
            "granalign_model_loads_total",
            "Models that were loaded, by kind.",
            ("kind",),
            registry=registry,
        )
        self.ready = Gauge(
            "granalign_ready",
            "Whether the models are loaded and warm: 1 or 0.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
        self.before_text: list[Callable[[], None]] = []
        """Called before the metrics are read, to bring gauges up to date."""

    def text(self) -> bytes:
        """Return all metrics as text."""
        for update in self.before_text:
            update()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self.registry)
