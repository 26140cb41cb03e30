"""The search of a library by frames, and by frames and captions together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fakes import BagOfWords, SeenWords
from helpers.libraries import write_framed_index, write_index

from granalign_fast.config import PRESETS
from granalign_fast.library import Library
from granalign_fast.library import first_stage as module
from granalign_fast.library.catalogue import update_catalogue
from granalign_fast.search.retriever import Retriever
from granalign_fast.types import Rewrites

PLAIN = "a man sits"


def texts(clips: int, shown: str, begin: int, end: int) -> tuple[str, ...]:
    return tuple(shown if begin <= clip < end else PLAIN for clip in range(clips))


STREET, YARD = texts(60, "a red car", 10, 16), texts(40, "two dogs run", 20, 26)


class Unused:
    """A sentence encoder that no search by frames may call."""

    def encode(self, *_: object, **__: object) -> None:
        raise AssertionError("captions are not compared")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos with frames, one of them with captions, and one of captions alone."""
    folder = tmp_path_factory.mktemp("library")
    write_framed_index(folder / "street", STREET, captioned=False)
    write_framed_index(folder / "yard", YARD, captioned=True)
    write_index(folder / "bare", 30, seed=1, captions=texts(30, "a red car", 3, 9))
    return folder


def by_frames() -> Retriever:
    return Retriever(Unused(), "visual", frame_encoder=SeenWords())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "vid", "start", "end", "caption"),
    [("a red car", "street", 20, 32, None), ("two dogs run", "yard", 40, 52, "two dogs run")],
)
def test_frames_alone_find_video_and_moment(
    folder: Path, query: str, vid: str, start: float, end: float, caption: str | None
) -> None:
    library = Library.open(folder, by_frames())
    first, *_, last = library.stages(query)
    for result, refined in ((first, False), (last, True)):
        best = result.moments[0]
        assert (best.vid, best.refined, best.caption) == (vid, refined, caption)
        assert abs(best.start - start) <= 4
        assert abs(best.end - end) <= 4
    assert (last.searched, last.left_out) == (2, {"without embeddings of frames": 1})
    assert last.errors == {}
    assert all(hit.words == 0 for hit in last.videos)


def test_frames_of_another_model_are_left_out(folder: Path) -> None:
    class Other(SeenWords):
        fingerprint = "other"

    retriever = Retriever(Unused(), "visual", frame_encoder=Other())  # type: ignore[arg-type]
    result = Library.open(folder, retriever).search("a red car")
    assert result.searched == 0
    assert result.left_out == {
        "frames embedded by another model": 2,
        "without embeddings of frames": 1,
    }


def test_captions_leave_out_a_video_without(folder: Path) -> None:
    result = Library.open(folder, Retriever(BagOfWords())).search("a red car")
    assert {hit.video.vid for hit in result.videos} == {"yard", "bare"}
    assert result.left_out == {"without captions, for the preset visual": 1}


def test_a_video_without_captions_gets_them_later(tmp_path: Path) -> None:
    write_framed_index(tmp_path / "v", STREET, captioned=False)
    assert Library.open(tmp_path, Retriever(BagOfWords())).search("a red car").searched == 0
    for path in (tmp_path / "v").iterdir():
        path.unlink()
    (tmp_path / "v").rmdir()
    write_framed_index(tmp_path / "v", STREET, captioned=True)
    library = Library.open(tmp_path, Retriever(BagOfWords()))
    assert library.search("a red car").moments[0].caption == "a red car"


def test_segments_without_captions_are_merged(tmp_path: Path) -> None:
    for number in range(5):
        write_framed_index(tmp_path / f"v{number}", STREET, captioned=False)
        catalogue = update_catalogue(tmp_path)
    assert len(catalogue.segments) < 5
    for segment, numbers in zip(catalogue.segments, catalogue.live, strict=True):
        for rows in segment.rows(numbers):
            assert rows.captions == ()
            assert rows.embeddings.shape == (60, 0)
            assert rows.frames is not None
            np.testing.assert_array_equal(
                rows.frames, SeenWords().encode_texts(STREET).astype(np.float16)
            )


def test_both_kinds_of_evidence_add_up(folder: Path) -> None:
    """Against plain loops; a video without frames gets the mean of what the others have."""
    config = replace(PRESETS["tuned"], first_stage_frames=0.5)
    query = Rewrites("a red car", ("red", "dogs run"))
    plain = {
        hit.video.vid: hit
        for hit in Library.open(folder, Retriever(BagOfWords())).search(query, refine=0).videos
    }
    both = Library.open(folder, Retriever(BagOfWords(), config, frame_encoder=SeenWords()))
    fused = {hit.video.vid: hit for hit in both.search(query, refine=0).videos}
    rows = SeenWords().encode_texts([query.query, *query.simplified])
    frames = SeenWords().encode_texts(YARD).astype(np.float16).astype(np.float32)
    best = [np.sort(frames @ row)[-5:].mean() for row in rows]
    added = 0.5 * (3 * best[0] + best[1] + best[2]) / 5
    for vid in ("yard", "bare"):
        assert fused[vid].score == pytest.approx(plain[vid].score + added, abs=1e-4)
        assert fused[vid].clip == plain[vid].clip


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_candidates_of_many_clips_come_from_both_spaces(
    folder: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    config = replace(PRESETS["tuned"], first_stage_frames=weight)
    for retriever in (Retriever(BagOfWords(), config, frame_encoder=SeenWords()), by_frames()):
        library = Library.open(folder, retriever)
        every = library.search("two dogs run", refine=0)
        with monkeypatch.context() as patch:
            patch.setattr(module, "ALL_COMPARED", 0)
            assert library.search("two dogs run", refine=0).moments == every.moments
