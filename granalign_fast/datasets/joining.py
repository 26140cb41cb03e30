"""Join what several files say about the same query."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from granalign_fast.errors import GranAlignError, listed
from granalign_fast.types import Rewrites

from .statements import Statement, Statements

_SAME_SECONDS = 1.0
"""Seconds by which durations of one video may differ: some files round them, some count frames."""
_SAME_WINDOW = 0.1
"""Seconds by which the same window may differ between files: one decimal."""


@dataclass(slots=True)
class Joined:
    """The queries of all files."""

    statements: list[Statement]
    """One for each query, in the order of the files; each has a qid, a vid and a text."""
    durations: dict[str, float]
    """Seconds, by video."""
    unused_rewrites: int
    """Queries for which a later file has other rewrites than the file that is used."""


def join(files: Sequence[Statements]) -> Joined:
    """Join files by qid or, where a file has none, by video and sentence.

    Sentences are the same if they only differ in case, white space and a full stop. A sentence that
    occurs again in the same file, or with other windows, is another query. A query without a qid
    gets ``VID_n``, where n counts the queries of its video from 0 in the order of the files.

    Raises:
        GranAlignError: files disagree about a query's text, video or windows or a video's
            duration, or a query has no text or no video in any file.
    """
    durations = _durations(files)
    queries: list[Statement] = []
    by_qid: dict[int | str, Statement] = {}
    unused = 0
    # Files with qids first: the others find their queries by their texts.
    for file in sorted(files, key=_lacks_qids):
        by_text = _by_text(queries) if _lacks_qids(file) else {}
        taken: set[int] = set()
        for statement in file.of_queries:
            if statement.qid is not None:
                known = by_qid.get(statement.qid)
            else:
                known = _find(statement, by_text, taken, durations)
            if known is None:
                known = statement
                queries.append(statement)
            else:
                unused += _merge(known, statement, durations)
            if known.qid is not None:
                by_qid[known.qid] = known
            taken.add(id(known))
    _check_complete(queries, files)
    _number(queries, by_qid)
    return Joined(queries, durations, unused)


def _lacks_qids(file: Statements) -> bool:
    return any(statement.qid is None for statement in file.of_queries)


_ByText = Mapping[tuple[str | None, str], Sequence[Statement]]
"""Queries by video and text."""


def _by_text(queries: Sequence[Statement]) -> _ByText:
    """Group the queries that have a text by video and text."""
    groups: defaultdict[tuple[str | None, str], list[Statement]] = defaultdict(list)
    for one in queries:
        if one.rewrites is not None:
            groups[one.vid, same_text(one.rewrites.query)].append(one)
    return groups


def _find(
    statement: Statement, by_text: _ByText, taken: set[int], durations: Mapping[str, float]
) -> Statement | None:
    """Return what earlier files say about a query without a qid, if any does.

    Args:
        statement: of the query.
        by_text: the queries of earlier files.
        taken: the ids of queries that this file has spoken of already.
        durations: in seconds, by video.
    """
    if not by_text or statement.rewrites is None:
        return None
    for known in by_text.get((statement.vid, same_text(statement.rewrites.query)), ()):
        if id(known) not in taken and _same_windows(known, statement, durations):
            return known
    return None


def same_text(text: str) -> str:
    """Return a sentence in lower case, with single spaces and without a full stop."""
    return " ".join(text.split()).rstrip(" .").casefold()


def _merge(known: Statement, other: Statement, durations: Mapping[str, float]) -> bool:
    """Add to a query what another file says; return whether its rewrites are left out.

    Raises:
        GranAlignError: the two disagree.
    """
    both = f"{other.location}: qid {other.qid!r}"
    if known.vid is not None and other.vid is not None and known.vid != other.vid:
        raise GranAlignError(
            f"{both} has video {other.vid!r}, but {known.vid!r} at {known.location}; expected "
            f"files of one split: check them"
        )
    if not _same_windows(known, other, durations):
        raise GranAlignError(
            f"{both} has the windows {listed(other.windows)}, but {listed(known.windows)} at "
            f"{known.location}; expected files of one release: leave one out"
        )
    known.vid = known.vid if known.vid is not None else other.vid
    known.windows = known.windows or other.windows
    known.saliency = known.saliency or other.saliency
    if known.rewrites is None or other.rewrites is None:
        known.rewrites = known.rewrites or other.rewrites
        return False
    if same_text(known.rewrites.query) != same_text(other.rewrites.query):
        raise GranAlignError(
            f"{both} has the query {other.rewrites.query!r}, but {known.rewrites.query!r} at "
            f"{known.location}; expected files of one split: check them"
        )
    if _has_rewrites(other.rewrites) and not _has_rewrites(known.rewrites):
        known.rewrites = other.rewrites
        return False
    return _has_rewrites(other.rewrites) and other.rewrites != known.rewrites


def _has_rewrites(rewrites: Rewrites) -> bool:
    return bool(rewrites.simplified or rewrites.detailed)


def _same_windows(one: Statement, other: Statement, durations: Mapping[str, float]) -> bool:
    """Tell whether windows agree where both files have some; ends are compared in the video."""
    if not one.windows or not other.windows:
        return True
    end = durations.get(one.vid or other.vid or "", float("inf"))
    pairs = zip(one.windows, other.windows, strict=False)
    return len(one.windows) == len(other.windows) and all(
        abs(min(a, end) - min(b, end)) <= _SAME_WINDOW
        for first, second in pairs
        for a, b in zip(first, second, strict=True)
    )


def _durations(files: Sequence[Statements]) -> dict[str, float]:
    """Return the duration of each video: that of the first file that has it.

    Raises:
        GranAlignError: two differ by more than rounding.
    """
    durations: dict[str, float] = {}
    sources: dict[str, str] = {}
    vids = {s.qid: s.vid for file in files for s in file.of_queries if s.vid is not None}
    for file in files:
        found = [(str(file.path), vid, length) for vid, length in file.lengths.items()]
        found += [
            (statement.location, vid, statement.duration)
            for statement in file.of_queries
            if statement.duration is not None
            and (vid := statement.vid or vids.get(statement.qid)) is not None
        ]
        for source, vid, duration in found:
            known = durations.setdefault(vid, duration)
            first = sources.setdefault(vid, source)
            if abs(known - duration) > _SAME_SECONDS:
                raise GranAlignError(
                    f"{source}: video {vid!r} lasts {duration:g} s, but {known:g} s at {first}; "
                    f"expected one duration a video: leave the wrong file out, or correct it"
                )
    return durations


def _check_complete(queries: Sequence[Statement], files: Sequence[Statements]) -> None:
    """Raise if a query has no text or no video in any file."""
    lacking = [one for one in queries if one.vid is None or one.rewrites is None]
    if not lacking:
        return
    first = lacking[0]
    keys = [key for key, value in (("query", first.rewrites), ("vid", first.vid)) if value is None]
    names = listed([file.path.name for file in files])
    raise GranAlignError(
        f"{first.location}: qid {first.qid!r} has no {' and no '.join(keys)} in {names}, like "
        f"{len(lacking)} of {len(queries)} queries; give the file of queries of the same split too"
    )


def _number(queries: Sequence[Statement], taken: Mapping[int | str, Statement]) -> None:
    """Give every query without a qid its own."""
    counts: Counter[str] = Counter()
    for statement in queries:
        vid = statement.vid or ""
        if statement.qid is None:
            statement.qid = f"{vid}_{counts[vid]}"
            if statement.qid in taken:
                raise GranAlignError(
                    f"{statement.location}: the query has no qid, and {statement.qid!r} that it "
                    f"would get is taken; give it a qid"
                )
        counts[vid] += 1
