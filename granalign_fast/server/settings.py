"""The settings of the service: what it serves, to whom, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from granalign_fast.config import MOST_CHARACTERS
from granalign_fast.parsing.json_values import parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds on what one request, and all of them together, may take."""

    body_bytes: int = 1 << 18
    """A JSON body: 64 queries of the greatest length fit."""
    upload_bytes: int = 8 << 30
    """A video that is uploaded."""
    query_characters: int = MOST_CHARACTERS
    """A query or a rewrite."""
    queries: int = 16
    """Queries of one search request."""
    top: int = 100
    """Moments of an answer."""
    refine: int = 100
    """Videos that the method searches for one query."""
    batch: int = 8
    """Queries that share a batch."""
    batch_delay: float = 0.005
    """Seconds that the first query of a batch waits for others."""
    queue: int = 8
    """Queries that wait while a full batch is in work; past them a request gets 429. One of several
    queries comes in whole while there is room for one. They fit into one batch: under any load a
    query waits for the batch in work and for its own."""
    cache_bytes: int = 1 << 30
    """Indexes of the videos last searched, and what a preset derives from them, in memory."""
    timeout: float = 60.0
    """Seconds after which a search gets 504; a request may ask for less."""
    media_threads: int = 2
    """Frames, cuts and exports that are made at the same time."""
    media_queue: int = 32
    """Requests for them that wait; past them a request gets 429."""
    clip_seconds: float = 600.0
    """Length of a clip that is cut out."""
    jobs: int = 1000
    """Jobs that wait; past them an upload gets 429."""
    followers: int = 64
    """Clients that follow jobs at the same time; past them one gets 429."""
    uploads: int = 8
    """Uploads at the same time; past them a request gets 429."""
    spare_bytes: int = 1 << 30
    """Free space that an upload leaves on the disk of the library."""
    job_seconds: float = 24 * 3600.0
    """Seconds that the indexing of a video may take."""
    connections: int = 512
    """Open connections; a further one takes the place of one that waits for a request, if there is
    one, and otherwise gets 503."""
    body_seconds: float = 20.0
    """Seconds in which the next part of a body must arrive."""
    body_rate: float = 4096.0
    """Bytes a second at which a body must arrive on the whole, after its first seconds."""
    drain_seconds: float = 30.0
    """Seconds that requests in work have after SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that `granalign serve` was told."""

    library: Path
    models: Path | None = None
    """A folder of models, or ``miniatures``; None for the sentence encoder alone."""
    remote: Mapping[str, Any] | None = None
    """The arguments of `RemoteModels`; None for none. Keys come from the environment."""
    device: str = "cpu"
    prefix_gib: float = 4.0
    clip_seconds: float = 2.0
    """Length of a clip of videos that are indexed."""
    frames_per_clip: int = 1
    """Frames of each clip of videos that are indexed."""
    preset: str | None = None
    """The preset of a search that names none; None for that which fits the models."""
    captions_only: bool = False
    approximate: float = 0.0
    """The share of the library's approximate indexes that a search reads; 0 compares all clips."""
    roots: tuple[Path, ...] = ()
    """Folders of which a client may have videos indexed, by path."""
    tokens: Path | None = None
    """A file of tokens; None if everybody may do everything."""
    hosts: tuple[str, ...] = ()
    """Names by which clients reach the service; empty for any."""
    origins: tuple[str, ...] = ()
    """Origins of other sites whose pages may call the service (CORS)."""
    read_only: bool = False
    """Whether nothing of the library is changed: no uploads, no removals, no jobs."""
    log_json: bool = False
    telemetry: bool = False
    """Whether traces and metrics are sent by OTLP, as variables of OpenTelemetry say."""
    workers: int = 1
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> str:
        """Return the settings as text, for the environment of a worker process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` returned."""
        record: dict[str, Any] = parse_json(text.encode())
        limits: Mapping[str, Any] = record.pop("limits")
        paths = {
            name: None if record[name] is None else Path(record[name])
            for name in ("models", "tokens")
        }
        return cls(
            **record
            | paths
            | {
                "library": Path(record["library"]),
                "roots": tuple(map(Path, record["roots"])),
                "hosts": tuple(record["hosts"]),
                "origins": tuple(record["origins"]),
                "limits": Limits(**limits),
            }
        )
