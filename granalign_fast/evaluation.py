"""Evaluation on QVHighlights: queries are searched, and the predictions scored by its metric."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
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
    """The metrics, predictions and durations of an evaluation."""

    metrics: dict[str, Any]
    """The tables of the benchmark."""
    predictions: list[Record] = field(repr=False)
    """The lines of a submission."""
    seconds: dict[str, float]
    """The duration of each stage."""
    counts: dict[str, int]
    """The numbers of queries, videos and captions."""


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
    """Search every query in its video and score the results.

    Args:
        retriever: its models and configuration are evaluated.
        queries: JSON Lines of `qid`, `query`, `vid`, and `rewrites` or `simplified` and `detailed`.
        ground_truth: the benchmark's annotation file.
        captions: JSON Lines of `vid` and `captions`, one for each clip of two seconds. Either this
            or `indexes` is needed.
        indexes: a folder with the index of each video, as ``granalign index`` writes it.
        absent: JSON Lines of `query` and `vid`: queries that these videos do not show. The metrics
            then have ``exists-AUROC``: how well the score `exists` tells them from the others.
        rewriter: rewrites the queries anew; by default the rewrites of the file are taken.
        progress: called with the number of captions embedded since the last call, and of all.

    Raises:
        GranAlignError: bad input, found before any work begins.
    """
    if (captions is None) == (indexes is None):
        raise GranAlignError("got captions and indexes, or neither; expected one of them")
    seconds: dict[str, float] = {}
    clock = Clock(seconds)

    # Read queries and ground truth; every query must name a video that there is.
    truth = load_ground_truth(ground_truth)
    available: Collection[str]
    if captions is not None:
        captioned = read_captions(captions)
        available, source = captioned, captions
    else:
        available, source = _IndexFolder(Path(indexes or "")), indexes or ""
    shown = read_queries(queries, source, available, truth)
    not_shown = [] if absent is None else read_absent(absent, source, available)
    truth_of = {record["qid"]: record for record in truth}
    durations = {query.vid: truth_of[query.qid]["duration"] for query in shown}
    clock.lap("read")

    # Collect the videos of the queries, each once.
    vids = dict.fromkeys([*durations, *(query.vid for query in not_shown)])
    index_list: list[VideoIndex] = []
    if captions is not None:
        needed = [replace(captioned[vid], duration=durations.get(vid)) for vid in vids]
    else:
        index_list = [VideoIndex.load(Path(source) / vid) for vid in vids]
        needed = [index.video for index in index_list]
    videos = dict(zip(vids, needed, strict=True))

    # Refuse what cannot be evaluated, before any work.
    has_frames = bool(index_list) and all(index.frames is not None for index in index_list)
    _check_models(retriever, has_absent=bool(not_shown), has_frames=has_frames)
    for query in shown:
        _check_clips(videos[query.vid], truth_of[query.qid], source)

    # Embed the captions; indexes have their embeddings already.
    total = sum(len(video.captions) for video in needed)
    if captions is not None:
        report = (lambda more: progress(more, total)) if progress else None
        index_list = retriever.index_many(needed, progress=report)
    indices = dict(zip(vids, index_list, strict=True))
    clock.lap("index")

    # Rewrite and search all queries in one call.
    rewrites = [query.rewrites for query in [*shown, *not_shown]]
    if rewriter is not None:
        rewrites = rewriter.rewrite([one.query for one in rewrites])
        clock.lap("rewrite")
    pairs = zip([*shown, *not_shown], rewrites, strict=True)
    requests = [Request(indices[query.vid], rewritten) for query, rewritten in pairs]
    results = retriever.search_many(requests, seconds=seconds)
    clock.restart()

    # Score: the results of the shown queries come first.
    predictions = [
        {"qid": query.qid} | result.to_record()
        for query, result in zip(shown, results, strict=False)
    ]
    metrics = score_qvhighlights(predictions, truth)
    if not_shown:
        exists = [result.exists or 0.0 for result in results]
        area = auroc(exists[: len(shown)], exists[len(shown) :])
        metrics["brief"]["exists-AUROC"] = round(100 * area, 2)
    clock.lap("score")
    counts = {"queries": len(shown), "videos": len(vids), "captions": total}
    return Evaluation(metrics, predictions, seconds, counts)


def _check_models(retriever: MomentRetriever, *, has_absent: bool, has_frames: bool) -> None:
    """Raise if a model has to look at frames, and there are no frames or no such model.

    Args:
        retriever: to be evaluated.
        has_absent: whether there are queries that no video shows.
        has_frames: whether all videos have frames.

    Raises:
        GranAlignError: frames or a recogniser are missing.
    """
    if retriever.config.scorer == "recognition":
        what = "scorer 'recognition'"
    elif has_absent:
        what = "absent queries"
    else:
        return
    if not has_frames:
        raise GranAlignError(
            f"{what}: got captions alone, expected videos to look at; give --indexes that "
            f"`granalign index` wrote"
        )
    if retriever.recogniser is None:
        raise GranAlignError(
            f"{what}: got a retriever that does not say whether a video shows a query, expected "
            f"one with a captioner that recognises; give --models with a vlm"
        )


def _check_clips(video: CaptionedVideo, truth: Record, source: PathLike) -> None:
    """Raise if a video's clips are not those of the ground truth's saliency, if it has any.

    Args:
        video: of the query.
        truth: of the query.
        source: of the captions, for error messages.

    Raises:
        GranAlignError: the clips have another length, or there are more or fewer of them.
    """
    if "saliency_scores" not in truth:
        return
    if video.clip_seconds != CLIP_SECONDS:
        raise GranAlignError(
            f"{source}: video {video.vid!r} has clips of {video.clip_seconds:g} s, expected "
            f"{CLIP_SECONDS:g} s, those of the ground truth's saliency; index it again with them"
        )
    if len(video.captions) not in clips_scored(truth):
        raise GranAlignError(
            f"{source}: video {video.vid!r} has {len(video.captions)} captions, expected "
            f"{clip_count(truth)}, one for each {CLIP_SECONDS:g} s clip of the {truth['duration']} "
            f"s that it has in the ground truth"
        )


class _IndexFolder(Collection[str]):
    """The vids of the videos that have an index in a folder."""

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
