"""Readers of published annotation files: QVHighlights, Charades-STA, ActivityNet-Captions."""

from .annotations import read_annotations
from .captions import fit_captions, read_captions, too_many
from .records import DATASETS, AnnotatedQuery, Annotations, Highlights, PathLike

__all__ = [
    "DATASETS",
    "AnnotatedQuery",
    "Annotations",
    "Highlights",
    "PathLike",
    "fit_captions",
    "read_annotations",
    "read_captions",
    "too_many",
]
