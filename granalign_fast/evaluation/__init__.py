"""Evaluation on three benchmarks: queries are searched, and the moments scored by their metrics."""

from __future__ import annotations

from granalign_fast.datasets import PathLike, read_annotations
from granalign_fast.errors import GranAlignError
from granalign_fast.protocols import Rewriter
from granalign_fast.search.retriever import Retriever

from .comparison import Difference, compare
from .results import Evaluation, Missing, Results, read_results, write_results
from .run import evaluate
from .videos import CaptionFile, IndexFolder, VideoFiles, Videos

__all__ = [
    "CaptionFile",
    "Difference",
    "Evaluation",
    "IndexFolder",
    "Missing",
    "Results",
    "VideoFiles",
    "Videos",
    "compare",
    "evaluate",
    "evaluate_qvhighlights",
    "read_results",
    "write_results",
]


def evaluate_qvhighlights(
    retriever: Retriever,
    *,
    queries: PathLike,
    ground_truth: PathLike,
    captions: PathLike | None = None,
    indexes: PathLike | None = None,
    absent: PathLike | None = None,
    rewriter: Rewriter | None = None,
) -> Evaluation:
    """Evaluate on QVHighlights with every video there: `evaluate` on two files.

    Args:
        retriever: its models and configuration are evaluated.
        queries: JSON Lines of `qid`, `query`, `vid`, and `rewrites` or `simplified` and `detailed`.
        ground_truth: the benchmark's annotation file.
        captions: as for `CaptionFile`. Either this or `indexes` is needed.
        indexes: as for `IndexFolder`.
        absent: as for `evaluate`.
        rewriter: as for `evaluate`.

    Raises:
        GranAlignError: as `evaluate`; or captions and indexes are given, or neither.
    """
    if captions is not None and indexes is None:
        videos: Videos = CaptionFile(captions)
    elif indexes is not None and captions is None:
        videos = IndexFolder(indexes)
    else:
        raise GranAlignError("got captions and indexes, or neither; expected one of them")
    return evaluate(
        retriever,
        read_annotations([queries, ground_truth], "qvhighlights"),
        videos,
        absent=absent,
        rewriter=rewriter,
        missing="fail",
    )
