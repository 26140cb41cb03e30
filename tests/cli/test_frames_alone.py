"""Frames alone on the command line: index without captions, search, add captions."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_schemas import check

from granalign_fast import cli
from granalign_fast.cli import progress
from granalign_fast.miniatures import MODELS
from granalign_fast.miniatures.videos import ground_truth, render_video
from granalign_fast.models import sources
from granalign_fast.pipeline import MINIATURES

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that holds a frame encoder and nothing else."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(MODELS / "clip", folder / "clip")
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, tuple[float, float]]:
    """A rendered video, a query that it shows once, and when."""
    path = tmp_path_factory.mktemp("videos") / "scenes.mp4"
    script = render_video(path, 40_007, seconds=(54.0, 60.0), frame_rate=5)
    once = (r for r in ground_truth(script, "v") if len(r["relevant_windows"]) == 1)
    record = next(once)
    return path, record["query"], tuple(record["relevant_windows"][0])


@pytest.fixture
def granalign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command, and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "INTERVAL", 3600.0)  # a slow machine writes progress

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["granalign", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        done = capsys.readouterr()
        return code, done.out, " ".join(done.err.split())

    return run


def missing_model(*_: Any) -> Path:
    raise AssertionError("a search by frames needs no sentence encoder")


def test_from_frames_alone_to_captions(
    granalign: Run,
    clip: Path,
    scenes: tuple[Path, str, tuple[float, float]],
    warm_cache: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    video, query, window = scenes
    warm_cache(tmp_path / "cache")
    # 1. Without a vision-language model and without a sentence encoder.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "resolve_model", missing_model)
        patch.setattr("granalign_fast.pipeline.resolve_model", missing_model)
        code, out, err = granalign("index", video, "--models", clip, "--out", "lib")
        assert (code, out) == (0, "indexed: lib/scenes\n")
        assert "1 of 1 indexes have no captions and serve the preset visual" in err
        code, out, _ = granalign("index", video, "--models", clip, "--out", "lib", "--json")
        assert json.loads(out)["without_captions"] == ["lib/scenes"]

        # 2. A search takes the preset visual by itself, and says what it compared.
        search = ("search", "lib", query, "--models", clip)
        code, out, err = granalign(*search, "--json")
        record = json.loads(out)
        best = record["moments"][0]
        assert (code, best["caption"], record["exists"]) == (0, None, None)
        assert abs(best["start"] - window[0]) <= 2 and abs(best["end"] - window[1]) <= 2
        assert record["warnings"] == [
            "this index has no captions: the query was compared with frames alone, and no model "
            "judged whether the video shows it"
        ]
        assert (
            granalign(*search, "--preset", "visual", "--json")[1].split('"seconds": {')[0]
            == (out.split('"seconds": {')[0])
        )
        code, out, _ = granalign(*search)
        assert code == 0 and "frame at 0:" in out and "no captions" in " ".join(out.split())
        code, out, err = granalign(*search, "--format", "srt", "--report", "page.html")
        assert code == 0 and query in out and "no captions" in err
        assert "frame at 0:" in Path("page.html").read_text()
        # The video itself, which is indexed for this search.
        again = json.loads(granalign("search", video, query, "--models", clip, "--json")[1])
        assert again["moments"] == record["moments"]

    # 3. What needs captions or a model is refused in one line.
    for more, message in {
        ("--preset", "tuned"): "lib: got an index without captions, which the preset 'tuned'",
        ("--captions-only",): "lib: got an index without captions, expected captions; leave",
        ("--preset", "recognition"): "without captions, 'visual'",
    }.items():
        code, out, err = granalign(*search, *more)
        assert (code, out) == (2, "") and message in err, err
    code, _, err = granalign("search", "lib", query)
    assert code == 2 and "embedded by a model that is not given (clip " in err
    assert "expected --models miniatures" in err

    # 4. The same command with a vision-language model adds captions.
    code, out, err = granalign("index", video, "--models", MINIATURES, "--out", "lib")
    assert (code, out, err) == (0, "indexed: lib/scenes\n", "")
    granalign("index", video, "--models", MINIATURES, "--out", "once")
    for path in Path("once/scenes").iterdir():
        assert (Path("lib/scenes") / path.name).read_bytes() == path.read_bytes(), path.name
    code, out, _ = granalign("search", "lib", query, "--models", MINIATURES, "--json")
    record = json.loads(out)
    assert code == 0 and record["moments"][0]["caption"] and record["exists"] > 0.2
    # With captions the frames can still be searched alone, without the vision-language model.
    code, out, _ = granalign(*search, "--preset", "visual", "--json")
    assert json.loads(out)["moments"][0]["caption"] and json.loads(out)["warnings"] == []
    # Without it, nothing is taken away.
    code, _, err = granalign("index", video, "--models", clip, "--out", "lib")
    assert (code, err) == (0, "")


def test_a_library_without_captions_is_searched_by_frames(
    granalign: Run, clip: Path, scenes: tuple[Path, str, tuple[float, float]], tmp_path: Path
) -> None:
    video, query, window = scenes
    other = tmp_path / "other.mp4"
    render_video(other, 40_011, seconds=(54.0, 60.0), frame_rate=5)
    code, *_ = granalign("index", video, other, "--models", clip, "--out", "both")
    assert code == 0
    search = ("search", "both", query)
    code, out, _ = granalign(*search, "--models", clip, "--json")
    answer = json.loads(out)
    check(answer, "search-library")
    best = answer["moments"][0]
    assert (code, best["vid"], best["caption"], answer["searched"]) == (0, "scenes", None, 2)
    assert abs(best["start"] - window[0]) <= 2 and abs(best["end"] - window[1]) <= 2
    code, out, _ = granalign(*search, "--models", clip)
    assert code == 0 and "scenes" in out
    code, _, err = granalign(*search)
    assert code == 2 and "embedded by a model that is not given (clip " in err
    code, _, err = granalign(*search, "--models", clip, "--preset", "tuned")
    assert code == 2 and "got no video to search (2 without captions, for the preset visual)" in err

    # The recall of the same search.
    record = {
        "qid": 1,
        "query": query,
        "vid": "scenes",
        "duration": 58,
        "relevant_windows": [window],
    }
    (tmp_path / "queries.jsonl").write_text(json.dumps(record) + "\n")
    evaluation = ("evaluate", "corpus", "queries.jsonl", "--indexes", "both", "--models", clip)
    code, out, err = granalign(
        *evaluation, "--preset", "visual", "--dataset", "qvhighlights", "--json"
    )
    assert (code, json.loads(out)["moment-R@1,IoU=0.7"]) == (0, 100.0), err


def test_indexes_and_models_that_lack_frames(
    granalign: Run, tmp_path: Path, warm_cache: Callable[[Path], Path]
) -> None:
    warm_cache(tmp_path / "cache")
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"vid": "v", "captions": ["a dog", "a car"]}\n')
    code, _, err = granalign("search", captions, "a dog", "--preset", "visual")
    assert code == 2 and "scorer 'frames': got no frame encoder" in err
    code, _, err = granalign("search", captions, "a dog", "--preset", "visual", "--models", MODELS)
    assert code == 2 and "'v': got an index of captions alone" in err
    llm = tmp_path / "models"
    shutil.copytree(MODELS / "llm", llm / "llm")
    code, _, err = granalign("index", captions, "--models", llm, "--out", "lib")
    assert code == 2 and "got no model of kind 'vlm' or 'clip'" in err
