"""Read predictions and ground truth, validate them line by line, and bring them into one order."""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Iterable, Sequence
from itertools import chain
from math import ceil, isfinite
from typing import Any

from granalign_fast.datasets import PathLike, read_annotations
from granalign_fast.datasets.documents import read_document
from granalign_fast.datasets.predictions import read_predictions
from granalign_fast.datasets.recognition import check_vids
from granalign_fast.datasets.records import MAX_OVERSHOOT_SECONDS
from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import Record
from granalign_fast.parsing.limits import MOST_WINDOWS

_log = logging.getLogger(__name__)

CLIP_SECONDS = 2.0
"""Length in seconds of the clips that QVHighlights annotates with saliency."""

ANNOTATORS = 3
"""Number of people whose saliency scores, 0 to 4, QVHighlights has for every relevant clip."""

_LONGEST = 1e9
"""Seconds that no video reaches; a longer duration has another unit."""
_WINDOW_KEYS = ("relevant_windows", "pred_relevant_windows")
_SALIENCY_KEYS = ("relevant_clip_ids", "saliency_scores")
_PREDICTION_KEYS = ("pred_relevant_windows", "pred_saliency_scores")
_RATINGS = frozenset(range(5))
_Located = Iterable[tuple[str, Record]]


def load_ground_truth(
    path: PathLike | Sequence[PathLike], dataset: str | None = None
) -> list[Record]:
    """Read and validate ground truth, in any form that `datasets.read_annotations` reads.

    In the format of QVHighlights' annotation files every line has `qid` (integer or string),
    `duration` in seconds and `relevant_windows`, one or more ``[start, end]`` in seconds with
    ``0 <= start < end``, ``start < duration`` and ``end <= duration + MAX_OVERSHOOT_SECONDS``.
    `relevant_clip_ids` and `saliency_scores`, which only highlight metrics need, are in every line
    or in none. Other keys are ignored.

    Args:
        path: of the file, or of several that are joined, such as Charades-STA's text and the table
            of lengths.
        dataset: one of `datasets.DATASETS`, whose files are expected; None: any.

    Raises:
        GranAlignError: a file cannot be read, is of another dataset, has no windows, or breaks a
            rule; the message names the file, and the line where there is one.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if len(paths) == 1 and (document := read_document(paths[0])).form == "records":
        vids = {record["vid"] for _, record in document.records if _has_text(record, "vid")}
        if dataset is not None:
            check_vids(vids, dataset, str(document.path))
        return check_ground_truth(document.records)
    annotations = read_annotations(paths, dataset)
    for note in annotations.notes:
        _log.info("%s", note)
    name = ", ".join(map(str, paths))
    unknown = [query.vid for query in annotations.queries if query.duration is None]
    if unknown:
        raise GranAlignError(
            f"{name}: {len(unknown)} queries have no duration of their video, the first is "
            f"{unknown[0]!r}; give the file with the lengths too, such as Charades_v1_test.csv"
        )
    for warning in annotations.warnings:
        _log.warning("%s", warning)
    truth = annotations.ground_truth()
    return check_ground_truth((f"{name}: qid {record['qid']!r}", record) for record in truth)


def _has_text(record: Record, key: str) -> bool:
    return isinstance(record.get(key), str)


def load_predictions(path: PathLike, ground_truth: Sequence[Record]) -> list[Record]:
    """Read and validate predictions, in any form that `datasets.predictions` reads.

    In QVHighlights' submission format a line has `qid` and at least one of the following, the same
    in every line:

    * `pred_relevant_windows`: ranked ``[start, end, score]``, finite, with
      ``0 <= start <= end``, ``start < duration`` and
      ``0 < end <= duration + MAX_OVERSHOOT_SECONDS``; an empty list is a miss.
    * `pred_saliency_scores`: one finite number per clip. If the ground truth has saliency, the
      number of two-second clips is checked: the last one may be missing (it is in 13 lines of
      either published file), and a last, partial clip may be included. An empty list is a miss.

    Args:
        path: of the file, plain or ``.gz``.
        ground_truth: records of `load_ground_truth`; each needs exactly one prediction.

    Returns:
        The predictions in the order of `ground_truth`.

    Raises:
        GranAlignError: the file cannot be read, a line breaks a rule, a qid is unknown or
            occurs twice, or a query has no prediction; the message names file and line.
    """
    return check_predictions(read_predictions(path, ground_truth), ground_truth, os.fspath(path))


def check_ground_truth(located: _Located) -> list[Record]:
    """Validate ``(location, record)`` pairs as `load_ground_truth` does; return the records."""
    records: list[Record] = []
    locations: dict[Any, str] = {}
    for location, record in located:
        _check_keys(location, record, ("qid", "duration", "relevant_windows"))
        _check_qid(location, record["qid"], locations)
        duration = record["duration"]
        if not (_all_finite([duration]) and 0 < duration < _LONGEST):
            raise GranAlignError(
                f"{location}: duration is {_show(duration)}; expected the video's length, a number "
                f"of seconds above 0 and below {_LONGEST:g}"
            )
        windows = _check_list(location, record, "relevant_windows")
        if not windows:
            raise GranAlignError(
                f"{location}: relevant_windows is empty; expected one window or more: leave out "
                "queries without a moment, no metric is defined for them"
            )
        for index, window in enumerate(windows):
            _check_window(location, index, window, duration, scored=False)
        records.append(record)
        _check_same_keys(location, record, records[0], _SALIENCY_KEYS)
        if "saliency_scores" in record:
            _check_saliency(location, record)
    if not records:
        raise GranAlignError("ground truth: no records; expected one for every query")
    return records


def check_predictions(located: _Located, ground_truth: Sequence[Record], name: str) -> list[Record]:
    """Validate ``(location, record)`` pairs; return the records in the order of `ground_truth`."""
    truth_of = {record["qid"]: record for record in ground_truth}
    locations: dict[Any, str] = {}
    predictions: dict[Any, Record] = {}
    for location, record in located:
        _check_keys(location, record, ("qid",))
        qid = record["qid"]
        _check_qid(location, qid, locations)
        truth = truth_of.get(qid)
        if truth is None:
            raise GranAlignError(
                f"{location}: qid {_show(qid)} is not in the ground truth; expected one of its "
                f"{len(truth_of)} qids, such as {_show(next(iter(truth_of), None))}: check that "
                "both files are of the same split"
            )
        predictions[qid] = record
        _check_prediction(location, record, truth)
        _check_same_keys(location, record, next(iter(predictions.values())), _PREDICTION_KEYS)
    missing = [qid for qid in truth_of if qid not in predictions]
    if missing:
        raise GranAlignError(
            f"{name}: {len(missing)} of {len(truth_of)} queries have no prediction, the first is "
            f"qid {_show(missing[0])}; expected one line for every query of the ground truth: add "
            "them, with an empty pred_relevant_windows where nothing was found"
        )
    return [predictions[qid] for qid in truth_of]


def _check_prediction(location: str, record: Record, truth: Record) -> None:
    if not any(key in record for key in _PREDICTION_KEYS):
        raise GranAlignError(
            f"{location}: neither {_PREDICTION_KEYS[0]} nor {_PREDICTION_KEYS[1]}; expected one or "
            f"both, found {_show(sorted(record))}"
        )
    if "pred_relevant_windows" in record:
        for index, window in enumerate(_check_list(location, record, "pred_relevant_windows")):
            _check_window(location, index, window, truth["duration"], scored=True)
    if "pred_saliency_scores" in record:
        scores = _check_list(location, record, "pred_saliency_scores")
        if not _all_finite(scores):
            index = next(i for i, score in enumerate(scores) if not _all_finite([score]))
            raise GranAlignError(
                f"{location}: pred_saliency_scores[{index}] is {_show(scores[index])}; expected a "
                "finite number for every clip"
            )
        if "saliency_scores" in truth and scores and len(scores) not in clips_scored(truth):
            raise GranAlignError(
                f"{location}: pred_saliency_scores has {len(scores)} numbers; expected "
                f"{clip_count(truth)}, one for each {CLIP_SECONDS:g} s clip of a "
                f"{truth['duration']} s video (one may be missing at the end): predict for these "
                "clips, or leave the key out of every line"
            )


def clip_count(truth: Record) -> int:
    """Return the number of whole clips that the ground truth's saliency covers."""
    return int(truth["duration"] / CLIP_SECONDS)


def clips_scored(truth: Record) -> range:
    """Return the numbers of clips that a prediction may score if the ground truth has saliency."""
    return range(max(clip_count(truth) - 1, 1), ceil(truth["duration"] / CLIP_SECONDS) + 1)


def _check_saliency(location: str, record: Record) -> None:
    ids, scores = (_check_list(location, record, key) for key in _SALIENCY_KEYS)
    clips = clip_count(record)
    if not (_are_clips(ids, clips) and len(set(ids)) == len(ids)):
        raise GranAlignError(
            f"{location}: relevant_clip_ids is {_show(ids)}; expected distinct integers from 0 to "
            f"{clips - 1}, the {CLIP_SECONDS:g} s clips of a {record['duration']} s video"
        )
    if not (
        len(scores) == len(ids)
        and all(isinstance(row, list | tuple) and len(row) == ANNOTATORS for row in scores)
        and _all_in(chain.from_iterable(scores), _RATINGS)
    ):
        raise GranAlignError(
            f"{location}: saliency_scores is {_show(scores)}; expected {len(ids)} lists, one for "
            f"each of relevant_clip_ids, of {ANNOTATORS} integers from 0 to 4"
        )


def _check_window(location: str, index: int, window: Any, duration: float, *, scored: bool) -> None:
    """Raise unless a window is finite, ordered, and within the video plus the overshoot."""
    try:
        start, end, score = window if scored else (*window, 0.0)
        finite = isfinite(start) and isfinite(end) and isfinite(score)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if finite and 0 <= start < end <= duration:  # nearly all windows
        return
    what = f"{location}: {'pred_' if scored else ''}relevant_windows[{index}] is {_show(window)}"
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


def _check_keys(location: str, record: Record, keys: tuple[str, ...]) -> None:
    for key in keys:
        if key not in record:
            raise GranAlignError(
                f"{location}: key {key!r} is missing; found {_show(sorted(record))}"
            )


def _check_same_keys(location: str, record: Record, first: Record, keys: tuple[str, ...]) -> None:
    for key in keys:
        if (key in record) != (key in first):
            state = "missing, unlike in" if key in first else "present, unlike in"
            raise GranAlignError(
                f"{location}: key {key!r} is {state} the first record; expected it in every record "
                "or in none"
            )


def _check_qid(location: str, qid: Any, locations: dict[Any, str]) -> None:
    if not isinstance(qid, int | str):
        raise GranAlignError(f"{location}: qid is {_show(qid)}; expected an integer or a string")
    first = locations.setdefault(qid, location)
    if first != location:
        raise GranAlignError(
            f"{location}: qid {_show(qid)} occurs a second time, first at {first}; expected each "
            "query once: remove one of the two"
        )


def _check_list(location: str, record: Record, key: str) -> Sequence[Any]:
    value = record[key]
    if not isinstance(value, list | tuple):
        raise GranAlignError(f"{location}: {key} is {_show(value)}; expected a list")
    if key in _WINDOW_KEYS and len(value) > MOST_WINDOWS:
        raise GranAlignError(
            f"{location}: {key} has {len(value):,} windows; expected at most {MOST_WINDOWS:,}: "
            f"keep the best ones"
        )
    return value


def _all_finite(values: Sequence[Any]) -> bool:
    try:
        return all(map(isfinite, values))
    except (TypeError, OverflowError):
        return False


def _are_clips(ids: Sequence[Any], clips: int) -> bool:
    try:
        return all(0 <= clip < clips and clip == int(clip) for clip in ids)
    except TypeError:  # an element is a list or a text
        return False


def _all_in(values: Iterable[Any], allowed: frozenset[int]) -> bool:
    try:
        return allowed.issuperset(values)
    except TypeError:  # an element is a list or an object
        return False


def _show(value: Any) -> str:
    """Return `value` for an error message: one line, shortened if it is long."""
    return reprlib.repr(value)
