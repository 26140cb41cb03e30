"""Readers of published annotation files: QVHighlights, Charades-STA, ActivityNet-Captions."""

from .annotations import read_annotations
from .captions import read_captions
from .records import DATASETS, AnnotatedQuery, Annotations, Highlights, PathLike

__all__ = [
    "DATASETS",
    "AnnotatedQuery",
    "Annotations",
    "Highlights",
    "PathLike",
    "read_annotations",
    "read_captions",
]
