"""Compute the metrics, vectorised over queries.

Axis names in shapes: Q queries, P ranked predictions, G ground-truth windows, T IoU thresholds,
C clips, A annotators. Ragged lists are padded; a padded window is ``[0, 0]``, whose IoU with
anything is 0, so that it never matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record

from .records import ANNOTATORS, check_ground_truth, check_predictions, clip_count

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]

# Decimal literals: 0.7 equals the IoU 14 / 20 exactly, a computed 0.5 + 4 * 0.05 may not.
_AP_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_MAX_WINDOWS = 10
# Lengths of ground-truth windows in seconds, above the first and up to the second.
_LENGTH_RANGES = {"full": (0, inf), "long": (30, 150), "middle": (10, 30), "short": (0, 10)}
# The lowest saliency, 0 to 4, that makes a clip a highlight.
_HIGHLIGHT_LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}

_RECALL_THRESHOLDS = (0.3, 0.5, 0.7)
_RECALL_RANKS = (1, 5)


def score_qvhighlights(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, Any]:
    """Score moment retrieval and highlight detection on QVHighlights, in percent, two decimals.

    The definition is that of Lei et al., "QVHighlights: Detecting Moments and Highlights in Videos
    via Natural Language Queries", 2021 (arXiv 2107.09609), and of the evaluator
    published with it:

    * MR-mAP: of each query's first 10 windows, stably sorted by falling score, each takes the free
      ground-truth window of highest IoU that reaches the threshold; AP is the area under the
      interpolated precision-recall curve.
    * MR-R1: the best IoU of the window listed first (whatever its score) reaches the threshold.
    * Ranges: ground-truth windows of up to 10 s (short), 30 s (middle), 150 s (long), or all
      (full); a query without a window in a range does not count in it.
    * HL-mAP: mean over queries and annotators of the clips' AP; clips of equal score are one step,
      and each step that adds a highlight has the same weight.
    * HL-Hit1: at least one annotator marked the clip of highest score.

    A clip without prediction scores 0. A query with an empty list of windows is a miss, and so is
    one with an empty list of saliency scores. Highlight metrics are left out if predictions or
    ground truth have no saliency, moment retrieval if predictions have no windows, and a range if
    it contains no ground-truth window.

    Args:
        predictions: as from `load_predictions`, in any order.
        ground_truth: as from `load_ground_truth`.

    Returns:
        The nested tables of the benchmark's evaluator, under its key names: ``brief``,
        ``HL-min-*`` and the four ranges.

    Raises:
        GranAlignError: a record breaks a rule of `load_predictions` or `load_ground_truth`.
    """
    predictions, ground_truth = _checked(predictions, ground_truth)
    ranges: dict[str, dict[str, dict[str, float]]] = {}
    highlights: dict[str, dict[str, float]] = {}
    if "pred_relevant_windows" in predictions[0]:
        ranges = _moment_retrieval(predictions, ground_truth)
    if "pred_saliency_scores" in predictions[0] and "saliency_scores" in ground_truth[0]:
        highlights = _highlight_detection(predictions, ground_truth)

    brief = {f"MR-{name}-mAP": table["MR-mAP"]["average"] for name, table in ranges.items()}
    if ranges:
        full = ranges["full"]
        brief |= {f"MR-full-mAP@{iou}": full["MR-mAP"][iou] for iou in ("0.5", "0.75")}
        brief |= {f"MR-full-R1@{iou}": full["MR-R1"][iou] for iou in ("0.5", "0.7")}
    brief = dict(sorted(brief.items()))
    for level, table in highlights.items():
        brief |= {f"{level}-{key.removeprefix('HL-')}": value for key, value in table.items()}
    return {"brief": brief, **highlights, **ranges}


def qvhighlights_of_each(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, FloatArray]:
    """Score the main metrics of QVHighlights query by query, for intervals and comparisons.

    Returns:
        The figures of `retrieval_of_each` if there are predicted windows, and
        ``HL-min-VeryGood-mAP`` and ``HL-min-VeryGood-Hit1`` if predictions and ground truth have
        saliency; each (queries,) in percent, in the order of `ground_truth`. Their means are
        `score_qvhighlights`'s figures.

    Raises:
        GranAlignError: as `score_qvhighlights`.
    """
    predictions, ground_truth = _checked(predictions, ground_truth)
    figures: dict[str, FloatArray] = {}
    if "pred_relevant_windows" in predictions[0]:
        figures |= retrieval_of_each(predictions, ground_truth)
    if "pred_saliency_scores" in predictions[0] and "saliency_scores" in ground_truth[0]:
        precision, hit = _highlights(predictions, ground_truth)
        strictest = list(_HIGHLIGHT_LEVELS).index("VeryGood")
        figures["HL-min-VeryGood-mAP"] = 100 * precision[:, strictest].mean(axis=1)
        figures["HL-min-VeryGood-Hit1"] = np.where(hit[:, strictest], 100.0, 0.0)
    return figures


def retrieval_of_each(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, FloatArray]:
    """Score moment retrieval on QVHighlights query by query, for resampling and for subsets.

    Returns:
        ``MR-full-mAP``, ``MR-full-R1@0.5`` and ``MR-full-R1@0.7``, each (queries,) in percent, in
        the order of `ground_truth`; their means are `score_qvhighlights`'s figures.

    Raises:
        GranAlignError: as `score_qvhighlights`.
    """
    predictions, ground_truth = _checked(predictions, ground_truth)
    ious, scores = _window_ious(predictions, ground_truth)
    ious, scores = ious[:, :_MAX_WINDOWS], scores[:, :_MAX_WINDOWS]
    windows = _lengths([record["relevant_windows"] for record in ground_truth])
    first = ious[:, 0].max(axis=1)
    return {
        "MR-full-mAP": 100 * _window_ap(_by_score(ious, scores), windows).mean(axis=1),
        "MR-full-R1@0.5": 100.0 * (first >= 0.5),
        "MR-full-R1@0.7": 100.0 * (first >= 0.7),
    }


def score_moments(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, float]:
    """Score recall at 1 and 5 and mean IoU on Charades-STA or ActivityNet-Captions, in percent.

    ``Rn@m`` is the share of queries for which one of the n windows of highest score (equal scores
    keep the file's order) has an IoU of at least m with the ground truth (Gao et al., "TALL", 2017,
    arXiv 1705.02101); ``mIoU`` is the mean IoU of the window of highest score. With several
    ground-truth windows the best IoU counts. A query without predicted windows is a miss. Windows
    are scored as they stand: they are neither rounded nor cut at the video's end.

    An IoU of exactly m counts, as in the evaluators of TFVTG (``evaluate.py``) and lighthouse
    (``training/standalone_eval/eval.py``). Like these, the union is computed as the stretch from
    the earlier start to the later end, so that rounding falls the same way. That of 2D-TAN
    (``lib/core/eval.py``) demands more than m, and suppresses windows that overlap a better one
    before it counts the first five.

    Args:
        predictions: as from `load_predictions`, in any order; ``pred_saliency_scores`` is not used.
        ground_truth: as from `load_ground_truth`.

    Returns:
        ``R1@0.3``, ``R1@0.5``, ``R1@0.7``, ``R5@0.3``, ``R5@0.5``, ``R5@0.7`` and ``mIoU``, in
        percent to two decimals.

    Raises:
        GranAlignError: a record breaks a rule of `load_predictions` or `load_ground_truth`, or the
            predictions have no windows.
    """
    return {name: _percent(share) for name, share in _moments(predictions, ground_truth).items()}


def moments_of_each(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, FloatArray]:
    """Score Charades-STA or ActivityNet-Captions query by query, for intervals and comparisons.

    Returns:
        The figures of `score_moments`, each (queries,) in percent, in the order of `ground_truth`.
        Their means are `score_moments`'s figures.

    Raises:
        GranAlignError: as `score_moments`.
    """
    shares = _moments(predictions, ground_truth)
    return {name: 100 * np.asarray(share, np.float64) for name, share in shares.items()}


def _moments(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, FloatArray | BoolArray]:
    """Return the metrics of `score_moments` for each query, 0 to 1, each (queries,)."""
    predictions, ground_truth = _checked(predictions, ground_truth)
    if "pred_relevant_windows" not in predictions[0]:
        raise GranAlignError(
            "predictions: key 'pred_relevant_windows' is missing; expected ranked windows, "
            "[start, end, score]: recall and mIoU are defined for windows alone"
        )
    ious, scores = _window_ious(predictions, ground_truth, stretch=True)
    best = _by_score(ious.max(axis=2), scores)
    recalls: dict[str, FloatArray | BoolArray] = {
        f"R{rank}@{iou}": best[:, :rank].max(axis=1) >= iou
        for rank in _RECALL_RANKS
        for iou in _RECALL_THRESHOLDS
    }
    return recalls | {"mIoU": best[:, 0]}


def _checked(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    truths = check_ground_truth(_located("ground_truth", ground_truth))
    return check_predictions(_located("predictions", predictions), truths, "predictions"), truths


def _located(name: str, records: Sequence[Record]) -> Iterable[tuple[str, Record]]:
    return ((f"{name}[{index}]", record) for index, record in enumerate(records))


def _moment_retrieval(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, dict[str, dict[str, float]]]:
    """Compute MR-mAP and MR-R1 of every length range that has a ground-truth window."""
    ious, scores = _window_ious(predictions, ground_truth)
    ious, scores = ious[:, :_MAX_WINDOWS], scores[:, :_MAX_WINDOWS]
    ranked = _by_score(ious, scores)
    windows = _padded([record["relevant_windows"] for record in ground_truth], (2,))
    lengths = windows[..., 1] - windows[..., 0]  # (Q, G), 0 where padded
    tables = {}
    for name, (above, up_to) in _LENGTH_RANGES.items():
        inside = (above < lengths) & (lengths <= up_to)
        rows, columns = inside.any(axis=1), inside.any(axis=0)
        if not rows.any():
            continue
        inside = inside[rows][:, columns]
        first = np.where(inside, ious[rows, 0][:, columns], 0).max(axis=1)
        matching = np.where(inside[:, None], ranked[rows][:, :, columns], 0)
        precision = _window_ap(matching, inside.sum(axis=1)).mean(axis=0)  # (T,)
        average_precision = {
            str(iou): _percent(value) for iou, value in zip(_AP_THRESHOLDS, precision, strict=True)
        }
        tables[name] = {
            "MR-mAP": average_precision | {"average": _percent(precision)},
            "MR-R1": {str(iou): _percent(first >= iou) for iou in _AP_THRESHOLDS},
        }
    return tables


def _window_ious(
    predictions: Sequence[Record], ground_truth: Sequence[Record], *, stretch: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Return the IoUs of predicted and true windows, (Q, P, G), and the scores, (Q, P).

    Args:
        predictions: the lines.
        ground_truth: the records, in the same order.
        stretch: compute the union as the stretch that both windows cover, not from their lengths.
            Both are the same for windows that overlap, up to rounding.
    """
    lists = [record["pred_relevant_windows"] for record in predictions]
    predicted = _padded(lists, (3,))
    present = np.arange(predicted.shape[1]) < _lengths(lists)[:, None]
    scores = np.where(present, predicted[..., 2], -inf)
    starts, ends = predicted[..., :1], predicted[..., 1:2]  # (Q, P, 1)
    true = _padded([record["relevant_windows"] for record in ground_truth], (2,))
    true_starts, true_ends = true[:, None, :, 0], true[:, None, :, 1]  # (Q, 1, G)
    overlap = np.minimum(ends, true_ends) - np.maximum(starts, true_starts)
    np.maximum(overlap, 0, out=overlap)
    if stretch:
        union = np.maximum(ends, true_ends) - np.minimum(starts, true_starts)
    else:
        union = (ends - starts) + (true_ends - true_starts) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0), scores


def _by_score(values: FloatArray, scores: FloatArray) -> FloatArray:
    """Sort `values`, (Q, P, ...), along P by falling score, (Q, P); equal scores keep order."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(values, order.reshape(order.shape + (1,) * (values.ndim - 2)), axis=1)


def _window_ap(ious: FloatArray, positives: IntArray) -> FloatArray:
    """Return the AP, (Q, T), of ranked windows with IoUs (Q, P, G) and true counts (Q,)."""
    # Of two true windows with the same IoU the evaluator takes the later one, argmax the first:
    # reverse the windows.
    ious = ious[..., ::-1]
    queries, ranks, windows = ious.shape
    thresholds = np.array(_AP_THRESHOLDS)
    free = np.ones((queries, len(thresholds), windows), dtype=np.bool_)
    hits = np.zeros((queries, len(thresholds), ranks), dtype=np.bool_)
    for rank in range(ranks):
        # A match depends on those of earlier ranks, so loop over the ranks, at most ten.
        iou = ious[:, None, rank]  # (Q, 1, G)
        candidates = np.where(free & (iou >= thresholds[:, None]), iou, 0)  # (Q, T, G)
        best = candidates.argmax(axis=2)[..., None]
        hit = np.take_along_axis(candidates, best, axis=2) > 0
        np.put_along_axis(free, best, np.take_along_axis(free, best, axis=2) & ~hit, axis=2)
        hits[..., rank] = hit[..., 0]
    precision = hits.cumsum(axis=2) / np.arange(1, ranks + 1)
    area = (hits * _interpolated(precision)).sum(axis=2)
    return np.asarray(area / positives[:, None], dtype=np.float64)


def _highlight_detection(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> dict[str, dict[str, float]]:
    """Compute HL-mAP and HL-Hit1 at every saliency level."""
    precision, hit = _highlights(predictions, ground_truth)
    return {
        f"HL-min-{name}": {
            "HL-mAP": _percent(precision[:, index]),
            "HL-Hit1": _percent(hit[:, index]),
        }
        for index, name in enumerate(_HIGHLIGHT_LEVELS)
    }


def _highlights(
    predictions: Sequence[Record], ground_truth: Sequence[Record]
) -> tuple[FloatArray, BoolArray]:
    """Return the AP, (Q, L, A), and the hit, (Q, L), of each query at L saliency levels."""
    lists = [record["pred_saliency_scores"] for record in predictions]
    predicted = _padded(lists, ())
    clips = np.array([clip_count(record) for record in ground_truth])
    width = max(predicted.shape[1], int(clips.max()))
    predicted = np.pad(predicted, ((0, 0), (0, width - predicted.shape[1])))  # (Q, C)
    clip = np.arange(width)
    # A clip beyond the annotated ones is never a highlight; if it scores highest, Hit1 is a miss.
    top = np.where(clip < _lengths(lists)[:, None], predicted, -inf).argmax(axis=1)
    ranking = np.where(clip < clips[:, None], predicted, -inf)

    saliency = np.zeros((len(clips), ANNOTATORS, width), dtype=np.int8)
    rated = [record["relevant_clip_ids"] for record in ground_truth]
    rows = np.repeat(np.arange(len(clips)), _lengths(rated))
    columns = np.array([i for ids in rated for i in ids], dtype=np.intp)
    ratings = [row for record in ground_truth for row in record["saliency_scores"]]
    saliency[rows, :, columns] = np.array(ratings, dtype=np.int8).reshape(-1, ANNOTATORS)

    levels = np.array(list(_HIGHLIGHT_LEVELS.values()))
    highlight = saliency[:, None] >= levels[:, None, None]  # (Q, L, A, C), L levels
    precision = _clip_ap(ranking, highlight.reshape(len(clips), -1, width))
    precision = precision.reshape(len(clips), len(levels), ANNOTATORS)
    hit = np.any(highlight[np.arange(len(clips)), :, :, top], axis=2)  # (Q, L)
    predicted_any = _lengths(lists) > 0  # an empty list is a miss, not a tie of all clips
    return precision * predicted_any[:, None, None], hit & predicted_any[:, None]


def _clip_ap(scores: FloatArray, labels: BoolArray) -> FloatArray:
    """Return the AP, (Q, N), of clips with scores (Q, C) under N labellings (Q, N, C).

    A labelling without a positive clip has the AP 0.
    """
    queries, clips = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    positives_so_far = np.take_along_axis(labels, order[:, None], axis=2).cumsum(
        axis=2, dtype=np.int32
    )
    # Clips of equal score are retrieved together: the curve has a point at the last of them.
    last = np.ones((queries, clips), dtype=np.bool_)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    positives_so_far = np.where(last[:, None], positives_so_far, 0)  # 0 between the points
    before = np.zeros_like(positives_so_far)
    before[..., 1:] = np.maximum.accumulate(positives_so_far, axis=2)[..., :-1]
    gains = positives_so_far > before
    precision = _interpolated(positives_so_far / np.arange(1, clips + 1))
    total = (gains * precision).sum(axis=2)
    return np.asarray(total / np.maximum(gains.sum(axis=2), 1), dtype=np.float64)


def _interpolated(precision: FloatArray) -> FloatArray:
    """Interpolate precision: at each rank, the last axis, the maximum over this and later ranks."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _padded(lists: Sequence[Sequence[Any]], item: tuple[int, ...]) -> FloatArray:
    """Pad lists of items of shape `item` with 0 to one array, (rows, longest, *item)."""
    lengths = _lengths(lists)
    values = np.zeros((len(lists), max(int(lengths.max()), 1), *item))
    flat = np.array([value for row in lists for value in row], dtype=np.float64)
    values[np.arange(values.shape[1]) < lengths[:, None]] = flat.reshape(-1, *item)
    return values


def _lengths(lists: Sequence[Sequence[Any]]) -> IntArray:
    return np.array([len(row) for row in lists], dtype=np.intp)


def _percent(values: FloatArray | BoolArray) -> float:
    """Return the mean in percent, to two decimals."""
    return round(100 * float(np.mean(values)), 2)
