"""``granalign index`` where sources or output lie in object stores, or where Ray does the work."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.storage import Address

from .progress import progress_bar

if TYPE_CHECKING:
    from granalign_fast.library.jobs import Workers
    from granalign_fast.library.jobs.sources import OnFailure

_SHARES = {"decode": 0.0, "frames": 0.2, "captions": 0.6, "texts": 0.2}
"""GPUs of each worker with ``--device cuda``, unless said otherwise: one of each fit on one GPU."""


def is_job(names: Sequence[str], out: Path, ray: str | None) -> bool:
    """Return whether a run goes through the stages of a job."""
    return ray is not None or any(map(Address.find, (*names, str(out))))


def parse_workers(texts: Sequence[str], device: str) -> dict[str, Workers]:
    """Read the options ``--workers``.

    Raises:
        GranAlignError: one has another form, or names a stage that another one has named.
    """
    from granalign_fast.library.jobs import Workers

    on_gpu = device != "cpu"
    shares = _SHARES if on_gpu else dict.fromkeys(_SHARES, 0.0)
    chosen = {stage: Workers(gpus=share) for stage, share in shares.items()}
    # Decoding is the slowest stage without a captioner; it needs no model, so Ray may start many.
    chosen["decode"] = Workers(1, os.cpu_count() or 1)
    named: set[str] = set()
    for text in texts:
        stage, workers = Workers.parse(text, shares.get(text.partition("=")[0], 0.0))
        if stage in named:
            raise GranAlignError(f"--workers {text}: got {stage} twice, expected it once")
        named.add(stage)
        chosen[stage] = workers
    return chosen


def run_job(
    names: Sequence[str],
    out: Path,
    models: Path,
    *,
    ray: str | None,
    workers: Mapping[str, Workers],
    device: str,
    prefix_gib: float,
    clip_seconds: float,
    frames_per_clip: int,
    rows: int,
    recursive: bool,
    include: Sequence[str],
    tags: Sequence[str],
    on_error: OnFailure,
    hidden: bool,
) -> tuple[list[str], bool]:
    """Index videos by a job, show progress unless `hidden`, and tag them.

    Returns:
        The place of each index, and whether the indexes have captions.
    """
    from granalign_fast.library.catalogue import open_catalogue
    from granalign_fast.library.jobs import index_sources
    from granalign_fast.library.upkeep import tag_videos
    from granalign_fast.pipeline import open_models

    # What a worker opens: the same folder on its machine. On several machines, nobody comes back to
    # the prefixes of the frames.
    folder = str(models.absolute() if models.exists() else models)
    opener = partial(
        open_models, folder, device=device, prefix_gib=0.0 if ray is not None else prefix_gib
    )
    opener().check_indexing()
    with progress_bar("indexing", "videos", hidden=hidden) as advance:
        shown = 0

        def progress(done: int, total: int, _: str) -> None:
            nonlocal shown
            if advance is not None:
                advance(done - shown, total)
            shown = done

        result = index_sources(
            names,
            out,
            opener,
            ray=ray,
            workers=workers,
            clip_seconds=clip_seconds,
            frames_per_clip=frames_per_clip,
            rows=rows,
            recursive=recursive,
            include=include,
            progress=progress,
            on_error=on_error,
        )
    address = Address.find(out)
    if address is not None:
        if tags and result.vids:
            from granalign_fast.library.remote import tag_remote

            tag_remote(address, result.vids, tags)
        return [str(address.child(vid)) for vid in result.vids], result.captions
    if result.vids:
        if tags:
            tag_videos(out, result.vids, tags)
        open_catalogue(out)  # writes the new rows into it
    return [str(out / vid) for vid in result.vids], result.captions


def refuse_options(given: Mapping[str, object]) -> None:
    """Raise if an option is given that a job does not have.

    Args:
        given: values by the names of the options; empty ones were not given.
    """
    for option, value in given.items():
        if value:
            raise typer.BadParameter(
                "it is for files of this machine, indexed into a folder without --ray",
                param_hint=option,
            )
