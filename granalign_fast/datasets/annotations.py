"""Read annotation files of one dataset: recognise each, join them, and check the windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from granalign_fast.errors import GranAlignError, counted, listed

from .charades import read_lengths, read_sentences
from .dictionaries import read_videos
from .documents import FORMS, read_document
from .joining import Joined, join, same_text
from .json_records import read_records
from .recognition import TITLES, check_forms, check_vids, recognise
from .records import DATASETS, AnnotatedQuery, Annotations, PathLike
from .statements import Statements
from .windows import WindowCheck

_READERS = {
    "records": read_records,
    "dictionary": read_videos,
    "sentences": read_sentences,
    "table": read_lengths,
}


def read_annotations(paths: Sequence[PathLike], dataset: str | None = None) -> Annotations:
    """Read annotation files of one dataset, and join what they say about each query.

    Each file is recognised by its content. It is QVHighlights' or lighthouse's JSON Lines,
    VTG-GPT's with `rephrased_query`, our own form, Charades-STA's text, the table of Charades with
    the lengths of videos, ActivityNet-Captions' dictionary of videos, or TFVTG's with rewordings.
    All may be ``.gz``.

    Queries are joined by qid or, in a file without qids, by video and sentence. There a query
    without a qid gets ``VID_n``, where n counts the sentences of its video from 0 in the order of
    the files. This qid stays the same as long as the files and their order do. If files differ in
    their durations by less than a second, the first file holds.

    Windows of Charades-STA and ActivityNet-Captions are clipped to the video, and sentences whose
    window starts at or after its end are left out. This is what 2D-TAN's loaders do
    (github.com/microsoft/VideoX, 2D-TAN/lib/datasets) and what the releases of lighthouse hold
    (github.com/line/lighthouse, data); TFVTG's evaluator takes windows as they are. Windows of
    QVHighlights are taken as they are, as its evaluator does.

    Args:
        paths: of the files, in the order in which they take precedence.
        dataset: one of `DATASETS`; None: recognised from the files.

    Raises:
        GranAlignError: a file cannot be read, is of no known form or of another dataset, has values
            of wrong types, or a window outside its video; or two files disagree.
    """
    if dataset is not None and dataset not in DATASETS:
        raise GranAlignError(f"dataset: got {dataset!r}, expected one of: {', '.join(DATASETS)}")
    if isinstance(paths, str | bytes) or not paths:
        raise GranAlignError(f"annotations: got {paths!r}, expected a list of one file or more")
    documents = [read_document(path) for path in paths]
    if dataset is not None:
        check_forms(documents, dataset)
    files = [_READERS[document.form](document) for document in documents]
    name = listed([document.path for document in documents])
    notes = [note for file in files for note in (_contents(file), *file.notes)]
    joined = join(files)
    vids = list(dict.fromkeys(one.vid or "" for one in joined.statements))
    if not vids:
        raise GranAlignError(f"{name}: got no queries, expected {FORMS}; give a file with queries")
    if dataset is None:
        saliency = any(one.saliency is not None for one in joined.statements)
        dataset = recognise(documents, vids, saliency=saliency)
    for file in files:
        check_vids({one.vid for one in file.of_queries if one.vid}, dataset, str(file.path))
    check = WindowCheck(dataset, joined.durations)
    queries = tuple(check.kept(joined.statements))
    if not queries:
        raise GranAlignError(f"{name}: every window starts at or after its end; correct the file")
    if sum(bool(file.of_queries) for file in files) > 1:
        total = counted(len(joined.statements), "query", "queries")
        notes.append(f"Joined: {total} about {counted(len(vids), 'video')}.")
    notes += check.notes()
    warnings = [warning for file in files for warning in file.warnings]
    warnings += _gaps(queries, joined, dataset)
    return Annotations(dataset, queries, (*notes, *_repetitions(queries)), tuple(warnings))


def _contents(file: Statements) -> str:
    """Say in one sentence what a file has given."""
    if file.lengths:
        return f"{file.path.name}: {file.form}, {counted(len(file.lengths), 'video')}."
    statements = file.of_queries
    total = len(statements)
    vids = {one.vid for one in statements if one.vid is not None}
    about = f" about {counted(len(vids), 'video')}" if vids else ""
    saliency = sum(one.saliency is not None for one in statements)
    counts = Counter(
        len(one.rewrites.simplified) + len(one.rewrites.detailed)
        for one in statements
        if one.rewrites is not None
    )
    rewritten = sum(count for rewrites, count in counts.items() if rewrites)
    each = ""
    if rewritten:
        least, most = min(filter(None, counts)), max(counts)
        each = f"{most} " if least == most else f"{least} to {most} "
    return (
        f"{file.path.name}: {file.form}, {counted(total, 'query', 'queries')}{about}, "
        f"{_share(sum(bool(one.windows) for one in statements), total)} with windows, "
        + (f"{_share(saliency, total)} with saliency, " if saliency else "")
        + f"{_share(rewritten, total)} with {each}rewrites"
        + (f" each from {file.rewrites_key}." if rewritten else ".")
    )


def _share(count: int, total: int) -> str:
    """Return a count in words where it is none or all."""
    return {0: "none", total: "all"}.get(count, f"{count:,}")


def _repetitions(queries: Sequence[AnnotatedQuery]) -> list[str]:
    """Say how many rewrites only repeat their query."""
    repeated = total = 0
    for query in queries:
        texts = [*query.rewrites.simplified, *query.rewrites.detailed]
        if not texts:
            continue
        own = same_text(query.rewrites.query)
        total += len(texts)
        repeated += sum(same_text(text) == own for text in texts)
    if not repeated:
        return []
    return [
        f"Rewrites that repeat their query, and are used nonetheless: {repeated:,} of {total:,}."
    ]


def _gaps(queries: Sequence[AnnotatedQuery], joined: Joined, dataset: str) -> list[str]:
    """Warn of what some queries have and others lack."""
    warnings = []
    for what, lacking in (
        ("rewrites", sum(not (q.rewrites.simplified or q.rewrites.detailed) for q in queries)),
        ("windows", sum(not query.windows for query in queries)),
    ):
        if 0 < lacking < len(queries):
            warnings.append(f"no {what}: {lacking:,} of {len(queries):,} queries")
    if joined.unused_rewrites:
        warnings.append(
            f"rewrites in several files: {counted(joined.unused_rewrites, 'query', 'queries')}; "
            f"those of the first file are used"
        )
    unknown = {query.vid for query in queries if query.duration is None}
    if unknown and any(query.windows for query in queries):
        remedy = "; give Charades_v1_train.csv or Charades_v1_test.csv as well"
        warnings.append(
            f"no duration: {counted(len(unknown), 'video')} of {TITLES[dataset]}, whose windows "
            f"are not checked{remedy if dataset == 'charades' else ''}"
        )
    return warnings
