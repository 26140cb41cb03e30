"""``granalign cache``: what the cache folder holds, and how to empty it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.output.visible import visible

from .options import Json, print_json
from .verbosity import with_verbosity

if TYPE_CHECKING:
    from granalign_fast.runtime.cache_folder import Entry

cache_app = typer.Typer(no_args_is_help=True, help="Show or clear the cache folder.")

_KINDS = {
    "embeddings": "of captions and queries",
    "indexes": "of videos that `search VIDEO` indexed",
    "libraries": "copies of libraries in object stores",
    "prefixes": "of frames, by the vision-language model; bound: --prefix-gib",
    "exports": "models exported on first use",
    "engines": "of TensorRT",
    "verified": "marks of model files whose hash was found right",
}
"""The contents of each kind, in the order of the table."""


@cache_app.command("info")
@with_verbosity
def cache_info(as_json: Json = False) -> None:
    """Show the cache folder, and the size and number of its files by kind."""
    from granalign_fast.files import default_cache
    from granalign_fast.runtime.cache_folder import EVICTABLE, cache_limit, entries

    limit, folder = cache_limit(), default_cache()
    counts = _count(entries(folder))
    if as_json:
        kinds = {kind: {"files": files, "bytes": size} for kind, (files, size) in counts.items()}
        print_json({"folder": str(folder), "limit_bytes": limit, "kinds": kinds})
        return
    from rich.table import Table

    from granalign_fast.output.tables import show

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("kind")
    for name in ("files", "size"):
        table.add_column(name, justify="right")
    table.add_column("what")
    for kind, (files, size) in counts.items():
        table.add_row(kind, f"{files:,}", _size(size), _KINDS[kind])
    table.add_row("all", *_totals(counts))
    typer.echo(visible(str(folder)))
    show(table)
    typer.echo(
        f"{' and '.join(EVICTABLE)}: the least recently used go above {limit / (1 << 30):g} GiB "
        f"(GRANALIGN_CACHE_GIB)"
    )


@cache_app.command("clear")
@with_verbosity
def cache_clear(
    kind: Annotated[
        str | None, typer.Argument(help=f"{', '.join(_KINDS)}. Default: all of them.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete what the cache folder holds. All of it is made again when it is needed."""
    from granalign_fast.files import default_cache
    from granalign_fast.runtime.cache_folder import entries, remove

    if kind is not None and kind not in _KINDS:
        raise GranAlignError(f"kind: got {kind!r}, expected one of: {', '.join(_KINDS)}")
    folder = default_cache()
    chosen = [entry for entry in entries(folder) if kind in (None, entry.kind)]
    files, size = _totals(_count(chosen))
    if not chosen:
        typer.echo(f"nothing to delete in {visible(str(folder))}")
        return
    if not yes:
        question = f"Delete {files} files, {size}, in {folder}?"
        typer.confirm(visible(question), abort=True, err=True)
    deleted = [entry for entry in chosen if remove(entry)]
    files, size = _totals(_count(deleted))
    typer.echo(f"deleted {files} files, {size}, in {visible(str(folder))}")
    if len(deleted) < len(chosen):
        raise typer.Exit(1)


def _count(entries: Iterable[Entry]) -> dict[str, tuple[int, int]]:
    """Return files and bytes of each kind."""
    counts = dict.fromkeys(_KINDS, (0, 0))
    for entry in entries:
        files, size = counts[entry.kind]
        counts[entry.kind] = files + entry.files, size + entry.bytes
    return counts


def _totals(counts: dict[str, tuple[int, int]]) -> tuple[str, str]:
    files, sizes = zip(*counts.values(), strict=True)
    return f"{sum(files):,}", _size(sum(sizes))


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
