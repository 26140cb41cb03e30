"""QVHighlights from files: queries against captions, predictions out, scored by its own metric."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .errors import GranAlignError
from .index import CaptionedVideo
from .jsonl import Record, iter_jsonl
from .metrics import load_ground_truth, score_qvhighlights
from .retriever import MomentRetriever, Request
from .rewrites import Rewriter
from .types import Rewrites

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation gives: the benchmark's tables, the predictions, and the time it took."""

    metrics: dict[str, Any]
    predictions: list[Record]
    seconds: dict[str, float]
    """Of each stage, in seconds."""
    counts: dict[str, int]
    """How many queries, videos and captions there were."""


def read_captions(path: PathLike) -> dict[str, CaptionedVideo]:
    """Captioned videos by `vid`, from JSON Lines of `vid` and `captions`.

    Raises:
        GranAlignError: the file cannot be read, a line is not such a record, or a vid repeats.
    """
    videos: dict[str, CaptionedVideo] = {}
    for place, record in iter_jsonl(path, required=("vid", "captions")):
        video = CaptionedVideo.from_record(record, place)
        if video.vid in videos:
            raise GranAlignError(f"{place}: vid {video.vid!r} repeats; expected one line a video")
        videos[video.vid] = video
    return videos


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a queries file."""

    qid: Any
    vid: str
    rewrites: Rewrites


def read_queries(
    path: PathLike, captions: PathLike, videos: dict[str, CaptionedVideo], truth: list[Record]
) -> list[Query]:
    """Queries in file order, each with captions in `videos` and an answer in `truth`.

    Raises:
        GranAlignError: the file cannot be read, or a line is no such query; names file and line.
    """
    known = {record["qid"]: record for record in truth}
    queries: dict[Any, Query] = {}
    for place, record in iter_jsonl(path, required=("qid", "query", "vid")):
        qid, vid = record["qid"], record["vid"]
        if not isinstance(qid, int | str) or qid not in known:
            raise GranAlignError(
                f"{place}: qid {qid!r} is not in the ground truth; check that both are of one split"
            )
        if qid in queries:
            raise GranAlignError(f"{place}: qid {qid!r} repeats; expected one line a query")
        if not isinstance(vid, str) or vid not in videos:
            raise GranAlignError(
                f"{place}: video {vid!r} of qid {qid!r} has no captions in {captions}; caption it "
                "or leave the query out"
            )
        queries[qid] = Query(qid, vid, Rewrites.from_record(record, place))
    if missing := [qid for qid in known if qid not in queries]:
        raise GranAlignError(
            f"{path}: {len(missing)} of {len(known)} qids of the ground truth have no query, the "
            f"first is {missing[0]!r}; check that both are of one split"
        )
    return list(queries.values())


def evaluate_qvhighlights(
    retriever: MomentRetriever,
    *,
    queries: PathLike,
    captions: PathLike,
    ground_truth: PathLike,
    rewriter: Rewriter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Search every query in its video and score the result.

    Args:
        retriever: whose encoder and configuration are evaluated.
        queries: JSON Lines of `qid`, `query`, `vid`, and `rewrites` or `simplified` and `detailed`.
        captions: JSON Lines of `vid` and `captions`, one a clip of two seconds.
        ground_truth: the benchmark's annotation file.
        rewriter: rewrites the queries anew; by default those of the file are taken.
        progress: called with the number of captions embedded since the last call, and of all.

    Raises:
        GranAlignError: bad input, found before any work begins.
    """
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    truth = load_ground_truth(ground_truth)
    videos = read_captions(captions)
    asked = read_queries(queries, captions, videos, truth)
    truth_of = {record["qid"]: record for record in truth}
    durations = {query.vid: truth_of[query.qid]["duration"] for query in asked}
    needed = [replace(videos[vid], duration=duration) for vid, duration in durations.items()]
    seconds["read"] = time.perf_counter() - start

    start = time.perf_counter()
    total = sum(len(video.captions) for video in needed)
    tell = (lambda more: progress(more, total)) if progress else None
    indices = dict(zip(durations, retriever.index_many(needed, progress=tell), strict=True))
    seconds["index"] = time.perf_counter() - start

    start = time.perf_counter()
    rewrites = [query.rewrites for query in asked]
    if rewriter is not None:
        rewrites = rewriter.rewrite([given.query for given in rewrites])
        seconds["rewrite"] = time.perf_counter() - start
    requests = [Request(indices[q.vid], r) for q, r in zip(asked, rewrites, strict=True)]
    results = retriever.search_many(requests, seconds=seconds)

    start = time.perf_counter()
    predictions = [
        {"qid": query.qid} | result.to_record()
        for query, result in zip(asked, results, strict=True)
    ]
    metrics = score_qvhighlights(predictions, truth)
    seconds["score"] = time.perf_counter() - start
    counts = {"queries": len(asked), "videos": len(needed), "captions": total}
    return Evaluation(metrics, predictions, seconds, counts)
