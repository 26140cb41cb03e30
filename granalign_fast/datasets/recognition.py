"""Tell to which dataset files belong, by their form and by the ids of their videos."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from granalign_fast.errors import GranAlignError, listed, short_repr

from .documents import Document
from .records import DATASETS

TITLES = {
    "qvhighlights": "QVHighlights",
    "charades": "Charades-STA",
    "activitynet": "ActivityNet-Captions",
}
"""The names of the datasets in messages."""

_VIDS = {
    "qvhighlights": re.compile(r"[\w-]{11}_\d+\.\d+_\d+\.\d+"),
    "charades": re.compile(r"[A-Z0-9]{5}"),
    "activitynet": re.compile(r"v_[\w-]{11}"),
}
"""How the published files name videos: a YouTube id with a stretch in seconds; five capitals or
digits; ``v_`` and a YouTube id."""

_FORMS = {
    "records": frozenset(DATASETS),
    "dictionary": frozenset({"charades", "activitynet"}),
    "sentences": frozenset({"charades"}),
    "table": frozenset({"charades"}),
}
"""The datasets whose files have a form."""
_FORM_NAMES = {
    "dictionary": "a dictionary of videos",
    "sentences": "Charades-STA's text",
    "table": "Charades' table of lengths",
}


def check_forms(documents: Sequence[Document], dataset: str) -> None:
    """Raise for a file whose form no file of the dataset has."""
    expected = "JSON Lines" if dataset == "qvhighlights" else "a file"
    for document in documents:
        possible = _FORMS[document.form]
        if dataset not in possible:
            raise GranAlignError(
                f"{document.path}: got {_FORM_NAMES[document.form]}, a form of "
                f"{_titles(possible)}; expected {expected} of {TITLES[dataset]}: give its files, "
                f"or name another dataset"
            )


def check_vids(vids: Collection[str], dataset: str, name: str) -> None:
    """Raise if all videos have names of another dataset, and none has one of this dataset.

    Names that are of no dataset are accepted: they are those of somebody's own videos.

    Args:
        vids: ids of the videos.
        dataset: one of `DATASETS`.
        name: of the files, for the message.

    Raises:
        GranAlignError: the files are those of another dataset.
    """
    other = dataset_of_vids(vids)
    if other is not None and other != dataset:
        raise GranAlignError(
            f"{name}: the videos have names of {TITLES[other]}, such as "
            f"{short_repr(min(vids))}; expected {TITLES[dataset]}: give its files, or "
            f"name the dataset {other}"
        )


def dataset_of_vids(vids: Collection[str]) -> str | None:
    """Return the dataset that names all of its videos like these, or None.

    >>> dataset_of_vids(["v_bXdq2zI1Ms0"])
    'activitynet'
    """
    for dataset, pattern in _VIDS.items():
        if vids and all(pattern.fullmatch(vid) for vid in vids):
            return dataset
    return None


def recognise(documents: Sequence[Document], vids: Collection[str], *, saliency: bool) -> str:
    """Return the dataset of files for which the user has named none.

    Args:
        documents: the files.
        vids: the ids of their videos.
        saliency: whether a query has saliency, which QVHighlights alone has.

    Raises:
        GranAlignError: it cannot be told.
    """
    if saliency:
        return "qvhighlights"
    possible = frozenset.intersection(*(_FORMS[document.form] for document in documents))
    by_vids = dataset_of_vids(vids)
    if by_vids in possible:
        return by_vids
    if len(possible) == 1:
        return next(iter(possible))
    raise GranAlignError(
        f"{listed([document.path for document in documents])}: cannot tell the dataset from the "
        f"form and the videos, such as {listed([short_repr(vid) for vid in vids], 2)}; name it: "
        f"{', '.join(DATASETS)}"
    )


def _titles(datasets: Collection[str]) -> str:
    return " and ".join(TITLES[name] for name in DATASETS if name in datasets)
