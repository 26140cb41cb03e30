"""A video file and a sentence to moments, through the command, with every model and without torch.

The models are random: the moments mean nothing, only the steps that lead to them do.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from helpers.ffmpeg import ffmpeg
from helpers.tiny_clip import write_tiny_export
from helpers.tiny_llm import LLAMA, write_unchecked
from helpers.tiny_vlm import PUBLISHED, write_tiny_vlm, write_unchecked_vlm
from helpers.videos import constant, render
from tokenizers import Tokenizer

from granalign_fast import cli
from granalign_fast.cli import clips as cli_clips
from granalign_fast.index import VideoIndex
from granalign_fast.video.cut_containers import FORMATS
from granalign_fast.video.frames import probe

SECONDS = 13
QUERY = "a dog runs over the road"
RECOGNISE = ("--preset", "recognition", "--anyway")
"""Random models say of every query that the video probably does not show it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, drafts = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("drafts")
    write_tiny_export(root / "clip")
    (drafts / "llm").mkdir()
    write_unchecked(drafts / "llm", LLAMA | {"max_position_embeddings": 4096}).rename(root / "llm")
    source = write_tiny_vlm(drafts / "vlm" / "source", PUBLISHED)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.save(str(source / "tokenizer.json"))
    write_unchecked_vlm(drafts / "vlm").rename(root / "vlm")
    return root


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "street.mp4"
    return render(path, constant(25, SECONDS), gop=25, bframes=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, warm_cache: Callable[[Path], Path]) -> Path:
    return warm_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def granalign(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs the command in an empty folder; what it prints, or its complaint after ``exit 2``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(*arguments: Any, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["granalign", *map(str, arguments)])
        try:
            cli.main()
            got = 0
        except SystemExit as end:
            got = int(end.code or 0)
        out, err = capsys.readouterr()
        assert got == code, err
        run.both = out, err  # type: ignore[attr-defined]
        return err if code else out

    return run


def both(granalign: Any, *arguments: Any) -> tuple[str, str]:
    """Run the command, and return what it prints on stdout and on stderr."""
    granalign(*arguments)
    out, err = granalign.both
    return str(out), str(err)


@pytest.mark.parametrize("preset", ["tuned", "paper", "recognition"])
def test_index_then_search(granalign: Any, models: Path, video: Path, preset: str) -> None:
    granalign("index", video, "--models", models, "--out", "library")
    index = VideoIndex.load("library/street")
    assert len(index.video.captions) == 7 and index.video.duration == pytest.approx(SECONDS)
    assert set(index.models) == {"sentence-encoder", "clip", "vlm"}
    found = granalign(
        "search", "library/street", QUERY, "--models", models, "--preset", preset, "--json"
    )
    record = json.loads(found)
    assert record["vid"] == "street" and len(record["saliency"]) == 7
    assert 0 <= record["exists"] <= 1
    stages = {"recognise"} if preset == "recognition" else {"rewrite", "key_frames", "aware"}
    assert stages <= set(record["seconds"])
    for moment in record["moments"]:
        assert 0 <= moment["start"] < moment["end"] <= SECONDS


def test_a_video_is_indexed_for_the_occasion(
    granalign: Any, cache: Path, models: Path, video: Path
) -> None:
    arguments = ("search", video, QUERY, "--models", models, "--json")
    first = json.loads(granalign(*arguments))
    (index,) = (cache / "granalign-fast" / "indexes").glob("*/street")
    before = index.stat().st_mtime_ns
    second = json.loads(granalign(*arguments))
    assert index.stat().st_mtime_ns == before
    assert first["moments"] == second["moments"] and first["saliency"] == second["saliency"]
    prefixes = list((cache / "granalign-fast" / "prefixes").iterdir())
    assert len(prefixes) == 7, "one a frame, of which the second search made use"


def test_what_people_do_with_moments(granalign: Any, models: Path, video: Path) -> None:
    search = ("search", video, QUERY, "--models", models, *RECOGNISE)
    moments = json.loads(granalign(*search, "--json"))["moments"]
    assert granalign(*search, "--format", "srt").count(" --> ") == len(moments)
    assert granalign(*search, "--format", "vtt").startswith("WEBVTT")
    assert granalign(*search, "--format", "ffmetadata").startswith(";FFMETADATA1")
    assert granalign(*search, "--format", "edl").startswith("TITLE:")
    assert json.loads(granalign(*search, "--format", "otio"))["OTIO_SCHEMA"].startswith("Timeline")
    assert f'name="{QUERY}"' in granalign(*search, "--format", "fcpxml")
    rows = granalign(*search, "--format", "csv").splitlines()
    assert len(rows) == len(moments) + 1 and all(str(video) in row for row in rows[1:])
    assert all(row.split(",")[4].count(":") == 3 for row in rows[1:])
    table = granalign(*search, "--clip", "best.mp4", "--plot", "street.png")
    assert "drawn in street.png" in table and Path("street.png").stat().st_size > 10_000
    best = moments[0]
    cut = probe("best.mp4").duration
    assert best["end"] - best["start"] - 0.1 <= cut <= best["end"] - best["start"] + 1.1


@pytest.mark.filterwarnings("default")
def test_a_variable_frame_rate_is_said_once(granalign: Any, models: Path) -> None:
    times = [Fraction(n + n // 3, 25) for n in range(150)]
    render(Path("phone.mp4"), times)
    granalign("index", "phone.mp4", "--models", models, "--out", "library")
    search = ("search", "library/phone", QUERY, "--models", models, *RECOGNISE)
    for form in ("edl", "otio", "fcpxml", "csv"):
        granalign(*search, "--format", form)
        (line,) = [line for line in granalign.both[1].splitlines() if "variable" in line]
        assert line.startswith("granalign: warning: ") and line.endswith(
            "phone.mp4: variable frame rate, frames last 40.0 to 80.0 ms; time codes count 25 "
            "frames per second"
        )
    granalign(*search, "--format", "srt")
    assert "variable" not in granalign.both[1]
    Path("phone.mp4").unlink()
    rows = granalign(*search, "--format", "csv").splitlines()
    assert len(rows) > 1 and all(",,," in row for row in rows[1:])


def test_a_table_of_captions_alone(granalign: Any) -> None:
    Path("words.jsonl").write_text('{"vid": "a", "captions": ["a dog, brown", "a cat"]}\n')
    text = granalign("search", "words.jsonl", "a dog, brown", "--format", "csv")
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["rank"] for row in rows] == [str(n + 1) for n in range(len(rows))] and rows
    assert rows[0]["caption"] == "a dog, brown"
    for row in rows:
        assert (row["query"], row["source"]) == ("a dog, brown", "a")
        assert row["start_timecode"] == row["end_timecode"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "{video}", QUERY), "got a video and no models"),
        (("search", "nothing.mp4", QUERY), "no such file or folder"),
        (("search", "{video}", " ", "--models", "{models}"), "query: got ' '"),
        (("search", "{video}", QUERY, "--models", "nowhere"), "nowhere: no such folder"),
        (("search", "{models}/clip", QUERY), "expected 'video-index'"),
        (("search", "{video}", QUERY, "--format", "pdf"), "--format: got 'pdf'"),
        (("search", "text.mp4", QUERY, "--models", "{models}"), "text.mp4: "),
        (("index", "{video}", "--models", "empty", "--out", "o"), "no exported model"),
        (("search", "words.jsonl", "dog", "--clip", "x.mp4"), "got captions alone"),
        (
            ("search", "own.mp4", QUERY, "--models", "{models}", "--clip", "own.mp4"),
            "this command reads",
        ),
        (
            ("search", "own.mp4", QUERY, "--models", "{models}", "--clip", "link.mkv"),
            "this command reads",
        ),
        (("search", "gone.mp4", QUERY, "--models", "{models}", "--clip", "x.mp4"), "no such file"),
        (("search", "words.jsonl", "dog", "--clips", "x"), "--clips: got captions alone"),
    ],
)
def test_bad_calls(
    granalign: Any, models: Path, video: Path, arguments: tuple[str, ...], message: str
) -> None:
    Path("empty").mkdir()
    Path("text.mp4").write_text("not a video")
    shutil.copy(video, "own.mp4")
    Path("link.mkv").symlink_to("own.mp4")
    Path("words.jsonl").write_text('{"vid": "a", "captions": ["a dog", "a cat"]}\n')
    formatted = [argument.format(video=video, models=models) for argument in arguments]
    error = granalign(*formatted, code=2)
    assert error.count("\n") == 1 and message in error
    assert Path("own.mp4").read_bytes() == video.read_bytes()


def test_an_index_is_not_cut_over_its_video(granalign: Any, models: Path, video: Path) -> None:
    shutil.copy(video, "own.mp4")
    granalign("index", "own.mp4", "--models", models, "--out", "library")
    search = ("search", "library/own", QUERY, "--models", models)
    assert "got a file that this command reads" in granalign(*search, "--clip", "own.mp4", code=2)
    assert Path("own.mp4").read_bytes() == video.read_bytes()
    Path("own.mp4").unlink()
    for wish in (("--clip", "x.mp4"), ("--format", "edl")):
        assert "own.mp4: got no such file, expected the" in granalign(*search, *wish, code=2)


@pytest.fixture
def still(tmp_path: Path) -> Path:
    """A video whose only key frame is the first, with two sound tracks, the second unreadable."""
    path, silent = tmp_path / "still.mov", tmp_path / "silent.mp4"
    render(silent, constant(25, SECONDS), gop=10_000, bframes=2)
    tone = ("-f", "lavfi", "-i", f"sine=f=300:d={SECONDS}")
    maps = ("-map", "0:v", "-map", "1:a", "-map", "2:a")
    ffmpeg("-i", silent, *tone, *tone, *maps, "-c:v", "copy", "-c:a", "aac", path)
    data = path.read_bytes()
    entry = data.rindex(b"stsd")
    spoilt = data[entry:].replace(b"mp4a", b"apac").replace(b"esds", b"dapa")
    path.write_bytes(data[:entry] + spoilt)
    return path


def test_a_cut_says_where_it_begins_and_what_it_lacks(
    granalign: Any, models: Path, still: Path
) -> None:
    many = ("--overlapping", "--top", "20")
    search = ("search", still, QUERY, "--models", models, *RECOGNISE, *many)
    moments = json.loads(granalign(*search, "--json"))["moments"]
    late = next((rank for rank, one in enumerate(moments, 1) if one["start"] > 0), None)
    assert late is not None, "the random models find some moment that begins late"
    start, end = moments[late - 1]["start"], moments[late - 1]["end"]
    name = f"{late:02}-{start:.1f}-{end:.1f}.mov"
    shown, said = both(granalign, *search, "--clips", "cuts")
    files = sorted(one.name for one in Path("cuts").iterdir())
    assert len(files) == len(moments) and name in files
    assert [line for line in shown.splitlines() if line.startswith("cuts/")] == [
        f"cuts/{file}" for file in files
    ]
    assert (
        f"s of the video; begins at 0.0 s, at the key frame before {start:.1f} s; "
        f"--exact begins there\n" in said
    )
    assert f"warning: cuts/{name}: left out stream 2 (audio, unknown codec): FFmpeg" in said
    shown, said = both(granalign, *search, "--clips", "cuts", "--exact")
    assert "key frame" not in said
    assert probe(Path("cuts") / name).duration == pytest.approx(end - start, abs=0.05)
    shown, said = both(granalign, *search, "--json", "--clips", "cuts")
    assert len(json.loads(shown)["moments"]) == len(moments) and f"cuts/{name}: 0.00 to" in said


def test_one_cut_that_fails_does_not_cost_the_others(
    granalign: Any, models: Path, video: Path
) -> None:
    search = ("search", video, QUERY, "--models", models, *RECOGNISE, "--overlapping")
    granalign(*search, "--clips", "cuts")
    files = sorted(Path("cuts").iterdir())
    assert len(files) > 1
    first, *others = files
    for file in others:
        file.write_bytes(b"old")
    first.unlink()
    first.mkdir()
    said = granalign(*search, "--clips", "cuts", code=1)
    assert f"granalign: error: {first}: cannot be written" in said
    assert all(probe(file).duration > 1 for file in others)
    assert sorted(Path("cuts").iterdir()) == files


def test_what_cannot_be_cut_is_known_before_the_search(
    granalign: Any, models: Path, tmp_path: Path
) -> None:
    vp8 = render(tmp_path / "vp8.webm", constant(25, 4), codec="libvpx")
    avi = tmp_path / "b.avi"
    ordered = render(tmp_path / "b.mp4", constant(25, 4), bframes=2)
    ffmpeg("-i", ordered, "-c", "copy", avi)
    (tmp_path / "file").touch()
    for source, options, message in (
        (vp8, ("--clip", "x.mp4"), "does not take the vp8 video of"),
        (vp8, ("--clip", "x.mp4"), "ends in .mkv or .webm, or use --exact"),
        (avi, ("--clips", "cuts"), "no presentation times"),
        (avi, ("--clip", "x.mkv"), "cut it with --exact"),
        (vp8, ("--clips", "file"), "--clips file: got a file, expected a folder"),
        (vp8, ("--clips", "no/cuts"), "its parent folder does not exist"),
        (vp8, ("--exact",), "--exact: got no file to cut, expected --clip or --clips"),
    ):
        # The models are not there: a search that had begun would miss them.
        error = granalign("search", source, QUERY, "--models", "nowhere", *options, code=2)
        assert message in error and error.count("\n") == 1
    for source, options in ((vp8, ("--clip", "x.mp4")), (avi, ("--clips", "cuts"))):
        granalign("search", source, QUERY, "--models", models, *options, "--exact", "--anyway")
    assert probe("x.mp4").codec == "h264"
    assert all(file.suffix == ".mkv" for file in Path("cuts").iterdir())


def test_clips_that_the_command_takes_are_those_that_can_be_cut() -> None:
    assert set(cli_clips.SUFFIXES) == set(FORMATS)


def test_the_whole_search_needs_no_torch(models: Path, video: Path, cache: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'optimum'): sys.modules[name] = None\n"
        "from granalign_fast.cli import main\n"
        f"sys.argv = ['granalign', 'search', {str(video)!r}, {QUERY!r}, '--models', "
        f"{str(models)!r}, '--json']\n"
        "main()\n"
    )
    environment = {"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    assert json.loads(done.stdout)["moments"]
