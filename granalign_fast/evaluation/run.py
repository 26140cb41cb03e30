"""Search every query of a dataset in its video, and score the moments by the dataset's metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from granalign_fast.datasets import AnnotatedQuery, Annotations, PathLike
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.jsonl import Record
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.metrics import (
    DATASETS,
    OF_EACH,
    auroc,
    distinct_of_each,
    intervals,
    score_distinct,
)
from granalign_fast.metrics.distinct import DISTINCT_RANKS
from granalign_fast.metrics.records import CLIP_SECONDS, check_ground_truth, clip_count
from granalign_fast.protocols import Rewriter
from granalign_fast.search.all_candidates import distinct_of_many
from granalign_fast.search.clock import Clock
from granalign_fast.search.request import Request
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Rewrites, SearchResult

from .absent import read_absent
from .comparison import check_comparable
from .opening import length_warning, open_videos
from .results import Evaluation, Figures, Results, truth_sha256
from .videos import Opened, Videos
from .warnings import result_warnings

Advance = Callable[[int, int], None]
"""Called with the number of items done since the last call, and the number of all items."""

Bars = Callable[[str, str], AbstractContextManager[Advance | None]]
"""Opens the display of a stage: takes the work, such as "searching", and what is counted."""

_FEW, _MANY = 32, 512
"""Queries in a call of the retriever, with a captioner that looks at frames and without one. A
call reports no progress, so it has to be short; a text encoder is fast with many texts alone."""
_REWRITTEN = 64
"""Queries in a call of a rewriter that does not say how many it takes in a batch."""


def evaluate(
    retriever: Retriever,
    annotations: Annotations,
    videos: Videos,
    *,
    absent: PathLike | None = None,
    rewriter: Rewriter | None = None,
    missing: str = "skip",
    captions_only: bool = False,
    compare_to: Results | None = None,
    bars: Bars | None = None,
    sources: Mapping[str, str] | None = None,
    setup: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Search every query in its video, and score the moments.

    Queries without ground truth are searched, and stand in the predictions alone.

    Args:
        retriever: its models and configuration are evaluated.
        annotations: the queries, as `datasets.read_annotations` returns them.
        videos: where their videos come from.
        absent: JSON Lines of `query` and `vid`: queries that these videos do not show. The metrics
            then have ``exists-AUROC``: how well the score `exists` tells them from the others.
        rewriter: rewrites the queries anew; by default the rewrites of the files are taken.
        missing: what becomes of queries whose video is missing or cannot be read. ``"skip"``: they
            are left out. ``"zero"``: they count as misses, as with the whole split of a benchmark.
            ``"fail"``: it is an error.
        captions_only: search indexes without the models that looked at their frames.
        compare_to: results that must be of the same queries, which is checked before the search.
        bars: shows how far embedding, rewriting and searching are.
        sources: the SHA-256 of the source of each model that searches, by kind.
        setup: what searches, for the record.

    Raises:
        GranAlignError: bad input, found before any search; or `missing` is ``"fail"`` and a video
            is missing.
    """
    seconds: dict[str, float] = {}
    clock = Clock(seconds)
    bars = bars or (lambda what, unit: nullcontext())

    # 1. Open the videos, choose the queries that count, and refuse what cannot be evaluated.
    unseen = () if absent is None else read_absent(absent)
    opened, lost = open_videos(
        retriever,
        annotations.queries,
        unseen,
        videos,
        missing=missing,
        captions_only=captions_only,
    )
    answered = [query for query in annotations.queries if query.vid in opened.videos]
    counted = annotations.queries if missing == "zero" else answered
    scored = tuple(_with_duration(query, opened) for query in counted if query.windows)
    truth = replace(annotations, queries=scored).ground_truth()
    if truth:
        check_ground_truth((f"qid {record['qid']!r}", record) for record in truth)
    digest = truth_sha256(truth) if truth else None
    if compare_to is not None:
        check_comparable(compare_to, annotations.dataset, scored, digest)
    clock.lap("read")

    # 2. Embed the captions; indexes have their embeddings already.
    indexes = _embed(retriever, opened, bars)
    clock.lap("index")

    # 3. Rewrite and search the queries.
    asked = [*answered, *(query for query in unseen if query.vid in indexes)]
    rewrites = [query.rewrites for query in asked]
    if rewriter is not None:
        rewrites = rewrite_anew(rewriter, rewrites, bars)
        clock.lap("rewrite")
    requests = [
        Request(indexes[query.vid], one) for query, one in zip(asked, rewrites, strict=True)
    ]
    results = _search(retriever, requests, [query.vid for query in asked], seconds, bars)
    clock.restart()

    # 4. Score: the results of the answered queries come first.
    lines = {
        query.qid: _line(query, result, indexes[query.vid].video.clip_seconds)
        for query, result in zip(answered, results, strict=False)
    }
    predictions = [lines.get(query.qid) or _miss(query) for query in counted]
    metrics, figures = _score(annotations.dataset, predictions, truth)
    if truth:  # the list that people are shown, beside the one that the dataset scores
        lists = distinct_of_many(results[: len(answered)], DISTINCT_RANKS[-1])
        of_query = {query.qid: moments for query, moments in zip(answered, lists, strict=True)}
        shown = [of_query.get(query.qid, ()) for query in scored]
        figures = {**figures, **distinct_of_each(shown, truth)}
        metrics.get("brief", metrics).update(score_distinct(shown, truth))
    if len(asked) > len(answered):
        exists = [result.exists or 0.0 for result in results]
        area = auroc(exists[: len(answered)], exists[len(answered) :])
        metrics.get("brief", metrics)["exists-AUROC"] = round(100 * area, 2)
    clock.lap("score")

    vids = [query.vid for query in asked]
    warnings = (
        *annotations.warnings,
        *length_warning(indexes, answered),
        *_rewrite_warning(retriever, rewriter, annotations),
        *result_warnings(indexes, vids, results, sources, retriever.config),
    )
    captions = sum(len(index.video.captions or ()) for index in indexes.values())
    return Evaluation(
        metrics=metrics,
        predictions=predictions,
        seconds=seconds,
        counts={"queries": len(answered), "videos": len(indexes), "captions": captions},
        dataset=annotations.dataset,
        scored=scored,
        figures=figures,
        intervals=intervals(figures, [query.vid for query in scored]),
        ground_truth_sha256=digest,
        missing=lost,
        notes=(*annotations.notes, *opened.notes),
        warnings=warnings,
        setup=setup or {},
    )


def _with_duration(query: AnnotatedQuery, opened: Opened) -> AnnotatedQuery:
    """Return the query with a duration: the annotated one, or that of its video.

    Without both it is the end of the last window: metrics need a duration to check windows by.
    """
    if query.duration is not None:
        return query
    last = max(end for _, end in query.windows)
    video = opened.videos.get(query.vid)
    if video is None:
        return replace(query, duration=last)
    indexed = video.video if isinstance(video, VideoIndex) else video
    return replace(query, duration=max(indexed.seconds(indexed.clips), last))


def _embed(retriever: Retriever, opened: Opened, bars: Bars) -> dict[str, VideoIndex]:
    """Return the index of each video; captioned ones are embedded."""
    captioned = [video for video in opened.videos.values() if isinstance(video, CaptionedVideo)]
    embedded: dict[str, VideoIndex] = {}
    if captioned:
        total = sum(len(video.captions) for video in captioned)
        with bars("embedding captions", "captions") as advance:
            report = (lambda more: advance(more, total)) if advance else None
            made = retriever.index_many(captioned, progress=report)
        embedded = {index.video.vid: index for index in made}
    return {
        vid: video if isinstance(video, VideoIndex) else embedded[video.vid]
        for vid, video in opened.videos.items()
    }


def rewrite_anew(rewriter: Rewriter, given: Sequence[Rewrites], bars: Bars) -> list[Rewrites]:
    """Rewrite queries anew, equal ones once, in calls of the rewriter's own batches."""
    queries = list(dict.fromkeys(one.query for one in given))
    step = getattr(rewriter, "queries_per_batch", _REWRITTEN)
    rewritten: dict[str, Rewrites] = {}
    with bars("rewriting", "queries") as advance, _without_warnings():
        for begin in range(0, len(queries), step):
            batch = queries[begin : begin + step]
            rewritten |= zip(batch, rewriter.rewrite(batch), strict=True)
            if advance:
                advance(len(batch), len(queries))
    return [rewritten[one.query] for one in given]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hold back the language model's warning about each query: `result_warnings` counts them."""
    logger = logging.getLogger(LlmRewriter.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _rewrite_warning(
    retriever: Retriever, rewriter: Rewriter | None, annotations: Annotations
) -> list[str]:
    """Return a warning if the rewrites of the files are wanted and there are none."""
    given = any(one.rewrites.simplified or one.rewrites.detailed for one in annotations.queries)
    if rewriter is not None or given or retriever.config.scorer == "recognition":
        return []
    return [
        "the files have no rewrites, so the queries were searched by their own words alone; "
        "--rewriter rules or models makes rewrites"
    ]


def _search(
    retriever: Retriever,
    requests: Sequence[Request],
    vids: Sequence[str],
    seconds: dict[str, float],
    bars: Bars,
) -> list[SearchResult]:
    """Search a part of the requests at a time; those of one video stand together.

    So the frames of a video are looked at one after another, while a captioner's cache holds them.
    """
    first = {vid: number for number, vid in reversed(list(enumerate(vids)))}
    order = sorted(range(len(requests)), key=lambda number: first[vids[number]])
    step = _MANY if retriever.captioner is None else _FEW
    results: dict[int, SearchResult] = {}
    with bars("searching", "queries") as advance:
        for begin in range(0, len(order), step):
            part = order[begin : begin + step]
            found = retriever.search_many([requests[i] for i in part], seconds=seconds)
            results |= zip(part, found, strict=True)
            if advance:
                advance(len(part), len(order))
    return [results[number] for number in range(len(requests))]


def _line(query: AnnotatedQuery, result: SearchResult, clip_seconds: float) -> Record:
    """Return the line of a submission, its windows inside the annotated duration.

    A video file may be a little longer than its annotations say. Where its clips, of so many
    seconds, are not those of the saliency, these take the score at their middle.
    """
    record = {"qid": query.qid} | result.to_record() | {"vid": query.vid}
    end_of_video = query.duration
    if query.saliency is not None and end_of_video is not None and clip_seconds != CLIP_SECONDS:
        scores = record["pred_saliency_scores"]
        middles = (np.arange(clip_count({"duration": end_of_video})) + 0.5) * CLIP_SECONDS
        clips = np.minimum(middles // clip_seconds, len(scores) - 1).astype(int)
        record["pred_saliency_scores"] = [scores[clip] for clip in clips]
    if end_of_video is not None:
        record["pred_relevant_windows"] = [
            [start, min(end, end_of_video), score]
            for start, end, score in record["pred_relevant_windows"]
            if start < end_of_video
        ]
    return record


def _miss(query: AnnotatedQuery) -> Record:
    """Return the line of a submission for a query whose video is missing: it counts as a miss."""
    return {
        "qid": query.qid,
        "query": query.rewrites.query,
        "vid": query.vid,
        "pred_relevant_windows": [],
        "pred_saliency_scores": [],
    }


def _score(
    dataset: str, predictions: Sequence[Record], truth: Sequence[Record]
) -> tuple[dict[str, Any], Figures]:
    """Return the dataset's metrics, and the main ones of each query; nothing without truth."""
    if not truth:
        return {}, {}
    line_of = {line["qid"]: line for line in predictions}
    matching = [line_of[record["qid"]] for record in truth]
    return DATASETS[dataset](matching, truth), OF_EACH[dataset](matching, truth)
