"""Approximate indexes of a library: what they find, and what makes a search compare all clips."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import unit
from helpers.fakes import BagOfWords
from helpers.libraries import write_framed_index, write_index

from granalign_fast.config import PRESETS
from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.library import Filters, Library, approximation, first_stage
from granalign_fast.library.approximate import ApproximateIndex
from granalign_fast.library.approximation import Approximated, approximate_library
from granalign_fast.library.catalogue import open_catalogue, update_catalogue
from granalign_fast.library.codes import CodedRows
from granalign_fast.library.pointer import FOLDER
from granalign_fast.library.remote import publish_catalogue
from granalign_fast.library.results import LibraryResult
from granalign_fast.library.upkeep import verify_library
from granalign_fast.search.retriever import Retriever
from granalign_fast.storage import Address

pytest.importorskip("faiss", reason="the extra [approximate]")
QUERY = "a red dog jumps"


@pytest.fixture(autouse=True)
def _every_segment_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (first_stage, approximation):
        monkeypatch.setattr(module, "ALL_COMPARED", 0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "library"
    for number in range(6):
        write_index(folder / f"v{number}", 100, seed=number)
    update_catalogue(folder)
    return folder


@pytest.fixture
def library(plain: Path, tmp_path: Path) -> Path:
    """A library with an approximate index."""
    shutil.copytree(plain, tmp_path / "library")
    assert approximate_library(tmp_path / "library") == Approximated(1, 0, 0)
    return tmp_path / "library"


def search(folder: str | Path, share: float, filters: Filters | None = None) -> LibraryResult:
    config = replace(PRESETS["tuned"], approximate=share)
    return Library.open(folder, Retriever(BagOfWords(), config)).search(QUERY, filters=filters)


def evidence(result: LibraryResult) -> list[tuple[object, ...]]:
    return [(hit.video.vid, hit.score, hit.clip, hit.start, hit.end) for hit in result.videos]


def files(folder: Path) -> list[Path]:
    """The index and its stamp."""
    return sorted((folder / FOLDER).glob("*/*.ivf*"))


def test_all_lists_give_the_exact_answer(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Filters(videos=["v[135]"])
    exact = search(library, 0.0), search(library, 0.0, odd)
    monkeypatch.setattr(CodedRows, "top", lambda *_: pytest.fail("all clips were compared"))
    for filters, expected in zip((None, odd), exact, strict=True):
        found = search(library, 1.0, filters)
        assert found.moments == expected.moments
        assert evidence(found) == evidence(expected)
    some = search(library, 0.1)
    assert some.moments
    scores = {hit.video.vid: hit.score for hit in exact[0].videos}
    # What is found has its exact score, or that of another stretch which is no better.
    assert all(hit.score <= scores[hit.video.vid] for hit in some.videos)


def test_few_lists_find_most_clips_of_scenes() -> None:
    rng = np.random.default_rng(0)
    scenes = unit(rng, 50, 48, np.float32)
    rows = (np.repeat(scenes, 80, axis=0) + unit(rng, 4000, 48, np.float32)).astype("f2")
    index = ApproximateIndex.of(rows)
    queries = scenes[:20].astype(np.float16)
    exact = queries.astype(np.float64) @ rows.T.astype(np.float64)
    best = np.argsort(-exact, axis=1)[:, :200]
    recalls = []
    for share in (0.02, 0.5, 1.0):
        found = index.nearest(queries, 200, share)
        recalls.append(np.mean([len({*a} & {*b}) / 200 for a, b in zip(found, best, strict=True)]))
        for scores, near in zip(exact, found, strict=True):  # the best first
            got = scores[near[near >= 0]]
            assert (np.diff(got) <= 1e-6).all()
    assert recalls[0] < recalls[1]
    assert recalls[1] > 0.95
    assert recalls[2] == 1


def test_clips_that_do_not_count_are_not_found() -> None:
    rows = unit(np.random.default_rng(1), 500, 16, np.float16)
    some = np.zeros(500, bool)
    some[[3, 77, 401]] = True
    (found,) = ApproximateIndex.of(rows).nearest(rows[:1], 5, 1.0, some)
    assert set(found[:3].tolist()) == {3, 77, 401}
    assert found[3:].tolist() == [-1, -1]


def _restamp(folder: Path, **fields: object) -> None:
    stamp = files(folder)[1]
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | fields))


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no stamp": (lambda folder: files(folder)[1].unlink(), "cannot be read"),
    "no index": (lambda folder: files(folder)[0].unlink(), "there is no approximate index"),
    "torn": (
        lambda folder: files(folder)[0].write_bytes(files(folder)[0].read_bytes()[:-7]),
        "another content",
    ),
    "changed": (
        lambda folder: files(folder)[0].write_bytes(bytes(files(folder)[0].stat().st_size)),
        "another content",
    ),
    "no JSON": (lambda folder: files(folder)[1].write_text("{"), "got no stamp"),
    "a list": (lambda folder: files(folder)[1].write_text("[]"), "got no stamp"),
    "other rows": (lambda folder: _restamp(folder, rows="0" * 64), "of somebody else"),
    "a number": (lambda folder: _restamp(folder, mark=7), "of somebody else"),
    "half a character": (lambda folder: _restamp(folder, mark="\ud800"), "of somebody else"),
    "another version": (lambda folder: _restamp(folder, format=0), "of another version"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_index_is_not_used(
    library: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    exact = search(library, 0.0)
    act, message = HARMS[harm]
    act(library)
    with caplog.at_level("WARNING"):
        assert search(library, 0.01).moments == exact.moments
    (record,) = caplog.records
    assert "all clips of a segment are compared: " in record.message
    assert message in record.message
    assert "run `granalign library approximate`" in record.message
    damage = verify_library(library).catalogue
    assert harm == "no index" or message in damage[0]
    # What the message says helps.
    assert approximate_library(library) == Approximated(1, 0, 0)
    assert not verify_library(library).catalogue
    caplog.clear()
    search(library, 0.01)
    assert not caplog.records


def test_the_index_of_other_embeddings_is_not_used(library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_index(other / "v", 300, seed=9)
    approximate_library(other)
    for source, target in zip(files(other), files(library), strict=True):
        shutil.copy(source, target)
    (segment,) = open_catalogue(library).segments
    with pytest.raises(GranAlignError, match="got an index of other embeddings"):
        segment.coded_captions.open_approximate()


def test_without_faiss_all_clips_are_compared(
    library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exact = search(library, 0.0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert search(library, 0.1).moments == exact.moments
    assert "needs the extra [approximate]" in caplog.text
    assert not verify_library(library).catalogue  # it is whole
    with pytest.raises(MissingExtraError):
        approximate_library(library)


@pytest.mark.parametrize("left", ["a part of the index", "the index without its stamp"])
def test_a_process_that_was_killed(library: Path, left: str) -> None:
    exact = search(library, 0.0)
    index, stamp = files(library)
    stamp.unlink()
    if left == "a part of the index":
        index.rename(index.with_name(f".{index.name}.0123abcd"))
    assert search(library, 0.1).moments == exact.moments
    assert approximate_library(library) == Approximated(1, 0, 0)
    assert not [path.name for path in index.parent.iterdir() if path.name[0] == "."]
    assert not verify_library(library).catalogue


def test_damaged_embeddings_get_no_index(plain: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    shutil.copytree(plain, library)
    (segment,) = open_catalogue(library).segments
    captions = segment.folder / "captions.f16"
    captions.write_bytes(bytes(captions.stat().st_size))
    remedy = f"captions.f16: got SHA-256 .*; run granalign library rebuild {library}"
    with pytest.raises(GranAlignError, match=remedy):
        approximate_library(library)
    update_catalogue(library, rebuild=True)  # the remedy works
    assert approximate_library(library).made == 1


def test_only_new_segments_get_an_index(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_index(library / "new", 30, seed=30)
    assert approximate_library(library) == Approximated(1, 1, 0)
    monkeypatch.setattr(approximation, "ALL_COMPARED", 50)
    assert approximate_library(library) == Approximated(0, 1, 1)
    update_catalogue(library, rebuild=True)
    assert not files(library)


@pytest.mark.parametrize("published", [False, True])
def test_a_library_in_an_object_store(
    plain: Path, buckets: Path, published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of its catalogue on this machine has the index, and the store does not."""
    (buckets / "bucket").mkdir()
    shutil.copytree(plain, buckets / "bucket" / "films", ignore=lambda *_: [FOLDER])
    place = Address("s3", "bucket/films")
    if published:
        publish_catalogue(place)
    exact = search(str(place), 0.0)
    assert approximate_library(str(place)) == Approximated(1, 0, 0)
    assert approximate_library(str(place)) == Approximated(0, 1, 0)
    monkeypatch.setattr(CodedRows, "top", lambda *_: pytest.fail("all clips were compared"))
    assert search(str(place), 1.0).moments == exact.moments
    assert not list(buckets.rglob("*.ivf*"))


def test_captions_and_frames_have_one_each(tmp_path: Path) -> None:
    write_framed_index(tmp_path / "l" / "a", ("a dog runs", "a red car") * 40, captioned=True)
    assert approximate_library(tmp_path / "l") == Approximated(2, 0, 0)
    names = [path.name for path in files(tmp_path / "l")]
    assert names == ["captions.ivf", "captions.ivf.json", "frames.ivf", "frames.ivf.json"]


def test_a_library_that_cannot_be_written(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise GranAlignError("captions.ivf: cannot be written (No space left on device)")

    exact = search(library, 0.0)
    for path in files(library):
        path.unlink()
    monkeypatch.setattr("granalign_fast.library.approximate.write_durably", full)
    with pytest.raises(GranAlignError, match="No space left"):
        approximate_library(library)
    assert search(library, 0.5).moments == exact.moments
