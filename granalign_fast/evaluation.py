"""QVHighlights from files: queries against captions, predictions out, scored by its own metric."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .datasets.qvhighlights import PathLike, read_absent, read_captions, read_queries
from .errors import GranAlignError
from .index import CLIP_SECONDS, CaptionedVideo, VideoIndex
from .jsonl import Record
from .metrics import auroc, load_ground_truth, score_qvhighlights
from .metrics.records import clip_count, clips_scored
from .pipeline import MomentRetriever
from .protocols import Rewriter
from .search.clock import Clock
from .search.request import Request


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation gives: the benchmark's tables, the predictions, and the time it took."""

    metrics: dict[str, Any]
    predictions: list[Record]
    seconds: dict[str, float]
    """Of each stage, in seconds."""
    counts: dict[str, int]
    """How many queries, videos and captions there were."""


def evaluate_qvhighlights(
    retriever: MomentRetriever,
    *,
    queries: PathLike,
    ground_truth: PathLike,
    captions: PathLike | None = None,
    indexes: PathLike | None = None,
    absent: PathLike | None = None,
    rewriter: Rewriter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Search every query in its video and score the result.

    Args:
        retriever: whose models and configuration are evaluated.
        queries: JSON Lines of `qid`, `query`, `vid`, and `rewrites` or `simplified` and `detailed`.
        ground_truth: the benchmark's annotation file.
        captions: JSON Lines of `vid` and `captions`, one a clip of two seconds; or
        indexes: a folder with the index of each video, as ``granalign index`` writes it.
        absent: JSON Lines of `query` and `vid`: what these videos do not show. The metrics then
            have ``exists-AUROC``, how well the score `exists` tells it from what they show.
        rewriter: rewrites the queries anew; by default those of the file are taken.
        progress: called with the number of captions embedded since the last call, and of all.

    Raises:
        GranAlignError: bad input, found before any work begins.
    """
    if (captions is None) == (indexes is None):
        raise GranAlignError("got captions and indexes, or neither; expected one of them")
    seconds: dict[str, float] = {}
    clock = Clock(seconds)
    truth = load_ground_truth(ground_truth)
    known: Collection[str]
    if captions is not None:
        given = read_captions(captions)
        known, place = given, captions
    else:
        known, place = _Indexes(Path(indexes or "")), indexes or ""
    asked = read_queries(queries, place, known, truth)
    missing = [] if absent is None else read_absent(absent, place, known)
    truth_of = {record["qid"]: record for record in truth}
    durations = {query.vid: truth_of[query.qid]["duration"] for query in asked}
    clock.lap("read")
    vids = dict.fromkeys([*durations, *(request.vid for request in missing)])
    found: list[VideoIndex] = []
    if captions is not None:
        needed = [replace(given[vid], duration=durations.get(vid)) for vid in vids]
    else:
        found = [VideoIndex.load(Path(place) / vid) for vid in vids]
        needed = [index.video for index in found]
    videos = dict(zip(vids, needed, strict=True))
    watched = bool(found) and all(index.frames is not None for index in found)
    _check_models(retriever, asking=bool(missing), watched=watched)
    for query in asked:
        _check_clips(videos[query.vid], truth_of[query.qid], place)
    total = sum(len(video.captions) for video in needed)
    if captions is not None:
        tell = (lambda more: progress(more, total)) if progress else None
        found = retriever.index_many(needed, progress=tell)
    indices = dict(zip(vids, found, strict=True))
    clock.lap("index")
    rewrites = [query.rewrites for query in [*asked, *missing]]
    if rewriter is not None:
        rewrites = rewriter.rewrite([given.query for given in rewrites])
        clock.lap("rewrite")
    pairs = zip([*asked, *missing], rewrites, strict=True)
    requests = [Request(indices[query.vid], rewritten) for query, rewritten in pairs]
    results = retriever.search_many(requests, seconds=seconds)
    clock.restart()
    predictions = [
        {"qid": query.qid} | result.to_record()
        for query, result in zip(asked, results, strict=False)
    ]
    metrics = score_qvhighlights(predictions, truth)
    if missing:
        exists = [result.exists or 0.0 for result in results]
        shown, absent_ones = exists[: len(asked)], exists[len(asked) :]
        metrics["brief"]["exists-AUROC"] = round(100 * auroc(shown, absent_ones), 2)
    clock.lap("score")
    counts = {"queries": len(asked), "videos": len(vids), "captions": total}
    return Evaluation(metrics, predictions, seconds, counts)


def _check_models(retriever: MomentRetriever, *, asking: bool, watched: bool) -> None:
    """Refuse frames that have to be looked at where there are none, or no model that looks."""
    if retriever.config.scorer == "recognition":
        what = "scorer 'recognition'"
    elif asking:
        what = "absent queries"
    else:
        return
    if not watched:
        raise GranAlignError(
            f"{what}: got captions alone, expected videos to look at; give --indexes that "
            f"`granalign index` wrote"
        )
    if retriever.recogniser is None:
        raise GranAlignError(
            f"{what}: got a retriever that does not say whether a video shows a query, expected "
            f"one with a captioner that recognises; give --models with a vlm"
        )


def _check_clips(video: CaptionedVideo, truth: Record, place: PathLike) -> None:
    """Refuse clips that are not those of the ground truth's saliency, where it has any."""
    if "saliency_scores" not in truth:
        return
    if video.clip_seconds != CLIP_SECONDS:
        raise GranAlignError(
            f"{place}: video {video.vid!r} has clips of {video.clip_seconds:g} s, expected "
            f"{CLIP_SECONDS:g} s, those of the ground truth's saliency; index it again with them"
        )
    if len(video.captions) not in clips_scored(truth):
        raise GranAlignError(
            f"{place}: video {video.vid!r} has {len(video.captions)} captions, expected "
            f"{clip_count(truth)}, one for each {CLIP_SECONDS:g} s clip of the {truth['duration']} "
            f"s that it has in the ground truth"
        )


class _Indexes(Collection[str]):
    """The videos that have an index in a folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise GranAlignError(f"{folder}: no such folder; expected the indexes of videos")
        self.vids = {path.parent.name for path in folder.glob("*/manifest.json")}

    def __contains__(self, vid: object) -> bool:
        return vid in self.vids

    def __iter__(self) -> Iterator[str]:
        return iter(self.vids)

    def __len__(self) -> int:
        return len(self.vids)
