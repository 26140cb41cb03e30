"""``granalign evaluate corpus``: every query is searched in all videos of a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granalign_fast.errors import GranAlignError, counted, listed
from granalign_fast.output.tables import show

from .library_search import open_library
from .options import print_json
from .progress import progress_bar
from .tables import print_metrics
from .verbosity import write_warning

if TYPE_CHECKING:
    from granalign_fast.datasets import AnnotatedQuery
    from granalign_fast.library import Library
    from granalign_fast.pipeline import MomentRetriever
    from granalign_fast.protocols import Rewriter


def evaluate_in_library(
    files: Sequence[Path],
    retriever: MomentRetriever,
    *,
    dataset: str | None,
    captions: Path | None,
    library: Path | None,
    rewriter: Rewriter | None,
    refine: int,
    missing: str,
    setup: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Search the queries of annotation files in all captioned videos, or in a library; print.

    Args:
        files: annotation files of any dataset; the queries with windows are taken.
        retriever: its encoder embeds captions and queries.
        dataset: of the files; None: they show it.
        captions: of the videos, or
        library: what ``granalign index`` wrote.
        rewriter: rewrites the queries anew; None: the rewrites of the files are taken.
        refine: how many videos of a query the second stage searches.
        missing: what becomes of queries whose video is not there, as for a dataset.
        setup: what searches, for the record.
        as_json: print a JSON object in the place of a table.

    Raises:
        GranAlignError: a file cannot be read, there is no query with windows whose video is there,
            or neither captions nor a library is given, or both.
    """
    from granalign_fast.datasets import read_annotations
    from granalign_fast.evaluation.run import rewrite_anew
    from granalign_fast.library.evaluation import evaluate_corpus

    # 1. Read the queries, and open the library.
    if (captions is None) == (library is None):
        got = "neither" if captions is None else "both"
        raise GranAlignError(f"got {got}, expected one of: --captions FILE, --library DIR")
    annotations = read_annotations(files, dataset)
    queries = [query for query in annotations.queries if query.windows]
    if captions is not None:
        opened = _of_captions(captions, queries, retriever, hidden=as_json)
    else:
        opened = open_library(library or Path(), retriever, hidden=as_json)
    source = captions or library

    # 2. Choose the queries that count.
    known = {video.vid for video in opened.videos()}
    lost = list(dict.fromkeys(query.vid for query in queries if query.vid not in known))
    if lost:
        names = listed(list(map(repr, lost)))
        said = f"{source}: has {counted(len(lost), 'video')} of the queries not: {names}"
        if missing == "fail" or len(lost) == len({query.vid for query in queries}):
            raise GranAlignError(f"{said}; add them, or leave their queries out")
        became = "are left out" if missing == "skip" else "count as misses"
        write_warning(f"{said}; these queries {became}")
    if missing == "skip":
        queries = [query for query in queries if query.vid in known]
    if not queries:
        raise GranAlignError(f"{files[0]}: got no query with ground truth, expected one or more")
    if rewriter is not None:
        given = [query.rewrites for query in queries]
        rewritten = rewrite_anew(
            rewriter, given, lambda what, unit: progress_bar(what, unit, hidden=as_json)
        )
        queries = [replace(q, rewrites=r) for q, r in zip(queries, rewritten, strict=True)]

    # 3. Search, score and print.
    with progress_bar("searching", "queries", hidden=as_json) as advance:
        found = evaluate_corpus(opened, queries, refine=refine, progress=advance)
    for warning in annotations.warnings:
        write_warning(warning)
    seconds = {name: round(value, 4) for name, value in found.seconds.items()}
    if as_json:
        record = {"dataset": "corpus", **found.metrics, "seconds": seconds, **found.counts}
        record |= {"missing": len(lost), "notes": list(annotations.notes)}
        print_json(record | {"warnings": list(annotations.warnings), "setup": dict(setup)})
        return
    for note in annotations.notes:
        show(note)
    print_metrics(found.metrics, title=f"Percent, {counted(len(queries), 'query', 'queries')}")
    show(", ".join(f"{value:,} {name}" for name, value in found.counts.items()))
    each = {name: 1e3 * value / len(queries) for name, value in seconds.items()}
    show("ms a query: " + ", ".join(f"{name} {value:.1f}" for name, value in each.items()))


def _of_captions(
    captions: Path, queries: Sequence[AnnotatedQuery], retriever: MomentRetriever, *, hidden: bool
) -> Library:
    """Return all captioned videos as a library in memory, those without queries included."""
    from granalign_fast.datasets import fit_captions, read_captions, too_many
    from granalign_fast.library import Library

    durations = {query.vid: query.duration for query in queries if query.duration is not None}
    videos, shortened = fit_captions(read_captions(captions), durations)
    if shortened:
        write_warning(too_many(shortened))
    total = sum(len(video.captions) for video in videos.values())
    with progress_bar("embedding captions", "captions", hidden=hidden) as advance:
        report = None if advance is None else lambda more: advance(more, total)
        indexes = retriever.index_many(list(videos.values()), progress=report)
    return Library.of(indexes, retriever)
