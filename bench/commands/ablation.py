"""Measure what each part of the method adds.

``python -m granalign_fast.bench.commands.ablation FOLDER``

FOLDER was written by ``granalign_fast.miniatures.benchmark``; its videos are indexed in
FOLDER/index. All variants use the same rewrites and captions, or a part of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from granalign_fast.config import preset
from granalign_fast.datasets import read_annotations
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.jsonl import Record
from granalign_fast.metrics import score_qvhighlights
from granalign_fast.miniatures import MODELS
from granalign_fast.pipeline import ModelFolder, MomentRetriever
from granalign_fast.search.request import Request
from granalign_fast.types import Rewrites, SearchResult

COLUMNS = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7")
Variant = Callable[[SearchResult], tuple[Rewrites, Mapping[int, str]]]


def _rewrites(result: SearchResult) -> Rewrites:
    assert result.rewrites is not None
    return result.rewrites


def _query(result: SearchResult) -> tuple[Rewrites, Mapping[int, str]]:
    return Rewrites(result.query), {}


def _agnostic(result: SearchResult) -> tuple[Rewrites, Mapping[int, str]]:
    return replace(_rewrites(result), detailed=()), {}


def _aware(result: SearchResult) -> tuple[Rewrites, Mapping[int, str]]:
    # Without simplified rewrites the query must not stand in for them.
    return replace(_rewrites(result), simplified=()), result.aware


def _crossed(result: SearchResult) -> tuple[Rewrites, Mapping[int, str]]:
    with_query = _rewrites(result)
    return replace(
        with_query, simplified=with_query.detailed, detailed=with_query.simplified
    ), result.aware


def _full(result: SearchResult) -> tuple[Rewrites, Mapping[int, str]]:
    return _rewrites(result), result.aware


VARIANTS: Mapping[str, tuple[Variant, bool]] = {
    "query alone, agnostic captions": (_query, True),
    "simplified rewrites, agnostic captions": (_agnostic, True),
    "detailed rewrites, aware captions": (_aware, False),
    "both, crossed: simplified with aware": (_crossed, True),
    "both: the method": (_full, True),
}
"""The rewrites and captions that each variant compares, and whether the query itself counts as a
simplified rewrite."""


def ablation(
    models: ModelFolder, folder: Path, config: str = "tuned"
) -> dict[str, dict[str, float]]:
    """Return the metrics of every variant, in percent.

    Args:
        models: must include a language model and a vision-language model.
        folder: written by `miniatures.benchmark.write_benchmark`, with ``index`` in it.
        config: name of a preset.

    Raises:
        GranAlignError: a file is missing or invalid.
    """
    annotations = read_annotations([folder / "truth.jsonl"], "qvhighlights")
    truth, queries = annotations.ground_truth(), annotations.queries
    indexes = {q.vid: VideoIndex.load(folder / "index" / q.vid) for q in queries}
    retriever = models.retriever(config)
    whole = retriever.search_many([Request(indexes[q.vid], q.rewrites.query) for q in queries])
    table = {}
    for name, (variant, with_query) in VARIANTS.items():
        chosen = preset(config)
        plain = MomentRetriever(
            models.encoder, replace(chosen, use_query=chosen.use_query and with_query)
        )
        requests = [Request(indexes[r.vid], *variant(r)) for r in whole]
        results = plain.search_many(requests)
        table[name] = _scored(results, [q.qid for q in queries], truth)
    return table


def _scored(
    results: Sequence[SearchResult], qids: Sequence[object], truth: Sequence[Record]
) -> dict[str, float]:
    lines = [{"qid": q} | r.to_record() for q, r in zip(qids, results, strict=True)]
    brief = score_qvhighlights(lines, truth)["brief"]
    return {key: brief[key] for key in COLUMNS}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure what each part of the method adds.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--preset", default="tuned")
    options = parser.parse_args()
    try:
        table = ablation(ModelFolder(options.models), options.folder, options.preset)
    except GranAlignError as error:
        sys.exit(f"ablation: {error}")
    print(f"{'percent':<42}" + "".join(f"{name.removeprefix('MR-full-'):>9}" for name in COLUMNS))
    for name, row in table.items():
        print(f"{name:<42}" + "".join(f"{row[key]:>9.2f}" for key in COLUMNS))


if __name__ == "__main__":
    main()
