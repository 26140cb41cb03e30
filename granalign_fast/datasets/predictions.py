"""Read predictions: QVHighlights' submissions, and dictionaries by query or by video."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from granalign_fast.errors import GranAlignError, listed, short_repr
from granalign_fast.jsonl import Record

from .documents import read_document
from .joining import same_text
from .records import PathLike

_FORMS = (
    "JSON Lines of qid and pred_relevant_windows, or a JSON dictionary of windows by qid or by "
    "video and sentence"
)
_WINDOWS = ("pred_relevant_windows", "timestamps", "timestamp")
"""Keys of predicted windows: of QVHighlights' submissions, and of dictionaries."""
_TEXTS = ("query", "sentence")
_VIDS = ("vid", "video_id", "video")


def read_predictions(path: PathLike, truth: Sequence[Record]) -> Sequence[tuple[str, Record]]:
    """Read predictions, and bring them into the form of QVHighlights' submissions.

    * Records with `qid` stay as they are.
    * Records without it, all of them, are matched by video and sentence.
    * A dictionary has windows, or objects with windows, under qids; or it has, under vids, a list
      of objects with `sentence` and `timestamp`, or an object of `sentences` and `timestamps`. It
      may lie under the key `results`, as in dense captioning's submissions
      (github.com/ranjaykrishna/densevid_eval). TimeChat's has `query`, `vid` and `timestamp` under
      numbers of its own (github.com/RenShuhuai-Andy/TimeChat, evaluate.py).

    Windows are ``[start, end]`` or ``[start, end, score]`` in seconds, one or a list of them, best
    first. Without scores each has the score 1, so that they keep their order.

    Args:
        path: of the file.
        truth: the ground truth; dictionaries by sentence need its `query` and `vid`.

    Returns:
        Where each prediction stands, and ``{"qid": ..., "pred_relevant_windows": [...]}``.

    Raises:
        GranAlignError: the file cannot be read or has another form, or a prediction is of no query
            of the ground truth.
    """
    document = read_document(path, _FORMS)
    items: Iterable[_Item]
    if document.form == "records":
        if any("qid" in record for _, record in document.records):
            return document.records
        items = ((where, None, record) for where, record in document.records)
    elif document.form == "dictionary":
        items = _items(document.value, str(document.path))
    else:
        raise GranAlignError(f"{path}: got annotations, expected {_FORMS}; give predictions")
    return _matched(items, truth, str(path))


_Item = tuple[str, str | None, Any]
"""Where a prediction stands, the key of the dictionary, and the prediction."""


def _items(value: Mapping[str, Any], path: str) -> Iterator[_Item]:
    """Yield the predictions of a dictionary, each with its video and sentence if it has them."""
    value = value["results"] if isinstance(value.get("results"), Mapping) else value
    for key, entry in value.items():
        where = f"{path}: {key!r}"
        if isinstance(entry, Mapping) and isinstance(entry.get("sentences"), list):
            windows = _first(entry, _WINDOWS)
            if not isinstance(windows, list) or len(windows) != len(entry["sentences"]):
                raise GranAlignError(
                    f"{where}: timestamps: got {short_repr(windows)}, expected a list of "
                    f"{len(entry['sentences'])}, one item for each sentence"
                )
            for sentence, window in zip(entry["sentences"], windows, strict=True):
                yield where, None, {"vid": key, "query": sentence, "timestamps": window}
        elif isinstance(entry, list) and any(isinstance(one, Mapping) for one in entry):
            for one in entry:
                yield where, None, {"vid": key, **one} if isinstance(one, Mapping) else one
        else:
            yield where, key, entry


def _matched(
    items: Iterable[_Item], truth: Sequence[Record], path: str
) -> list[tuple[str, Record]]:
    """Return one record for each query, whose windows are those of all of its predictions."""
    by_qid = {str(record["qid"]): record["qid"] for record in truth}
    by_text: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for record in truth:
        if isinstance(record.get("query"), str) and isinstance(record.get("vid"), str):
            by_text[record["vid"], same_text(record["query"])].append(record["qid"])
    found: dict[Any, tuple[str, Record]] = {}
    for where, key, entry in items:
        windows = _windows(entry, where)
        for qid in _qids(where, key, entry, by_qid, by_text):
            record = {"qid": qid, "pred_relevant_windows": []}
            _, record = found.setdefault(qid, (where, record))
            record["pred_relevant_windows"].extend(windows)
    if not found:
        raise GranAlignError(f"{path}: holds no predictions, expected {_FORMS}")
    return list(found.values())


def _qids(
    where: str,
    key: str | None,
    entry: Any,
    by_qid: Mapping[str, Any],
    by_text: Mapping[tuple[str, str], list[Any]],
) -> list[Any]:
    """Return the qids of a prediction: one, or all of a sentence that its video has repeatedly.

    Raises:
        GranAlignError: it is of no query of the ground truth.
    """
    vid, text = (
        (_first(entry, _VIDS), _first(entry, _TEXTS)) if isinstance(entry, Mapping) else (None,) * 2
    )
    if isinstance(vid, str) and isinstance(text, str):
        if qids := by_text.get((vid, same_text(text))):
            return qids
        raise GranAlignError(
            f"{where}: the video {vid!r} has no query {short_repr(text)} in the ground truth; "
            f"check that both are of one split, and that the ground truth has texts and vids"
        )
    if key is not None and key in by_qid:
        return [by_qid[key]]
    known = listed([repr(qid) for qid in by_qid.values()], 2)
    raise GranAlignError(
        f"{where}: is neither a qid of the ground truth, such as {known}, nor does it name video "
        f"and sentence; expected {_FORMS}"
    )


def _windows(entry: Any, where: str) -> list[list[Any]]:
    """Return the windows of a prediction, each with a score, best first.

    Raises:
        GranAlignError: there are none in a form that is known.
    """
    value = _first(entry, _WINDOWS) if isinstance(entry, Mapping) else entry
    if isinstance(value, list):
        windows = value if any(isinstance(one, list) for one in value) else [value] if value else []
        if all(isinstance(one, list) and len(one) in (2, 3) for one in windows):
            return [[*one, 1.0] if len(one) == 2 else one for one in windows]
    raise GranAlignError(
        f"{where}: got {short_repr(entry)}, expected windows [start, end] or [start, end, score]"
    )


def _first(record: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the value of the first of some keys that a record has, or None."""
    return next((record[key] for key in keys if key in record), None)
