"""``granalign library``: the videos of a library, and its upkeep."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from granalign_fast.errors import GranAlignError, counted
from granalign_fast.files import escape_undecodable
from granalign_fast.output.visible import visible
from granalign_fast.storage import Address
from granalign_fast.storage.address import path_text

from .options import Json, check_extra, print_json, short
from .verbosity import with_verbosity

if TYPE_CHECKING:
    from granalign_fast.library.records import CataloguedVideo
    from granalign_fast.library.tags import Tags

library_app = typer.Typer(no_args_is_help=True, help="Show a library of videos, and keep it up.")

Folder = Annotated[
    Path, typer.Argument(metavar="LIB", help="What `granalign index` wrote: a folder, or s3://...")
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="VIDEO...", help="Ids, or the names or paths of files."),
]


@library_app.command("list")
@with_verbosity
def library_list(
    library: Folder,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only videos with this tag; can be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the videos: id, length, clips, frames of a clip, date, tags, file."""
    from granalign_fast.library.filters import Filters
    from granalign_fast.library.opening import open_library_catalogue
    from granalign_fast.library.tags import read_tags

    catalogue = open_library_catalogue(library)
    tags = read_tags(catalogue.folder)
    filters = Filters(tags=tuple(tag or ()))
    videos = [video for video in catalogue.videos() if filters.passes(video, tags)]
    damaged = {vid: reason for vid, (_, reason) in catalogue.damaged.items()}
    if as_json:
        print_json({"videos": [_record(video, tags) for video in videos], "damaged": damaged})
    else:
        _print_videos(videos, tags)
    _report_damaged(damaged)


@library_app.command("show")
@with_verbosity
def library_show(
    library: Folder,
    video: Annotated[str, typer.Argument(help="Its id, or the name or path of its file.")],
    as_json: Json = False,
) -> None:
    """Show what a library knows about one video."""
    from granalign_fast.library.opening import open_library_catalogue
    from granalign_fast.library.tags import read_tags
    from granalign_fast.library.upkeep import find_video

    catalogue = open_library_catalogue(library)
    record = _record(find_video(catalogue, video), read_tags(catalogue.folder))
    if as_json:
        print_json(record)
        return
    record["tags"] = ", ".join(record["tags"])
    record["models"] = ", ".join(f"{kind} {name}" for kind, name in record["models"].items())
    for name, value in record.items():
        typer.echo(visible(f"{name}: {'-' if value in (None, '') else value}"))


@library_app.command("remove")
@with_verbosity
def library_remove(library: Folder, videos: Names, as_json: Json = False) -> None:
    """Remove videos: their indexes and tags. The video files stay."""
    from granalign_fast.library.remote import remove_remote
    from granalign_fast.library.upkeep import remove_videos

    address = Address.find(library)
    vids = remove_videos(library, videos) if address is None else remove_remote(address, videos)
    if as_json:
        print_json({"removed": vids})
        return
    for vid in vids:
        typer.echo(visible(f"removed: {vid}"))


@library_app.command("tag")
@with_verbosity
def library_tag(
    library: Folder,
    videos: Names,
    add: Annotated[list[str] | None, typer.Option(help="A tag; can be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag; can be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Add tags to videos, and remove others."""
    from granalign_fast.library.opening import open_library_catalogue
    from granalign_fast.library.remote import tag_remote
    from granalign_fast.library.upkeep import find_video, tag_videos

    if not add and not remove:
        raise typer.BadParameter("name a tag with --add or --remove", param_hint="TAGS")
    catalogue = open_library_catalogue(library)
    vids = [find_video(catalogue, name).vid for name in videos]
    if (address := Address.find(library)) is not None:
        tags = tag_remote(address, vids, add or (), remove or ())
    else:
        tags = tag_videos(library, vids, add or (), remove or ())
    if as_json:
        print_json({"tags": tags})
        return
    for vid, words in tags.items():
        typer.echo(visible(f"{vid}: {', '.join(words) or '-'}"))


@library_app.command("verify")
@with_verbosity
def library_verify(
    library: Folder,
    files: Annotated[bool, typer.Option("--files", help="Also read the video files.")] = False,
    as_json: Json = False,
) -> None:
    """Read every file, and compare it with its hash. The exit code is 1 if one is damaged."""
    from granalign_fast.library.upkeep import verify_library

    _refuse_remote(library)
    found = verify_library(library, files=files)
    if as_json:
        print_json(
            {"videos": found.videos, "problems": found.problems, "catalogue": found.catalogue}
        )
    else:
        whole = found.videos - len(found.problems)
        typer.echo(f"{whole} of {found.videos} videos are whole")
    for reason in (*found.problems.values(), *found.catalogue):
        sys.stderr.write(f"granalign: {visible(reason)}\n")
    if found.catalogue:
        command = f"granalign library rebuild {shlex.quote(short(library))}"
        sys.stderr.write(f"granalign: run {command}\n")
    if found.problems or found.catalogue:
        raise typer.Exit(1)


@library_app.command("rebuild")
@with_verbosity
def library_rebuild(library: Folder, as_json: Json = False) -> None:
    """Write the catalogue anew from the indexes. No model is needed."""
    from granalign_fast.library.catalogue import update_catalogue
    from granalign_fast.library.remote import publish_catalogue

    from .progress import progress_bar

    with progress_bar("reading indexes", "videos", hidden=as_json) as advance:
        progress = None if advance is None else lambda _, total: advance(1, total)
        if (address := Address.find(library)) is not None:
            catalogue = publish_catalogue(address, rebuild=True, progress=progress)
        else:
            catalogue = update_catalogue(library, rebuild=True, progress=progress)
    damaged = {vid: reason for vid, (_, reason) in catalogue.damaged.items()}
    videos = catalogue.videos()
    clips = sum(video.clips for video in videos)
    if as_json:
        print_json({"videos": len(videos), "clips": clips, "damaged": damaged})
    else:
        typer.echo(f"catalogue of {counted(len(videos), 'video')}, {counted(clips, 'clip')}")
    _report_damaged(damaged)


@library_app.command("approximate")
@with_verbosity
def library_approximate(library: Folder, as_json: Json = False) -> None:
    """Make approximate indexes of large parts, for `search --approximate`. No model is needed."""
    from granalign_fast.library.approximation import approximate_library

    from .progress import progress_bar

    check_extra("faiss", "an approximate index", "approximate")
    with progress_bar("sorting clips into lists", "matrices", hidden=as_json) as advance:
        progress = None if advance is None else lambda _, total: advance(1, total)
        found = approximate_library(library, progress=progress)
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(
        f"approximate indexes: {found.made} made, {found.kept} kept; {found.compared} parts are so "
        f"small that all their clips are compared"
    )


@library_app.command("move")
@with_verbosity
def library_move(
    library: Folder,
    old: Annotated[Path, typer.Argument(help="The folder or file as it was.")],
    new: Annotated[Path, typer.Argument(help="The folder or file as it is now.")],
    as_json: Json = False,
) -> None:
    """Write new paths: the video files were moved from OLD to NEW. Each is read and compared."""
    from granalign_fast.index.relocation import relocate_videos
    from granalign_fast.library.catalogue import open_catalogue
    from granalign_fast.library.records import index_stamp

    from .index import index_progress, report_indexes

    _refuse_remote(library)
    failed: dict[str, str] = {}
    with index_progress(hidden=as_json) as (_, reading):
        moved = relocate_videos(
            library,
            old,
            new,
            on_error=lambda path, error: failed.update({str(path): str(error)}),
            reading=reading,
        )
    if index_stamp(library) is None:  # a library, whose catalogue gets the new paths
        open_catalogue(library)
    report_indexes(moved, failed, "relocated", as_json=as_json)


def _refuse_remote(library: Path) -> None:
    """Raise if a library lies in an object store, for a command that reads or changes folders."""
    if (address := Address.find(library)) is not None:
        raise GranAlignError(
            f"{address}: got a library in an object store, expected a folder; copy it to this "
            f"machine first"
        )


def _record(video: CataloguedVideo, tags: Tags) -> dict[str, Any]:
    """Return a video as JSON."""
    return {
        "vid": video.vid,
        "video": None if video.path is None else escape_undecodable(path_text(video.path)),
        "seconds": video.seconds,
        "clips": video.clips,
        "clip_seconds": video.clip_seconds,
        "frames_per_clip": video.frames_per_clip,
        "date": _date(video),
        "tags": list(tags.get(video.vid, ())),
        "models": dict(video.models),
    }


def _date(video: CataloguedVideo) -> str | None:
    if video.date is None:
        return None
    return datetime.fromtimestamp(video.date).astimezone().isoformat(timespec="seconds")


def _print_videos(videos: list[CataloguedVideo], tags: Tags) -> None:
    from rich.table import Table

    from granalign_fast.output.tables import length, show

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("video", overflow="fold")
    for name in ("length", "clips", "frames/clip"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("date", no_wrap=True)
    table.add_column("tags", overflow="fold")
    for video in videos:
        duration, date = length(video.seconds, digits=0), (_date(video) or "-")[:10]
        numbers = f"{video.clips}", f"{video.frames_per_clip}"
        words = ", ".join(tags.get(video.vid, ()))
        table.add_row(video.vid, duration, *numbers, date, words)
    show(table)
    seconds = sum(video.seconds for video in videos)
    typer.echo(f"{counted(len(videos), 'video')}, {length(seconds, digits=0)} in all")


def _report_damaged(damaged: dict[str, str]) -> None:
    """Name the indexes that cannot be read, and end with exit code 1 if there are any."""
    if damaged:
        indexes = counted(len(damaged), "index", "indexes")
        sys.stderr.write(f"granalign: {indexes} cannot be read:\n")
        for reason in damaged.values():
            sys.stderr.write(f"  {visible(reason)}\n")
        raise typer.Exit(1)
