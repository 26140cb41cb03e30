"""Clips of several frames on the command line: indexing, and searching with the preset `reze`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Granalign, runner
from helpers.tiny_clip import write_tiny_export
from helpers.tiny_vlm import write_tiny_vlm, write_unchecked_vlm
from helpers.videos import constant, render
from tokenizers import Tokenizer

from granalign_fast.cli.evaluate_sources import open_source
from granalign_fast.config import PRESETS
from granalign_fast.index import VideoIndex
from granalign_fast.output.frames import clip_frames
from granalign_fast.video.frames import read_clips

MODELS = "miniatures"


@pytest.fixture
def granalign(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Granalign:
    return runner(capsys, monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, warm_cache: Callable[[Path], Path]) -> Path:
    return warm_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("videos") / "street.mp4", constant(25, 10.4))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model and a frame encoder with random weights."""
    root, drafts = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("drafts")
    write_tiny_export(root / "clip")
    source = write_tiny_vlm(drafts / "source")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(source / "tokenizer.json"))
    write_unchecked_vlm(drafts).rename(root / "vlm")
    return root


@pytest.mark.parametrize("number", ["3", "0", "7"])
def test_other_numbers_are_refused(
    granalign: Granalign, video: Path, models: Path, tmp_path: Path, number: str
) -> None:
    code, _, err = granalign(
        "index", video, "--out", tmp_path / "out", "--models", models, "--frames-per-clip", number
    )
    assert code == 2 and "expected one of: 1, 2, 4, 6" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_models_of_single_frames_are_refused(
    granalign: Granalign, video: Path, tmp_path: Path
) -> None:
    code, _, err = granalign(
        "index", video, "--out", tmp_path / "out", "--models", MODELS, "--frames-per-clip", "6"
    )
    assert code == 2 and "got clips of 6, expected one of: 1" in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_video_is_searched_in_the_clips_of_its_preset(
    granalign: Granalign, video: Path, models: Path, tmp_path: Path
) -> None:
    index = tmp_path / "out"
    settings = ("--clip-seconds", "3", "--frames-per-clip", "6")
    code, _, err = granalign("index", video, "--out", index, "--models", models, *settings)
    assert code == 0, err
    loaded = VideoIndex.load(index / "street")
    assert (loaded.video.clip_seconds, loaded.frames_per_clip, loaded.video.clips) == (3.0, 6, 4)

    def search(source: Path, *options: str) -> dict[str, Any]:
        code, out, err = granalign(
            "search", source, "a dog", "--models", models, "--json", *options
        )
        assert code == 0, err
        answer: dict[str, Any] = json.loads(out)
        return answer

    reze = search(index, "--preset", "reze", "--anyway")
    assert not [text for text in reze["warnings"] if "clips of" in text]
    assert reze["clip_seconds"] == 3.0 and len(reze["saliency"]) == 4
    # The video itself is indexed in these clips too: the answer is the same.
    assert search(video, "--preset", "reze", "--anyway")["moments"] == reze["moments"]
    # An index of other clips is searched with a warning.
    shutil.rmtree(index)
    assert granalign("index", video, "--out", index, "--models", models)[0] == 0
    (warning,) = [
        t for t in search(index, "--preset", "reze", "--anyway")["warnings"] if "made" in t
    ]
    assert "clips of 3 s with 6 frames" in warning and "clips of 2 s with 1" in warning


def test_pictures_show_the_middle_frame_of_a_clip(
    granalign: Granalign, video: Path, models: Path, tmp_path: Path
) -> None:
    index, report, sheet = tmp_path / "out", tmp_path / "r.html", tmp_path / "c.png"
    settings = ("--clip-seconds", "3", "--frames-per-clip", "6")
    assert granalign("index", video, "--out", index, "--models", models, *settings)[0] == 0
    drawn = ("--report", report, "--contact-sheet", sheet, "--plot", tmp_path / "p.png")
    code, _, err = granalign(
        "search", index, "a dog", "--models", models, "--preset", "reze", "--anyway", *drawn
    )
    assert code == 0, err
    assert "data:image" in report.read_text("utf-8")
    loaded = VideoIndex.load(index / "street")
    assert loaded.frames is not None
    # The fourth of six frames of the second clip, 3 to 6 s, is the one shown at 4.75 s.
    assert loaded.frames.pictured_at(1) == pytest.approx(4.72, abs=0.05)
    (picture,) = clip_frames(loaded, [1])
    (frame,) = read_clips(video, [47], clip_seconds=0.1)  # its middle is 4.75 s
    assert np.array_equal(picture, frame)


def test_an_evaluation_indexes_in_the_clips_of_its_preset(
    video: Path, models: Path, tmp_path: Path
) -> None:
    from granalign_fast.pipeline import open_models

    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(video, folder / "street.mp4")
    opened = open_models(models, prefix_gib=0)
    for preset, name, form in (
        ("reze", "videos-indexes-3s-6", (3.0, 6)),
        ("tuned", "videos-indexes", (2.0, 1)),
    ):
        source = open_source(None, folder, None, opened, None, config=PRESETS[preset], hidden=True)
        (index,) = source.open(["street"], {}).videos.values()
        assert isinstance(index, VideoIndex) and (tmp_path / name / "street").is_dir()
        assert (index.video.clip_seconds, index.frames_per_clip) == form
