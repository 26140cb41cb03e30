"""`granalign search LIBRARY QUERY`, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.videos import constant, render
from test_schemas import check

from granalign_fast import CaptionedVideo, MomentRetriever, SentenceEncoder
from granalign_fast.cli.app import app
from granalign_fast.errors import GranAlignError
from granalign_fast.library import approximation, first_stage
from granalign_fast.library.approximate import ApproximateIndex
from granalign_fast.library.approximation import approximate_library
from granalign_fast.library.upkeep import tag_videos
from granalign_fast.miniatures.videos import render_video
from granalign_fast.pipeline import open_models

SCENES = {
    "street": ["a man sits on a bench"] * 8 + ["a red car on the road"] * 4 + ["an empty road"] * 8,
    "yard": ["a green lawn"] * 5 + ["two dogs play with a ball"] * 5,
    "kitchen": ["a woman cuts onions"] * 9,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    folder = tmp_path_factory.mktemp("library")
    retriever = MomentRetriever(SentenceEncoder(minilm))
    for name, captions in SCENES.items():
        retriever.index(CaptionedVideo(name, tuple(captions))).save(folder / name)
    tag_videos(folder, ["yard"], ["trip"])
    return folder


def run(capsys: pytest.CaptureFixture[str], minilm: Path, *words: object) -> str:
    """Run a search that ends well; return its stdout."""
    capsys.readouterr()
    arguments = ["search", *map(str, words), "--encoder", str(minilm)]
    with pytest.raises(SystemExit) as end:
        typer.main.get_command(app)(arguments)
    assert not end.value.code
    return capsys.readouterr().out


def test_all_videos_are_searched(
    library: Path, minilm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json.loads(run(capsys, minilm, library, "a vehicle drives by", "--json", "--refine=2"))
    check(answer, "search-library")
    assert (answer["searched"], answer["complete"], answer["warnings"]) == (3, True, [])
    assert answer["probably_absent"] is None
    best = answer["moments"][0]
    assert (best["vid"], best["refined"], best["caption"]) == (
        "street",
        True,
        "a red car on the road",
    )
    assert abs(best["start"] - 16) <= 2
    assert [hit["refined"] for hit in answer["videos"]] == [True, True, False]

    table = run(capsys, minilm, library, "a vehicle drives by", "--refine=0")
    assert "a vehicle drives by  (3 videos)" in table
    assert "* by the first stage alone" in table
    assert "--vid street" in table
    table = run(capsys, minilm, library, "dogs", "--tag=trip")
    assert "dogs  (1 video that the filters choose)" in table
    assert "street" not in table


def test_a_bucket_can_be_named_as_the_media(
    library: Path, minilm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (library, "a vehicle drives by", "--json")
    expected = json.loads(run(capsys, minilm, *words))["moments"]
    found = json.loads(run(capsys, minilm, *words, "--media=s3://bucket"))
    assert found["moments"] == expected
    with pytest.raises(GranAlignError, match=r"expected a folder for a library, or s3://\.\.\."):
        arguments = ["search", *map(str, words), "--encoder", str(minilm), "--media=/nowhere"]
        typer.main.get_command(app)(arguments)


def test_the_miniatures_know_rendered_scenes_alone(
    minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a search of one video: what means nothing, and what is probably not there, is said."""
    render_video(tmp_path / "scenes.mp4", 40_007, seconds=(54.0, 60.0), frame_rate=5)
    render(tmp_path / "white.mp4", constant(5, 40))
    models = open_models("miniatures", prefix_gib=0.0)
    models.index([tmp_path / "scenes.mp4", tmp_path / "white.mp4"], tmp_path / "library")
    words = (tmp_path / "library", "a brown dog runs after a ball", "--models=miniatures")
    answer = json.loads(run(capsys, minilm, *words, "--json"))
    check(answer, "search-library")
    (warning,) = answer["warnings"]
    assert warning.startswith("'white': the miniatures know rendered scenes of coloured shapes")
    table = " ".join(run(capsys, minilm, *words).split())
    absent = "probably in none of the videos (2 videos judged by a model)"
    assert answer["probably_absent"] == (absent in table)
    assert "warning: 'white': the miniatures know" in table
    words = (*words, "--video=white", "--json")
    answer = json.loads(run(capsys, minilm, *words))
    assert answer["probably_absent"] and len(answer["warnings"]) == 1


def test_a_share_of_an_approximate_index_is_read(
    library: Path,
    minilm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pytest.importorskip("faiss", reason="the extra [approximate]")
    for module in (first_stage, approximation):
        monkeypatch.setattr(module, "ALL_COMPARED", 0)
    shutil.copytree(library, tmp_path / "copy")
    approximate_library(tmp_path / "copy")
    read: list[float] = []
    real = ApproximateIndex.nearest
    monkeypatch.setattr(
        ApproximateIndex,
        "nearest",
        lambda index, *rest: (read.append(rest[2]), real(index, *rest))[1],
    )
    words = (tmp_path / "copy", "a vehicle drives by", "--json")
    every = json.loads(run(capsys, minilm, *words))
    assert not read
    answer = json.loads(run(capsys, minilm, *words, "--approximate=1"))
    assert read == [1.0]
    assert answer["moments"] == every["moments"]


def test_one_video_of_it_is_searched_as_before(
    library: Path, minilm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ("--captions-only", "--json")
    answer = json.loads(run(capsys, minilm, library / "yard", "dogs", *alone))
    check(answer, "search")
    assert answer["vid"] == "yard"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("", "--clip=a.mp4"), "--clip: got a library, expected one video; name it with --vid"),
        (("", "--format=srt"), "--format srt: got a library"),
        (("", "--after=soon"), "after: got 'soon', expected a date"),
        (("", "--tag=none"), r"got no video to search \(3 not chosen by the filters\)"),
        (("yard", "--approximate=0.1"), "--min-length and --approximate; leave them out"),
        (("yard", "--tag=trip"), "yard: got one video, expected a library for --budget, --video"),
    ],
)
def test_what_cannot_be_done_is_refused(
    library: Path, minilm: Path, words: tuple[Any, ...], message: str
) -> None:
    source, *options = words
    arguments = ["search", str(library / source), "dogs", "--encoder", str(minilm), *options]
    with pytest.raises(GranAlignError, match=message):
        typer.main.get_command(app)(arguments)
