"""Open the videos of an evaluation, and refuse what cannot be evaluated before any search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from granalign_fast.datasets import AnnotatedQuery
from granalign_fast.errors import GranAlignError, counted, listed
from granalign_fast.index import CLIP_SECONDS, CaptionedVideo, IndexedVideo, VideoIndex
from granalign_fast.index.model_checks import check_encoder, check_frames, check_models
from granalign_fast.metrics import MAX_OVERSHOOT_SECONDS
from granalign_fast.metrics.records import clips_scored
from granalign_fast.search.retriever import Retriever

from .results import Missing
from .videos import Opened, Videos

MISSING = ("skip", "fail", "zero")
"""The ways to treat queries whose video is missing, see `evaluate`."""


def open_videos(
    retriever: Retriever,
    queries: Sequence[AnnotatedQuery],
    absent: Sequence[AnnotatedQuery],
    videos: Videos,
    *,
    missing: str,
    captions_only: bool,
) -> tuple[Opened, Missing]:
    """Open the videos of all queries, each once.

    Args:
        retriever: will search them.
        queries: the queries that are evaluated.
        absent: queries that no video shows.
        videos: where the videos come from.
        missing: one of `MISSING`.
        captions_only: whether indexes are searched without the models that looked at their frames.

    Raises:
        GranAlignError: no video could be opened, the retriever does not fit them, or `missing` is
            ``"fail"`` and a video is missing.
    """
    if missing not in MISSING:
        raise GranAlignError(f"missing: got {missing!r}, expected one of: {', '.join(MISSING)}")
    vids = list(dict.fromkeys(query.vid for query in (*queries, *absent)))
    not_found = tuple(vid for vid in vids if vid not in videos)
    if len(not_found) == len(vids) or (not_found and missing == "fail"):
        raise GranAlignError(
            f"{videos.name}: got no {videos.lacks} of {len(not_found)} of the "
            f"{counted(len(vids), 'video')} of the queries: {listed(list(map(repr, not_found)))}; "
            f"{_remedy(missing)}"
        )
    durations = {query.vid: query.duration for query in queries if query.duration is not None}
    opened = videos.open([vid for vid in vids if vid in videos], durations)
    _check_retriever(retriever, opened, videos.name, bool(absent), captions_only=captions_only)
    for query in queries:
        video = opened.videos.get(query.vid)
        if video is None:
            continue
        if reason := _misfit(_indexed(video), query, videos.name, retriever.config.clip_seconds):
            del opened.videos[query.vid]
            opened.failed[query.vid] = reason
    if opened.failed and (missing == "fail" or not opened.videos):
        reason = next(iter(opened.failed.values()))
        if len(opened.failed) > 1:
            reason = f"{len(opened.failed)} of {len(vids)} videos cannot be searched: {reason}"
        raise GranAlignError(reason)
    lost = sum(query.vid not in opened.videos for query in queries)
    return opened, Missing(missing, not_found, dict(opened.failed), lost)


def length_warning(
    videos: Mapping[str, VideoIndex], queries: Sequence[AnnotatedQuery]
) -> list[str]:
    """Return a warning if videos are not as long as their annotations say; empty if they are."""
    different = {
        query.vid: f"{query.vid!r} ({duration:g} s, annotated {query.duration:g} s)"
        for query in queries
        if query.vid in videos
        and query.duration is not None
        and (duration := videos[query.vid].video.duration) is not None
        and abs(duration - query.duration) > MAX_OVERSHOOT_SECONDS
    }
    if not different:
        return []
    return [
        f"{counted(len(different), 'video')} more than {MAX_OVERSHOOT_SECONDS:g} s longer or "
        f"shorter than annotated, probably another one: {listed(different.values())}"
    ]


def _remedy(missing: str) -> str:
    if missing == "fail":
        return "add them, or leave them out with --missing skip"
    return "check that the annotations are of the same dataset and split"


def _indexed(video: CaptionedVideo | VideoIndex) -> IndexedVideo:
    return video.video if isinstance(video, VideoIndex) else video


def _check_retriever(
    retriever: Retriever, opened: Opened, source: str, has_absent: bool, *, captions_only: bool
) -> None:
    """Raise if the retriever's models are not those that the videos need.

    Raises:
        GranAlignError: a model that made an index is missing or is another; or a model has to look
            at frames, and there are no frames or no such model.
    """
    scorer = retriever.config.scorer
    by_captions = scorer == "captions"
    models = {"vlm": retriever.captioner, "clip": retriever.frame_encoder}
    given = [kind for kind, model in models.items() if model is not None]
    indexes = [video for video in opened.videos.values() if isinstance(video, VideoIndex)]
    for index in indexes:
        folder = Path(source) / index.video.vid
        if by_captions:
            _ = index.caption_embeddings  # an index without captions is refused
            if not captions_only:
                check_models(folder, index.models, given, frames=True)
        elif scorer == "frames":
            check_frames(folder, index, given)
        check_encoder(folder, index, retriever.encoder)
    if scorer == "frames" and has_absent:
        raise GranAlignError(
            "absent queries: got the scorer 'frames', which does not say whether a video shows a "
            "query, expected the preset tuned or recognition; leave --absent out, or take one"
        )
    if not by_captions:
        what = f"scorer {scorer!r}"
    elif has_absent:
        what = "absent queries"
    else:
        return
    if len(indexes) < len(opened.videos) or any(index.frames is None for index in indexes):
        raise GranAlignError(
            f"{what}: got captions alone, expected videos to look at; give --indexes that "
            f"`granalign index` wrote"
        )
    if retriever.recogniser is None and scorer != "frames":
        raise GranAlignError(
            f"{what}: got a retriever that does not say whether a video shows a query, expected "
            f"one with a captioner that recognises; give --models with a vlm"
        )


def _misfit(
    video: IndexedVideo, query: AnnotatedQuery, source: str, made_for: float | None
) -> str | None:
    """Return why a video's clips are not those of a query's saliency; None if they are.

    Args:
        video: of the query.
        query: with or without saliency.
        source: of the video, for the message.
        made_for: the clips of the configuration, whose scores are read off at those of the saliency
            where both differ; None if it names none.
    """
    if query.saliency is None or query.duration is None:
        return None
    length = video.clip_seconds
    if length not in (CLIP_SECONDS, made_for):
        return (
            f"{source}: video {query.vid!r} has clips of {length:g} s, expected "
            f"{CLIP_SECONDS:g} s, those of the ground truth's saliency; index it again with them"
        )
    whole = int(query.duration / length)
    # Other clips are read off at those of the saliency: one more at the end does no harm.
    fitting = (
        clips_scored({"duration": query.duration})
        if length == CLIP_SECONDS
        else range(max(whole - 1, 1), ceil(query.duration / length) + 2)
    )
    if video.clips not in fitting:
        what = counted(video.clips, "clip" if video.captions is None else "caption")
        return (
            f"{source}: video {query.vid!r} has {what}, expected {whole}, one for "
            f"each {length:g} s clip of the {query.duration:g} s that it has in the ground truth"
        )
    return None
