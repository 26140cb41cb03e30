"""The search of a library whose videos come and go."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

from helpers.fakes import BagOfWords
from helpers.libraries import write_index

from granalign_fast.library import Filters, Library
from granalign_fast.library.catalogue import open_catalogue
from granalign_fast.library.upkeep import remove_videos
from granalign_fast.search.retriever import Retriever


def scored(folder: Path, **choice: Any) -> dict[str, tuple[float, float]]:
    """Score and share of words of each video that the first stage finds."""
    found = Library.open(folder, Retriever(BagOfWords())).search(
        "a red dog jumps", refine=0, top=50, **choice
    )
    return {hit.video.vid: (hit.score, hit.words) for hit in found.videos}


def test_scores_after_removals_are_those_of_a_fresh_library(tmp_path: Path) -> None:
    """However the videos lie in segments: one whole, and one of which few are removed."""
    shrunk, fresh = tmp_path / "shrunk", tmp_path / "fresh"
    sizes = {f"v{number}": 40 + 90 * (number % 2) for number in range(10)}
    for number, (vid, clips) in enumerate(sizes.items()):
        write_index(shrunk / vid, clips, seed=number)
    write_index(shrunk / "odd", 30, seed=77, captions=("a zebra",) * 30)
    scored(shrunk)
    write_index(shrunk / "late", 9, seed=99)
    gone = ["v0", "v2", "v4", "v5", "v6", "odd"]
    remove_videos(shrunk, gone)
    for vid in sizes.keys() - set(gone):
        shutil.copytree(shrunk / vid, fresh / vid)
    shutil.copytree(shrunk / "late", fresh / "late")
    catalogue = Library.open(shrunk, Retriever(BagOfWords())).catalogue
    dead = sum(len(one.videos) for one in catalogue.segments) - len(catalogue.videos())
    assert dead  # rows of removed videos are still in the segments
    assert scored(shrunk) == scored(fresh)


def test_filters_change_no_score(tmp_path: Path) -> None:
    """A library whose segments are all searched, and one of which a filter leaves one out."""
    library = tmp_path / "library"
    for number, (vid, clips) in enumerate({"a": 300, "b": 90, "c": 20}.items()):
        write_index(library / vid, clips, seed=number)
        scored(library)  # a segment for each
    every = scored(library)
    assert scored(library, filters=Filters(videos=("c",))) == {"c": every["c"]}


def test_an_earlier_catalogue_is_let_go_at_once(tmp_path: Path) -> None:
    write_index(tmp_path / "first", 20, seed=1)
    library = Library.open(tmp_path, Retriever(BagOfWords()))
    library.search("a red car")
    (before,) = map(weakref.ref, library.catalogue.segments)
    write_index(tmp_path / "second", 20, seed=2)
    library.take_up(open_catalogue(tmp_path))
    assert before() is None  # and its files are closed, without another search
