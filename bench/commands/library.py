"""Measure the search of a whole library: ``python -m granalign_fast.bench.commands.library``.

All captioned videos of a benchmark are one library, and each query is searched in all of them. On
QVHighlights' validation split it prints how often the right video and the right moment are found,
and what each stage takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from granalign_fast.datasets import read_annotations, read_captions
from granalign_fast.errors import GranAlignError
from granalign_fast.files import default_cache
from granalign_fast.library import Library
from granalign_fast.library.evaluation import CorpusEvaluation, evaluate_corpus
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.pipeline import MomentRetriever, SentenceEncoder


def measure(
    files: Sequence[Path],
    captions: Path,
    *,
    dataset: str | None = None,
    preset: str = "tuned",
    refine: int = 20,
    step: int = 1,
) -> CorpusEvaluation:
    """Search every query of annotation files in all captioned videos that they name.

    Args:
        files: annotation files; their rewrites are taken.
        captions: JSON Lines of `vid` and `captions`.
        dataset: of the files; None: recognised from them.
        preset: of the second stage.
        refine: how many videos of a query the second stage searches.
        step: take every so many-th query.

    Raises:
        GranAlignError: a file cannot be read, or names a video without captions.
    """
    queries = [query for query in read_annotations(files, dataset).queries if query.windows]
    captioned = read_captions(captions)
    durations = {query.vid: query.duration for query in queries}
    if missing := durations.keys() - captioned.keys():
        raise GranAlignError(
            f"{captions}: got no captions of {len(missing)} videos, such as {min(missing)!r}; "
            f"caption them, or leave their queries out"
        )
    videos = [replace(captioned[vid], duration=seconds) for vid, seconds in durations.items()]
    encoder = CachedEncoder(SentenceEncoder(), default_cache())
    retriever = MomentRetriever(encoder, preset)
    library = Library.of(retriever.index_many(videos), retriever)
    return evaluate_corpus(library, queries[::step], refine=refine, progress=_say)


def _say(done: int, total: int) -> None:
    sys.stderr.write(f"{done} of {total} queries\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure the search of a whole library.")
    parser.add_argument("files", nargs="+", type=Path, help="annotation files with rewrites")
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--dataset", help="of the files; default: recognised from them")
    parser.add_argument("--preset", default="tuned")
    parser.add_argument("--refine", type=int, default=20)
    parser.add_argument("--step", type=int, default=1, help="take every so many-th query")
    options = parser.parse_args(arguments)
    try:
        found = measure(
            options.files,
            options.captions,
            dataset=options.dataset,
            preset=options.preset,
            refine=options.refine,
            step=options.step,
        )
    except GranAlignError as error:
        sys.exit(str(error))
    queries = found.counts["queries"]
    milliseconds = {name: 1e3 * value / queries for name, value in found.seconds.items()}
    print(json.dumps({**found.metrics, **found.counts, "ms_a_query": milliseconds}, indent=2))


if __name__ == "__main__":
    main()
