"""Captions of ours and of VTG-GPT, and a caption too many at a video's end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from helpers.annotations import write

from granalign_fast.cli.search_sources import holds_captions
from granalign_fast.datasets import fit_captions, read_captions, too_many
from granalign_fast.datasets.captions import caption_record
from granalign_fast.errors import GranAlignError
from granalign_fast.index import CaptionedVideo
from granalign_fast.jsonl import write_jsonl

TEXTS = ["a door", "a man", "a cat"]


def folder(path: Path) -> Path:
    """As VTG-GPT's captions: one file a video, one line a clip."""
    path.mkdir()
    for vid in ("b_0.0_6.0", "a_0.0_6.0"):
        lines = [{"moment": i, "description": f"{vid} {text}"} for i, text in enumerate(TEXTS)]
        write(path / f"{vid}.jsonl", lines)
    return path


def test_a_folder_of_one_file_a_video(tmp_path: Path) -> None:
    videos = read_captions(folder(tmp_path / "val"))
    assert list(videos) == ["a_0.0_6.0", "b_0.0_6.0"]
    expected = tuple(f"a_0.0_6.0 {text}" for text in TEXTS)
    assert videos["a_0.0_6.0"] == CaptionedVideo("a_0.0_6.0", expected)
    write_jsonl(tmp_path / "ours.jsonl", map(caption_record, videos.values()))
    assert read_captions(tmp_path / "ours.jsonl") == videos


def test_our_own_form_keeps_lengths(tmp_path: Path) -> None:
    video = CaptionedVideo("a", ("x", "y"), 3.0, 5.5)
    write_jsonl(tmp_path / "a.jsonl", [caption_record(video)])
    assert read_captions(tmp_path / "a.jsonl") == {"a": video}


def test_a_caption_too_many_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        {"vid": "a", "captions": TEXTS, "duration": 4},
        {"vid": "b", "captions": TEXTS, "duration": 4.1},
        {"vid": "c", "captions": TEXTS},
    ]
    with caplog.at_level(logging.WARNING):
        videos = read_captions(write(tmp_path / "a.jsonl", lines))
    assert [len(video.captions) for video in videos.values()] == [2, 3, 3]
    assert "one caption more than clips in 1 video;" in caplog.text
    fitted, shortened = fit_captions(videos, {"b": 4.1, "c": 3.5})
    assert [len(video.captions) for video in fitted.values()] == [2, 3, 2]
    assert [video.duration for video in fitted.values()] == [4, 4.1, 3.5]
    assert shortened == ("c",)
    assert too_many([str(i) for i in range(9)]).endswith("0, 1, 2, 3, 4 and 4 more")


def test_two_captions_too_many_are_an_error(tmp_path: Path) -> None:
    lines = [{"vid": "a", "captions": TEXTS, "duration": 2}]
    with pytest.raises(GranAlignError, match=r"a\.jsonl:1: .* 3 clips .* ends at 2 s"):
        read_captions(write(tmp_path / "a.jsonl", lines))
    videos = {"a": CaptionedVideo("a", tuple(TEXTS))}
    with pytest.raises(GranAlignError, match="ends at 2 s"):
        fit_captions(videos, {"a": 2})


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ([{"moment": 0, "text": "a"}], "b.jsonl:1: key 'description' is missing"),
        ([{"moment": 1, "description": "a"}], "b.jsonl:1: moment: got 1, expected 0"),
        ([{"description": "a"}, {"description": 3}], "b.jsonl:2: description: got 3"),
        ("{", "b.jsonl:1: not JSON"),
    ],
)
def test_a_wrong_file_in_a_folder(tmp_path: Path, lines: object, part: str) -> None:
    write(folder(tmp_path / "val") / "b.jsonl", lines)
    with pytest.raises(GranAlignError) as error:
        read_captions(tmp_path / "val")
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_folders(tmp_path: Path) -> None:
    folder(tmp_path / "val")
    with pytest.raises(GranAlignError, match=r"has no files of captions, .* such as .*val$"):
        read_captions(tmp_path)


def test_vids_do_not_repeat(tmp_path: Path) -> None:
    lines = [{"vid": "a", "captions": ["x"]}] * 2
    with pytest.raises(GranAlignError, match=r"a:2: vid 'a' repeats"):
        read_captions(write(tmp_path / "a", lines))


def test_half_a_character_is_named_with_its_line(tmp_path: Path) -> None:
    """JSON can write half of a surrogate pair, which no model can read."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"vid": "a", "captions": ["x"]}\n{"vid": "b", "captions": ["x", "\\ud800"]}\n')
    with pytest.raises(GranAlignError, match=r"a\.jsonl:2: caption 1 of 'b': .* half of a surr"):
        read_captions(path)


@pytest.mark.parametrize(
    ("line", "got"), [("[1]", "a list"), ("3", "3"), ("null", "None"), ('"x"', "'x'")]
)
def test_a_line_that_is_no_object(tmp_path: Path, line: str, got: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(GranAlignError, match=rf"a\.jsonl:1: got {got}, expected a JSON object"):
        read_captions(path)


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.json", "a.Jsonl.GZ"])
def test_names_of_caption_files(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / name, [{"vid": "a", "captions": TEXTS}])
    assert holds_captions(tmp_path / name)
    assert read_captions(tmp_path / name)["a"].captions == tuple(TEXTS)
