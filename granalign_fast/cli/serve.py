"""``granalign serve``: the HTTP service of a library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.parsing.limits import MOST_GIB

from .options import Approximate, CaptionsOnly, Device, Models, PrefixGib, SearchPreset, check_extra
from .remote import RemoteOptions, served_options, with_remote_models

_ORIGIN = re.compile(r"https?://[^/?#@\s,*]+")
"""A site as browsers name it in the header `Origin`."""


@with_remote_models
def serve(
    library: Annotated[
        Path, typer.Argument(metavar="LIB", help="A folder that `granalign index` wrote, or empty.")
    ],
    models: Models = None,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on. Any but this machine's own needs --token-file, or "
            "--no-auth."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A line NAME SCOPES TOKEN for each token; scopes: read, or read,write.",
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let everybody who reaches the address do everything.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which clients reach the service; can be repeated. Default: any name, "
            "but on this machine's own addresses only localhost and these addresses.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A site whose pages may call the service, such as https://example.org; can be "
            "repeated. Default: none.",
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A folder of which clients may have videos indexed by path; can be repeated.",
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Change nothing: no uploads, no removals.")
    ] = False,
    preset: SearchPreset = None,
    captions_only: CaptionsOnly = False,
    approximate: Approximate = 0.0,
    device: Device = "cpu",
    prefix_gib: PrefixGib = 4.0,
    clip_seconds: Annotated[
        float | None,
        typer.Option(
            help="Length of a clip of videos that are indexed. Default: that of the preset, or 2."
        ),
    ] = None,
    frames_per_clip: Annotated[
        int | None,
        typer.Option(
            metavar="1|2|4|6",
            help="Frames of each clip of these videos. Default: that of the preset, or 1.",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes that search, each with models of its own in memory."),
    ] = 1,
    otlp: Annotated[
        bool,
        typer.Option(
            "--otlp",
            help="Send traces and metrics by OTLP, to the OTEL_EXPORTER_OTLP_ENDPOINT of the "
            "environment.",
        ),
    ] = False,
    max_queue: Annotated[
        int,
        typer.Option(
            min=1, help="Queries that wait beside a full batch; past them a client gets 429."
        ),
    ] = 8,
    max_batch: Annotated[int, typer.Option(min=1, help="Queries that are searched together.")] = 8,
    max_delay: Annotated[
        float,
        typer.Option(min=0, max=60, metavar="SECONDS", help="How long a query waits for others."),
    ] = 0.005,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Seconds after which a search gets 504.")
    ] = 60.0,
    cache_gib: Annotated[
        float,
        typer.Option(
            min=0,
            max=MOST_GIB,
            help="GiB of memory for the videos last searched: a third for their indexes, and the "
            "rest for what each preset in use derives from them.",
        ),
    ] = 1.0,
    max_upload_gib: Annotated[
        float, typer.Option(min=0, max=MOST_GIB, help="GiB of an uploaded video, at most.")
    ] = 8.0,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    remote: RemoteOptions | None = None,
) -> None:
    """Serve a library over HTTP: searches, videos, frames, clips; see /docs there."""
    check_extra("fastapi", "the service", "serve")
    check_extra("uvicorn", "the service", "serve")
    if otlp:
        check_extra("opentelemetry.sdk", "--otlp", "serve-otlp")
        check_extra("opentelemetry.exporter", "--otlp", "serve-otlp")
    if log_format not in ("text", "json"):
        raise GranAlignError(f"--log-format: got {log_format!r}, expected text or json")
    from granalign_fast.config import resolve_config
    from granalign_fast.index import CLIP_SECONDS
    from granalign_fast.server.access import is_loopback
    from granalign_fast.server.serving import serve as run
    from granalign_fast.server.settings import Limits, Settings
    from granalign_fast.video.frames import check_clip_seconds, check_frames_per_clip

    for path in root or ():
        if not path.is_dir():
            raise GranAlignError(f"--root {path}: got no folder, expected one of videos")
    for site in cors or ():
        if not _ORIGIN.fullmatch(site):
            raise GranAlignError(
                f"--cors {site}: expected the scheme and the name of a site, and no path, such as "
                f"https://example.org or http://localhost:3000"
            )
    config = resolve_config("tuned" if preset is None else preset)  # an unknown name is refused
    if clip_seconds is None:
        clip_seconds = config.clip_seconds or CLIP_SECONDS
    if frames_per_clip is None:
        frames_per_clip = config.frames_per_clip or 1
    check_clip_seconds(clip_seconds)
    check_frames_per_clip(frames_per_clip)
    own = is_loopback(host)
    if not own and token_file is None and not no_auth:
        raise GranAlignError(
            f"--host {host}: other machines can reach it, expected --token-file FILE; or --no-auth "
            f"to let everybody search, upload and delete"
        )
    if token_file is not None and no_auth:
        raise GranAlignError("--no-auth and --token-file: got both, expected one of them")
    names = tuple(allow_host or ())
    if own and not names and token_file is None:
        names = ("localhost", "127.0.0.1", "::1", host)
    settings = Settings(
        library=library,
        models=models,
        remote=served_options(remote),
        device=device,
        prefix_gib=prefix_gib,
        clip_seconds=clip_seconds,
        frames_per_clip=frames_per_clip,
        preset=preset,
        captions_only=captions_only,
        approximate=approximate,
        roots=tuple(path.absolute() for path in root or ()),
        read_only=read_only,
        tokens=token_file,
        hosts=names,
        origins=tuple(cors or ()),
        workers=workers,
        telemetry=otlp,
        limits=Limits(
            queue=max_queue,
            batch=max_batch,
            batch_delay=max_delay,
            cache_bytes=int(cache_gib * (1 << 30)),
            timeout=max_seconds,
            upload_bytes=int(max_upload_gib * (1 << 30)),
        ),
        log_json=log_format == "json",
    )
    raise typer.Exit(run(settings, host, port))
