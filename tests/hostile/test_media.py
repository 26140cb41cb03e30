"""The video of an index is where its owner says, and is compared before anything opens it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.command import Granalign
from helpers.videos import constant, render

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.index.media import find_media, with_media
from granalign_fast.index.records import FrameTable, VideoSource
from granalign_fast.output.timeline import Timeline
from granalign_fast.search.key_frames import frame_set
from granalign_fast.types import Moment, Rewrites, SearchResult


@pytest.fixture
def film(tmp_path: Path) -> Path:
    (tmp_path / "disk" / "trip").mkdir(parents=True)
    return render(tmp_path / "disk" / "trip" / "a.mp4", constant(5, 30))


def source_of(film: Path, path: str) -> VideoSource:
    return VideoSource(Path(path), film.stat().st_size, sha256_of(film))


def index_of(film: Path, path: str) -> VideoIndex:
    frames = FrameTable(np.array([0.0, 2.0, 4.0]), ("a", "b", "c"), source=source_of(film, path))
    rows = np.eye(3, 384, dtype=np.float32)
    return VideoIndex(CaptionedVideo("v", ("a dog", "a cat", "a car"), 2.0, 6.0), rows, frames)


def test_a_file_and_folders_that_hold_it(film: Path) -> None:
    source = source_of(film, "/old/disk/trip/a.mp4")
    for media in (film, film.parent, film.parents[1]):
        assert find_media(source, media) == film
    # The nearest file of that name is another one.
    shutil.move(film, film.parents[1] / "a.mp4")
    (film.parents[1] / "trip" / "a.mp4").write_bytes(b"x")
    assert find_media(source, film.parents[1]) == film.parents[1] / "a.mp4"


def test_what_is_not_the_indexed_file(film: Path, tmp_path: Path) -> None:
    source = source_of(film, "/old/a.mp4")
    other = render(tmp_path / "a.mp4", constant(5, 5))
    with pytest.raises(GranAlignError, match="got another file than the one that was indexed"):
        find_media(source, other)
    with pytest.raises(GranAlignError, match=r"got no file 'a.mp4' with the content that was ind"):
        find_media(source, tmp_path)
    captions = replace(index_of(film, "/old/a.mp4"), frames=None)
    with pytest.raises(GranAlignError, match="got an index without a video file"):
        with_media(captions, film)


def test_a_path_in_an_index_does_not_leave_the_folder(film: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    source = source_of(film, "/x/../disk/trip/a.mp4")
    with pytest.raises(GranAlignError, match="got no file"):
        find_media(source, tmp_path / "mine")
    with pytest.raises(GranAlignError, match="got no file"):
        find_media(source_of(film, f"/../{film}"), tmp_path / "mine")


def test_frames_come_from_the_media(film: Path) -> None:
    index = index_of(film, "/nowhere/a.mp4")
    with pytest.raises(GranAlignError, match=r"/nowhere/a.mp4: got no such file, .* --media"):
        frame_set(index).load([0])
    assert len(frame_set(with_media(index, film)).load([0, 1])) == 2


def test_a_timeline_has_no_path_that_the_index_chose(film: Path) -> None:
    index = index_of(film, "/home/me/secret/a.mp4")
    result = SearchResult("v", Rewrites("a dog"), (Moment(0.0, 2.0, 1.0),), np.ones(3), None, {})
    assert Timeline.of_search(index, result).media == "a.mp4"
    assert Timeline.of_search(index, result, media=film).media == film


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An index that names another file of the user, and the file that was indexed."""
    folder = tmp_path_factory.mktemp("stranger")
    film = render(folder / "a.mp4", constant(5, 30))
    secret = render(folder / "secret.mp4", constant(5, 15))
    index_of(film, str(secret)).save(folder / "index")
    return folder / "index", film


@pytest.mark.parametrize("form", ["edl", "otio", "fcpxml"])
def test_cut_lists_of_a_foreign_index(
    stranger: tuple[Path, Path], granalign: Granalign, minilm: Path, form: str
) -> None:
    if form == "otio":
        pytest.importorskip("opentimelineio")
    index, film = stranger
    words = ("search", index, "a dog", "--format", form, "--anyway", "-q")
    code, out, err = granalign(*words)
    assert code == 2 and "got another file than the one that was indexed" in err and not out
    code, out, err = granalign(*words, "--media", film)
    assert code == 0 and film.name in out and "secret" not in out, err


def test_a_table_of_a_foreign_index_opens_no_file(
    stranger: tuple[Path, Path],
    granalign: Granalign,
    minilm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[object] = []
    monkeypatch.setattr("granalign_fast.video.source.read_source", opened.append)
    code, out, _ = granalign("search", stranger[0], "a dog", "--format", "csv", "--anyway")
    assert code == 0 and out.count("\n") > 1 and not opened


def test_pictures_and_cuts_of_a_foreign_index(
    stranger: tuple[Path, Path], granalign: Granalign, minilm: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    index, film = stranger
    names = {
        "--plot": "plot.png",
        "--contact-sheet": "sheet.jpg",
        "--clip": "cut.mp4",
        "--clips": "cuts",
    }
    words = ("search", index, "a dog", "--anyway")
    for option, name in names.items():
        code, _, err = granalign(*words, option, tmp_path / name)
        assert code == 2 and "got another file than the one that was indexed" in err
    assert not list(tmp_path.iterdir())
    code, _, err = granalign(*words, "--report", tmp_path / "page.html")
    assert code == 0 and "no pictures: " in (tmp_path / "page.html").read_text()
    options = [one for option, name in names.items() for one in (option, tmp_path / name)]
    code, _, err = granalign(*words, *options, "--media", film)
    assert code == 0 and all((tmp_path / name).exists() for name in names.values()), err


def test_media_that_makes_no_sense(
    stranger: tuple[Path, Path], granalign: Granalign, tmp_path: Path
) -> None:
    index, film = stranger
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"vid": "v", "captions": ["a dog"]}\n')
    code, _, err = granalign("search", captions, "a dog", "--media", film)
    assert code == 2 and "expected an index" in err
    code, _, err = granalign("search", index, "a dog", "--media", tmp_path / "none.mp4")
    assert code == 2 and "got no such file" in err
