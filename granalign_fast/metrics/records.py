"""Predictions and ground truth: read, validated line by line, and brought into one order."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Sequence
from itertools import chain
from math import ceil, isfinite
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record, iter_jsonl

CLIP_SECONDS = 2.0
"""Length of the clips that QVHighlights annotates with saliency."""

ANNOTATORS = 3
"""QVHighlights has three people's saliency scores, 0 to 4, for every relevant clip."""

MAX_OVERSHOOT_SECONDS = 10.0
"""How far a window may end after its video; such a window is scored as it stands.

A model that normalises time by a nominal length (150 s in QVHighlights) overshoots in shorter
videos: of Moment-DETR's 15,500 published validation windows two do, by 2 s and by 10 s, and the
benchmark's figures include both unclipped. Annotations overshoot too, in Charades-STA by up to
1.5 s. Beyond five clips it is no rounding but another video or another unit.
"""

_LONGEST = 1e9  # seconds
_SALIENCY_KEYS = ("relevant_clip_ids", "saliency_scores")
_PREDICTION_KEYS = ("pred_relevant_windows", "pred_saliency_scores")
_RATINGS = frozenset(range(5))
_Placed = Iterable[tuple[str, Record]]


def load_ground_truth(path: str | os.PathLike[str]) -> list[Record]:
    """Read and validate ground truth in the format of QVHighlights' annotation files.

    Every line has `qid` (integer or string), `duration` in seconds and `relevant_windows`, one or
    more ``[start, end]`` in seconds with ``0 <= start < end``, ``start < duration`` and
    ``end <= duration + MAX_OVERSHOOT_SECONDS``. `relevant_clip_ids` and `saliency_scores`, needed
    for highlight metrics alone, stand in every line or in none. Other keys are left alone.

    Raises:
        GranAlignError: the file cannot be read or a line breaks a rule; names file and line.
    """
    return check_ground_truth(iter_jsonl(path))


def load_predictions(path: str | os.PathLike[str], ground_truth: Sequence[Record]) -> list[Record]:
    """Read and validate predictions in QVHighlights' submission format, one line per query.

    A line has `qid` and at least one of the following, the same in every line:

    * `pred_relevant_windows`: ranked ``[start, end, score]``, finite, with
      ``0 <= start <= end``, ``start < duration`` and
      ``0 < end <= duration + MAX_OVERSHOOT_SECONDS``; an empty list is a miss.
    * `pred_saliency_scores`: one finite number per clip. Where the ground truth has saliency the
      number of two-second clips is checked: one may be missing at the end (13 lines of either
      published file lack it) and a last, partial clip may be counted.

    Args:
        path: JSON Lines, plain or ``.gz``.
        ground_truth: records of `load_ground_truth`; each needs exactly one prediction.

    Returns:
        The predictions in the order of `ground_truth`.

    Raises:
        GranAlignError: the file cannot be read, a line breaks a rule, a qid is unknown or stands
            twice, or a query has no prediction; names file and line.
    """
    return check_predictions(iter_jsonl(path), ground_truth, os.fspath(path))


def check_ground_truth(placed: _Placed) -> list[Record]:
    """The records of ``(place, record)`` pairs, validated as `load_ground_truth` says."""
    records: list[Record] = []
    places: dict[Any, str] = {}
    for place, record in placed:
        _check_keys(place, record, ("qid", "duration", "relevant_windows"))
        _check_qid(place, record["qid"], places)
        duration = record["duration"]
        if not (_all_finite([duration]) and 0 < duration < _LONGEST):
            raise GranAlignError(
                f"{place}: duration is {_show(duration)}; expected the video's length, a number of "
                f"seconds above 0 and below {_LONGEST:g}"
            )
        windows = _check_list(place, record, "relevant_windows")
        if not windows:
            raise GranAlignError(
                f"{place}: relevant_windows is empty; expected one window or more: leave out "
                "queries without a moment, no metric is defined for them"
            )
        for index, window in enumerate(windows):
            _check_window(place, index, window, duration, scored=False)
        records.append(record)
        _check_same_keys(place, record, records[0], _SALIENCY_KEYS)
        if "saliency_scores" in record:
            _check_saliency(place, record)
    if not records:
        raise GranAlignError("ground truth: no records; expected one for every query")
    return records


def check_predictions(placed: _Placed, ground_truth: Sequence[Record], name: str) -> list[Record]:
    """The records of ``(place, record)`` pairs, validated and in the order of `ground_truth`."""
    truth_of = {record["qid"]: record for record in ground_truth}
    places: dict[Any, str] = {}
    found: dict[Any, Record] = {}
    for place, record in placed:
        _check_keys(place, record, ("qid",))
        qid = record["qid"]
        _check_qid(place, qid, places)
        truth = truth_of.get(qid)
        if truth is None:
            raise GranAlignError(
                f"{place}: qid {_show(qid)} is not in the ground truth; expected one of its "
                f"{len(truth_of)} qids, such as {_show(next(iter(truth_of), None))}: check that "
                "both files are of the same split"
            )
        found[qid] = record
        _check_prediction(place, record, truth)
        _check_same_keys(place, record, next(iter(found.values())), _PREDICTION_KEYS)
    missing = [qid for qid in truth_of if qid not in found]
    if missing:
        raise GranAlignError(
            f"{name}: {len(missing)} of {len(truth_of)} queries have no prediction, the first is "
            f"qid {_show(missing[0])}; expected one line for every query of the ground truth: add "
            "them, with an empty pred_relevant_windows where nothing was found"
        )
    return [found[qid] for qid in truth_of]


def _check_prediction(place: str, record: Record, truth: Record) -> None:
    if not any(key in record for key in _PREDICTION_KEYS):
        raise GranAlignError(
            f"{place}: neither {_PREDICTION_KEYS[0]} nor {_PREDICTION_KEYS[1]}; expected one or "
            f"both, found {sorted(record)}"
        )
    if "pred_relevant_windows" in record:
        for index, window in enumerate(_check_list(place, record, "pred_relevant_windows")):
            _check_window(place, index, window, truth["duration"], scored=True)
    if "pred_saliency_scores" in record:
        scores = _check_list(place, record, "pred_saliency_scores")
        if not _all_finite(scores):
            index = next(i for i, score in enumerate(scores) if not _all_finite([score]))
            raise GranAlignError(
                f"{place}: pred_saliency_scores[{index}] is {_show(scores[index])}; expected a "
                "finite number for every clip"
            )
        if "saliency_scores" in truth and len(scores) not in clips_scored(truth):
            raise GranAlignError(
                f"{place}: pred_saliency_scores has {len(scores)} numbers; expected "
                f"{clip_count(truth)}, one for each {CLIP_SECONDS:g} s clip of a "
                f"{truth['duration']} s video (one may be missing at the end): predict for these "
                "clips, or leave the key out of every line"
            )


def clip_count(truth: Record) -> int:
    """Number of whole clips that the ground truth's saliency covers."""
    return int(truth["duration"] / CLIP_SECONDS)


def clips_scored(truth: Record) -> range:
    """How many clips a prediction may score where the ground truth has saliency."""
    return range(max(clip_count(truth) - 1, 1), ceil(truth["duration"] / CLIP_SECONDS) + 1)


def _check_saliency(place: str, record: Record) -> None:
    ids, scores = (_check_list(place, record, key) for key in _SALIENCY_KEYS)
    clips = clip_count(record)
    if not (_are_clips(ids, clips) and len(set(ids)) == len(ids)):
        raise GranAlignError(
            f"{place}: relevant_clip_ids is {_show(ids)}; expected distinct integers from 0 to "
            f"{clips - 1}, the {CLIP_SECONDS:g} s clips of a {record['duration']} s video"
        )
    if not (
        len(scores) == len(ids)
        and all(isinstance(row, list | tuple) and len(row) == ANNOTATORS for row in scores)
        and _all_in(chain.from_iterable(scores), _RATINGS)
    ):
        raise GranAlignError(
            f"{place}: saliency_scores is {_show(scores)}; expected {len(ids)} lists, one for each "
            f"of relevant_clip_ids, of {ANNOTATORS} integers from 0 to 4"
        )


def _check_window(place: str, index: int, window: Any, duration: float, *, scored: bool) -> None:
    """Raise unless a window is finite, in order and within the video as far as is required."""
    try:
        start, end, score = window if scored else (*window, 0.0)
        finite = isfinite(start) and isfinite(end) and isfinite(score)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if finite and 0 <= start < end <= duration:  # nearly all windows
        return
    what = f"{place}: {'pred_' if scored else ''}relevant_windows[{index}] is {_show(window)}"
    form = "[start, end, score]" if scored else "[start, end]"
    if not finite:
        raise GranAlignError(f"{what}; expected {form}, {form.count(',') + 1} finite numbers")
    if start > end:
        problem, remedy = "starts after it ends", "start before end"
    elif start == end and not scored:
        problem, remedy = "is empty", "start before end"
    elif start < 0 or end <= 0:
        problem, remedy = "starts before the video", "seconds from the video's beginning"
    elif start >= duration:
        problem = f"starts after its {duration} s video"
        remedy = "seconds in the video of this qid"
    elif end > duration + MAX_OVERSHOOT_SECONDS:
        problem = f"ends {end - duration:g} s after its {duration} s video"
        remedy = f"at most {MAX_OVERSHOOT_SECONDS:g} s more than the video: clip it"
    else:
        return
    raise GranAlignError(f"{what} and {problem}; expected {form}, {remedy}")


def _check_keys(place: str, record: Record, keys: tuple[str, ...]) -> None:
    for key in keys:
        if key not in record:
            raise GranAlignError(f"{place}: key {key!r} is missing; found {sorted(record)}")


def _check_same_keys(place: str, record: Record, first: Record, keys: tuple[str, ...]) -> None:
    for key in keys:
        if (key in record) != (key in first):
            state = "missing, unlike in" if key in first else "there, unlike in"
            raise GranAlignError(
                f"{place}: key {key!r} is {state} the first record; expected it in every record "
                "or in none"
            )


def _check_qid(place: str, qid: Any, places: dict[Any, str]) -> None:
    if not isinstance(qid, int | str):
        raise GranAlignError(f"{place}: qid is {_show(qid)}; expected an integer or a string")
    first = places.setdefault(qid, place)
    if first != place:
        raise GranAlignError(
            f"{place}: qid {_show(qid)} stands a second time, first at {first}; expected each "
            "query once: remove one of the two"
        )


def _check_list(place: str, record: Record, key: str) -> Sequence[Any]:
    value = record[key]
    if not isinstance(value, list | tuple):
        raise GranAlignError(f"{place}: {key} is {_show(value)}; expected a list")
    return value


def _all_finite(values: Sequence[Any]) -> bool:
    try:
        return all(map(isfinite, values))
    except (TypeError, OverflowError):
        return False


def _are_clips(ids: Sequence[Any], clips: int) -> bool:
    try:
        return all(0 <= clip < clips and clip == int(clip) for clip in ids)
    except TypeError:  # a list or a text among them
        return False


def _all_in(values: Iterable[Any], allowed: frozenset[int]) -> bool:
    try:
        return allowed.issuperset(values)
    except TypeError:  # a list or an object among them
        return False


def _show(value: Any) -> str:
    """`value` as it stands in an error message: one line, and short however long it is."""
    return reprlib.repr(value)
