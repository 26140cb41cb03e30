"""The timing of a library's search counts every video, and reports every stage."""

from __future__ import annotations

from pathlib import Path

from helpers.fakes import BagOfWords
from helpers.libraries import write_index

from granalign_fast.bench.commands.library_search import _summary, time_alone, time_together
from granalign_fast.library import Library
from granalign_fast.search.retriever import Retriever


def test_both_ways_search_what_the_library_holds(tmp_path: Path) -> None:
    for number in range(3):
        write_index(tmp_path / f"v{number}", 10, seed=number, captions=("a man sits",) * 10)
    write_index(tmp_path / "car", 10, seed=9, captions=("a man sits",) * 5 + ("a red car",) * 5)
    library = Library.open(tmp_path, Retriever(BagOfWords()))
    alone = time_alone(library, library.retriever, "a red car")
    together = time_together(library, "a red car", 2)
    assert together.best == "car"
    assert {"read", "similarity"} <= alone.stages.keys()
    assert set(together.stages) == {"rewrite", "embed", "first_stage", "refine"}
    assert alone.total >= sum(alone.stages.values()) > 0
    text = _summary([alone, together])
    assert f"first {1e3 * alone.total:>8.1f}" in text
    assert f"then {1e3 * together.total:>8.1f}" in text
