"""``granalign index``: video files to indexes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from granalign_fast.files import escape_undecodable
from granalign_fast.output.visible import visible

from .index_job import is_job, parse_workers, refuse_options, run_job
from .options import Device, Json, PrefixGib, print_json, short
from .progress import progress_bar
from .remote import RemoteOptions, open_chosen, with_remote_models
from .verbosity import is_quiet

if TYPE_CHECKING:
    from granalign_fast.errors import GranAlignError
    from granalign_fast.index.builder import Progress
    from granalign_fast.index.video_files import Reading

_log = logging.getLogger(__name__)


@with_remote_models
def index(
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="A folder, or a prefix such as s3://bucket/library; each video gets a folder in "
            "it.",
        ),
    ],
    videos: Annotated[
        list[str] | None, typer.Argument(help="Video files, and folders of them.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder of exported models (vlm, clip), or: miniatures. Needed unless "
            "--relocate or --vlm-url is given. Without a vlm, indexes have no captions; a later "
            "run with one adds them.",
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Also index the folders inside a folder.")] = True,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Files of a folder, such as '*.mp4'; can be repeated. Default: by the suffixes "
            "of videos.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first file that cannot be indexed.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read every file. Default: only those whose size or times changed."
        ),
    ] = False,
    clip_seconds: Annotated[float, typer.Option(help="Length of a clip in seconds.")] = 2.0,
    frames_per_clip: Annotated[
        int,
        typer.Option(
            metavar="1|2|4|6",
            help="Frames of each clip. Several show what moves; decoding and models take about so "
            "many times as long.",
        ),
    ] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Frames in a batch.")] = 16,
    relocate: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW",
            help="Index nothing: videos were moved from the folder or file OLD to NEW, so write "
            "their new paths into the indexes of --out, a folder of indexes or one index.",
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="A tag for these videos, by which a search chooses; can be repeated."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Let Ray do the work: the address of a cluster, such as 10.0.0.1:6379 or auto; or "
            "local, which starts workers on this machine.",
        ),
    ] = None,
    workers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE=COUNT",
            help="With --ray: workers of decode, frames, captions or texts, such as captions=4, "
            "captions=2-16 for at least and at most, or captions=4:0.5 for half a GPU each; can be "
            "repeated.",
        ),
    ] = None,
    device: Device = "cpu",
    prefix_gib: PrefixGib = 4.0,
    as_json: Json = False,
    remote: RemoteOptions | None = None,
) -> None:
    """Caption and embed videos. Run the same command again to resume.

    Videos and --out may lie in an object store, such as s3://bucket/videos/*.mp4.

    A file that cannot be indexed is named at the end, and the exit code is then 1.
    """
    failed: dict[str, str] = {}
    # Names as they were given: a Path cannot hold a URL, of which two slashes become one.
    given = {path: name for name in videos or () for path in (Path(name), Path(name).absolute())}

    def add_failure(path: Path, error: GranAlignError, name: str | None = None) -> None:
        name = given.get(path, str(path) if name is None else name)
        failed[name] = str(error).removeprefix(f"{name}: ").removeprefix(f"{path}: ")

    on_error = None if strict else add_failure
    if relocate is not None:
        if videos or models is not None:
            raise typer.BadParameter("it takes no videos and no --models", param_hint="--relocate")
        from granalign_fast.index.relocation import relocate_videos

        with index_progress(hidden=as_json) as (_, reading):
            moved = relocate_videos(out, *relocate, on_error=on_error, reading=reading)
        report_indexes(moved, failed, "relocated", as_json=as_json)
        return
    if not videos:
        raise typer.BadParameter("name video files, or folders of them", param_hint="VIDEOS")
    from granalign_fast.index.walk import find_videos
    from granalign_fast.library.catalogue import open_catalogue
    from granalign_fast.library.tags import check_tags
    from granalign_fast.library.upkeep import tag_videos
    from granalign_fast.video.frames import check_clip_seconds, check_frames_per_clip

    check_clip_seconds(clip_seconds)
    check_frames_per_clip(frames_per_clip)
    tags = check_tags(tag or ())
    if is_job(videos, out, ray):
        served = {f"--{name.replace('_', '-')}": url for name, url in (remote or {}).items()}
        urls = {option: url for option, url in served.items() if option.endswith("-url")}
        refuse_options({"--strict": strict, "--verify": verify} | urls)
        if models is None:
            raise typer.BadParameter(
                "name a folder of models, or: miniatures", param_hint="--models"
            )
        places, captioned = run_job(
            videos,
            out,
            models,
            ray=ray,
            workers=parse_workers(workers or (), device),
            device=device,
            prefix_gib=prefix_gib,
            clip_seconds=clip_seconds,
            frames_per_clip=frames_per_clip,
            rows=rows,
            recursive=recursive,
            include=include or (),
            tags=tags,
            on_error=lambda name, error: add_failure(Path(name), error, name),
            hidden=as_json,
        )
        _report(places, [] if captioned else places, failed, "indexed", as_json=as_json)
        return
    if workers:
        raise typer.BadParameter("it goes with --ray", param_hint="--workers")
    opened = open_chosen(models, remote, device=device, prefix_gib=prefix_gib)
    if opened is None:
        raise typer.BadParameter(
            "name a folder of models, or: miniatures; or a server with --vlm-url",
            param_hint="--models",
        )
    files = find_videos(videos, recursive=recursive, include=include or (), on_error=on_error)
    folders = []
    if files:
        with index_progress(hidden=as_json) as (progress, reading):
            folders = opened.index(
                files,
                out,
                clip_seconds=clip_seconds,
                frames_per_clip=frames_per_clip,
                rows=rows,
                progress=progress,
                on_error=on_error,
                verify=verify,
                reading=reading,
            )
    if folders:
        if tags:
            tag_videos(out, [folder.name for folder in folders], tags)
        open_catalogue(out)  # writes the new rows into it
    # Copies of a file share an index.
    report_indexes(list(dict.fromkeys(folders)), failed, "indexed", as_json=as_json)


def report_indexes(
    folders: Sequence[Path], failed: Mapping[str, str], done: str, *, as_json: bool
) -> None:
    """Print the indexes and the files that failed, and end with exit code 1 if there are any.

    Args:
        folders: the folders of the indexes.
        failed: the reason for each file.
        done: what was done with the videos of the indexes, such as ``indexed``.
        as_json: print one JSON object.
    """
    from granalign_fast.index.manifest import IndexManifest

    bare = [folder for folder in folders if not IndexManifest.read(folder).captions]
    _report(
        [str(folder) if as_json else short(folder) for folder in folders],
        [str(folder) for folder in bare],
        failed,
        done,
        as_json=as_json,
    )


def _report(
    places: Sequence[str],
    bare: Sequence[str],
    failed: Mapping[str, str],
    done: str,
    *,
    as_json: bool,
) -> None:
    """Print the places of indexes, those of them without captions, and the files that failed."""
    if as_json:
        failures = [
            {"path": escape_undecodable(name), "error": escape_undecodable(reason)}
            for name, reason in failed.items()
        ]
        print_json(
            {
                "indexes": list(places),
                "without_captions": list(bare),
                "failed": failures,
            }
        )
    else:
        for place in places:
            typer.echo(f"{done}: {visible(place)}")
        if bare:
            _log.warning(
                "%d of %d indexes have no captions and serve the preset visual, which granalign "
                "search takes for them; to add captions, run the same command with models of which "
                "one is a vlm",
                len(bare),
                len(places),
            )
    if failed:
        total = len(places) + len(failed)
        sys.stderr.write(f"granalign: {len(failed)} of {total} could not be {done}:\n")
        for name, reason in failed.items():
            sys.stderr.write(visible(f"  {name}: {reason}") + "\n")
        raise typer.Exit(1)


@contextmanager
def index_progress(*, hidden: bool) -> Iterator[tuple[Progress | None, Reading | None]]:
    """Show how much is read and how many clips are indexed; yields arguments of `index_videos`."""
    if hidden or is_quiet():
        yield None, None
        return
    with ExitStack() as stack:
        bars = _Bars(stack)
        yield bars.show_clips, bars.show_bytes


class _Bars:
    """Shows one bar at a time, because a terminal can hold no two."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._what = ""
        self._switch("indexing", "clips")

    def show_clips(self, clips: int, total: int, vid: str) -> None:
        self._switch("indexing", "clips")
        self._show(clips, total)

    def show_bytes(self, done: int, total: int) -> None:
        self._switch("reading", "MiB")
        self._show(-(-done >> 20), -(-total >> 20))
        if done == total:
            self._switch("indexing", "clips")

    def _switch(self, what: str, unit: str) -> None:
        if what != self._what:
            self._stack.close()
            self._what, self._done = what, 0
            self._advance = self._stack.enter_context(progress_bar(what, unit))

    def _show(self, done: int, total: int) -> None:
        if self._advance is not None:
            self._advance(done - self._done, total)
        self._done = done
