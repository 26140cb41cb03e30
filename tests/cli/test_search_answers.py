"""The answer of a search as people read it: distinct moments, absence, and one list of warnings."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Granalign, SharedModels, runner
from helpers.ffmpeg import ffmpeg
from helpers.videos import constant, read, render
from PIL import Image

from granalign_fast import CaptionedVideo, Moment, SearchResult, VideoIndex
from granalign_fast.cli import search_outputs
from granalign_fast.files import sha256_of
from granalign_fast.index.records import FrameTable, VideoSource
from granalign_fast.miniatures.videos import render_video
from granalign_fast.output import contact_sheet, filmstrip
from granalign_fast.pipeline import MINIATURES, open_models

SHOWN = "an inky delta on a salmon surface"
ABSENT = "a sable circle and tangerine blocks over a pink backdrop"
MODELS = ("--models", MINIATURES)
EXPORTS = ("srt", "vtt", "ffmetadata", "edl", "otio", "fcpxml", "csv")
ABSENT_LINE = re.compile(r"probably not in this video \(shown at all: \d+% likely\)")
WORDS = "the miniatures know rendered scenes"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, warm_cache: Callable[[Path], Path]) -> Path:
    return warm_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Indexes by the miniatures, of a video that they rendered and of one of the world."""
    folder = tmp_path_factory.mktemp("library")
    render_video(folder / "scenes.mp4", 7, seconds=(60.0, 66.0), frame_rate=5)
    render(folder / "street.mp4", constant(5, 12), gop=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        open_models(MINIATURES).index([folder / "scenes.mp4", folder / "street.mp4"], folder)
    return folder


@pytest.fixture(scope="module")
def shared() -> SharedModels:
    return SharedModels()


@pytest.fixture
def granalign(
    tmp_path: Path,
    cache: Path,
    shared: SharedModels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Granalign:
    """Runs the command in an empty folder, and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    shared.use(monkeypatch)
    return runner(capsys, monkeypatch)


def found(run: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = run
    assert code == 0 and err == "", err
    return json.loads(out)


def spans(record: dict[str, Any]) -> list[tuple[float, float]]:
    return [(one["start"], one["end"]) for one in record["moments"]]


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / min(one[1] - one[0], other[1] - other[0])


def test_every_output_shows_the_same_distinct_moments(granalign: Granalign, library: Path) -> None:
    search = ("search", library / "scenes", SHOWN, *MODELS)
    record = found(granalign(*search, "--json"))
    moments = spans(record)
    assert record["list"] == "distinct" and len(moments) > 2
    assert all(overlap(a, b) <= 0.3 for a, b in itertools.combinations(moments, 2))
    ranked = found(granalign(*search, "--json", "--overlapping"))
    assert ranked["list"] == "overlapping" and len(ranked["moments"]) == 5
    assert any(overlap(a, b) > 0.3 for a, b in itertools.combinations(spans(ranked), 2))
    assert ranked["saliency"] == record["saliency"] and ranked["moments"][0] == record["moments"][0]

    code, out, _ = granalign(
        *search,
        "--contact-sheet=sheet.png",
        "--report=page.html",
        "--plot=plot.svg",
        "--clips=cuts",
    )
    assert code == 0 and "fewer moments are distinct than asked for" in out
    assert [line for line in out.splitlines() if line.startswith("drawn in ")] == [
        f"drawn in {name}" for name in ("plot.svg", "sheet.png", "page.html")
    ]
    starts = [f"{int(start) // 60}:{start % 60:04.1f}" for start, _ in moments]
    rows = re.findall(r"^│ (\d:\d\d\.\d) │", out, re.MULTILINE)
    assert rows == starts
    cuts = sorted(path.name for path in Path("cuts").iterdir())
    assert cuts == [f"{n:02}-{a:.1f}-{b:.1f}.mp4" for n, (a, b) in enumerate(moments, 1)]
    page = Path("page.html").read_text(encoding="utf-8")
    assert re.findall(r"<span>(\d:\d\d\.\d) – ", page) == starts
    assert page.count('<img src="data:image/jpeg;base64,') == len(moments)
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 1000
    assert Path("plot.svg").read_text(encoding="utf-8").count("<image ") == 2, "strip and moments"

    texts = {form: granalign(*search, "--format", form)[1] for form in EXPORTS}
    assert texts["srt"].count(" --> ") == texts["vtt"].count(" --> ") == len(moments)
    assert texts["ffmetadata"].count("[CHAPTER]") == len(moments)
    assert texts["edl"].count("FROM CLIP NAME") == len(moments)
    assert texts["otio"].count('"Clip.') == texts["fcpxml"].count("<asset-clip ") == len(moments)
    rows_of_csv = list(csv.DictReader(texts["csv"].splitlines()))
    assert [(float(row["start"]), float(row["end"])) for row in rows_of_csv] == moments
    overlapping = granalign(*search, "--format=csv", "--overlapping")[1]
    assert len(list(csv.DictReader(overlapping.splitlines()))) == 5


class TestAbsence:
    def test_it_is_said_first_and_nothing_is_cut(self, granalign: Granalign, library: Path) -> None:
        search = ("search", library / "scenes", ABSENT, *MODELS)
        record = found(granalign(*search, "--json"))
        assert record["probably_absent"] is True and record["exists"] < 0.2
        assert next(iter(record)) == "probably_absent" and record["moments"]
        code, out, err = granalign(*search)
        assert (code, err) == (0, "") and ABSENT_LINE.match(out)
        pictures = ("--contact-sheet=a.png", "--report=a.html", "--plot=a.svg")
        code, out, err = granalign(*search, *pictures, "--clip=a.mp4", "--clips=cuts")
        assert code == 1 and ABSENT_LINE.match(out)
        assert err.count("\n") == 1
        assert err.startswith("granalign: error: --clip, --clips: nothing written, because the ")
        assert sorted(path.name for path in Path().iterdir()) == ["a.html", "a.png", "a.svg"]
        assert "Probably not in this video" in Path("a.html").read_text(encoding="utf-8")
        code, out, err = granalign(*search, "--clip=a.mp4", "--clips=cuts", "--anyway")
        assert code == 0 and Path("a.mp4").is_file() and any(Path("cuts").iterdir())
        assert ABSENT_LINE.match(out)

    @pytest.mark.parametrize("form", EXPORTS)
    def test_no_export(self, form: str, granalign: Granalign, library: Path) -> None:
        search = ("search", library / "scenes", ABSENT, *MODELS, "--format", form)
        code, out, err = granalign(*search)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"granalign: error: --format {form}: nothing written")
        assert ABSENT_LINE.search(err) and "--anyway writes it" in err
        code, out, err = granalign(*search, "--anyway")
        assert code == 0 and out and ABSENT_LINE.search(err)

    def test_where_no_model_judged_nothing_is_claimed(
        self, granalign: Granalign, library: Path
    ) -> None:
        search = ("search", library / "scenes", ABSENT, "--captions-only")
        record = found(granalign(*search, "--json"))
        assert record["exists"] is record["probably_absent"] is None
        code, out, err = granalign(*search, "--format=srt", "--clip=a.mp4")
        assert code == 0 and " --> " in out and Path("a.mp4").is_file()
        assert "probably" not in out + err

    def test_what_is_shown_is_not_denied(self, granalign: Granalign, library: Path) -> None:
        record = found(granalign("search", library / "scenes", SHOWN, *MODELS, "--json"))
        assert record["probably_absent"] is False and record["exists"] > 0.5


class TestWarnings:
    def test_miniatures_on_a_video_of_the_world(self, granalign: Granalign, library: Path) -> None:
        search = ("search", library / "street", SHOWN, *MODELS, "--anyway")
        for options in ((), ("--captions-only",)):
            arguments = [*search[:3], *options] if options else list(search)
            (warning,) = found(granalign(*arguments, "--json"))["warnings"]
            assert warning.startswith(WORDS)
        code, out, err = granalign(*search, "--report=a.html")
        assert (code, err) == (0, "") and f"warning: {WORDS}" in " ".join(out.split())
        assert f"Warning: <bdi>{WORDS}" in Path("a.html").read_text(encoding="utf-8")
        for form in EXPORTS:
            code, out, err = granalign(*search, "--format", form)
            assert f"granalign: warning: {WORDS}" in err and WORDS not in out
            assert granalign(*search, "--format", form, "-q")[2] == ""

    @pytest.mark.parametrize(
        "name", ["scenes.mp4", "copy.mkv", "copy.mov", "small.webm", "copy.avi"]
    )
    def test_no_warning_about_a_rendered_video(
        self, name: str, granalign: Granalign, library: Path
    ) -> None:
        options = ("-c:v", "libvpx", "-s", "112x112") if name.endswith("webm") else ("-c", "copy")
        if name == "scenes.mp4":
            shutil.copy(library / name, name)
        else:
            ffmpeg("-i", library / "scenes.mp4", "-t", 8, *options, Path(name))
        assert found(granalign("search", name, SHOWN, *MODELS, "--json"))["warnings"] == []

    def test_models_of_ones_own_are_not_miniatures(
        self, granalign: Granalign, library: Path
    ) -> None:
        Path("words.jsonl").write_text('{"vid": "a", "captions": ["a dog, brown", "a cat"]}\n')
        assert found(granalign("search", "words.jsonl", "dog", "--json"))["warnings"] == []
        (warning,) = found(granalign("search", "words.jsonl", "dog", *MODELS, "--json"))["warnings"]
        assert warning.startswith(WORDS), "the miniature language model rewrote the query"

    def test_a_partial_index(self, granalign: Granalign, library: Path) -> None:
        shutil.copytree(library / "scenes", "partial")
        manifest = json.loads(Path("partial/manifest.json").read_text())
        manifest["missing"] = [[2.0, 6.0], [10.0, 12.0]]
        Path("partial/manifest.json").write_text(json.dumps(manifest))
        said = "this index is partial: the file lacks the picture of 0:02.0 to 0:06.0, 0:10.0 to"
        search = ("search", "partial", SHOWN, *MODELS)
        record = found(granalign(*search, "--json"))
        assert record["missing"] == manifest["missing"] and record["warnings"][0].startswith(said)
        out = granalign(*search, "--report=a.html")[1]
        assert f"warning: {said}" in " ".join(out.split())
        assert said in Path("a.html").read_text(encoding="utf-8")
        assert f"granalign: warning: {said}" in granalign(*search, "--format=vtt")[2]

    def test_captions_of_another_model(self, granalign: Granalign, library: Path) -> None:
        spoil(library / "scenes", "other", vlm="0123456789abcdef-fp16-v1-00000000")
        (warning,) = found(granalign("search", "other", SHOWN, *MODELS, "--json"))["warnings"]
        assert "the captions are by another vision-language model (0123456789abcdef-fp16" in warning

    def test_a_video_that_is_gone(self, granalign: Granalign, library: Path) -> None:
        shutil.copytree(library / "scenes", "gone")
        manifest = json.loads(Path("gone/manifest.json").read_text())
        manifest["source"] |= {"path": "/nowhere/gone.mp4", "name": "gone.mp4"}
        Path("gone/manifest.json").write_text(json.dumps(manifest))
        search = ("search", "gone", SHOWN, "--captions-only")
        code, _, _ = granalign(*search, "--report=a.html")
        page = Path("a.html").read_text(encoding="utf-8")
        assert code == 0 and "<img" not in page
        assert "its frames are needed; /nowhere/gone.mp4: got no such file" in page
        for option in ("--contact-sheet=a.png", "--plot=a.svg", "--clip=a.mp4"):
            code, out, err = granalign(*search, option)
            assert (code, out) == (2, "") and "gone.mp4: got no such file" in err
        assert sorted(path.name for path in Path().iterdir()) == ["a.html", "gone"]


def spoil(index: Path, copy: str, **models: str) -> None:
    """Copy an index, and change the fingerprints of its models."""
    shutil.copytree(index, copy)
    manifest = json.loads(Path(copy, "manifest.json").read_text())
    manifest["models"] |= models
    Path(copy, "manifest.json").write_text(json.dumps(manifest))


class TestModels:
    def test_an_index_names_the_models_that_made_it(
        self, granalign: Granalign, library: Path
    ) -> None:
        code, out, err = granalign("search", library / "scenes", SHOWN)
        assert (code, out, err.count("\n")) == (2, "", 1)
        models = VideoIndex.load(library / "scenes").models
        assert f"not given (vlm {models['vlm']}, clip {models['clip']})" in err
        assert "expected --models miniatures; or" in err and "--captions-only" in err

    @pytest.mark.parametrize("kind", ["vlm", "clip"])
    def test_a_folder_that_lacks_one_of_them(
        self, kind: str, granalign: Granalign, library: Path
    ) -> None:
        from granalign_fast.miniatures import MODELS as folder

        for other in {"llm", "vlm", "clip"} - {kind}:
            shutil.copytree(folder / other, Path("models") / other)
        search = ("search", library / "scenes", SHOWN, "--models", "models")
        code, out, err = granalign(*search)
        assert (code, out) == (2, "") and f"not given ({kind} " in err
        record = found(granalign(*search, "--captions-only", "--json"))
        assert record["exists"] is None and "rewrite" in record["seconds"]

    def test_recognition_needs_no_encoder_of_frames(
        self, granalign: Granalign, library: Path
    ) -> None:
        from granalign_fast.miniatures import MODELS as folder

        shutil.copytree(folder / "vlm", Path("models") / "vlm")
        options = ("--models", "models", "--preset=recognition", "--json")
        assert found(granalign("search", library / "scenes", SHOWN, *options))["exists"] > 0.5

    def test_models_that_do_not_fit(self, granalign: Granalign, library: Path) -> None:
        spoil(library / "scenes", "other", clip="0123456789abcdef-fp16-v2")
        code, out, err = granalign("search", "other", SHOWN, *MODELS)
        assert (code, out) == (2, "") and "got frames embedded by 0123456789abcdef" in err
        spoil(library / "scenes", "third", **{"sentence-encoder": "0123456789abcdef-fp32-v1"})
        for options in (MODELS, ("--captions-only",)):
            code, out, err = granalign("search", "third", SHOWN, *options)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert "were embedded by the sentence encoder 0123456789abcdef-fp32-v1, got " in err

    def test_another_precision_of_the_encoder_fits(
        self, granalign: Granalign, library: Path
    ) -> None:
        options = ("--captions-only", "--precision=int8", "--json")
        assert found(granalign("search", library / "scenes", SHOWN, *options))["moments"]


class TestTheNameOfAVideo:
    @pytest.mark.parametrize("name", ["scenes", "scenes.mp4", "{library}/scenes.mp4"])
    def test_it_fits(self, name: str, granalign: Granalign, library: Path) -> None:
        name = name.format(library=library)
        options = ("--captions-only", "--json", "--vid", name)
        assert found(granalign("search", library / "scenes", SHOWN, *options))["vid"] == "scenes"

    @pytest.mark.parametrize("name", ["street", "scenes.mov", "other/scenes.mp4"])
    def test_it_is_another(self, name: str, granalign: Granalign, library: Path) -> None:
        for source in (library / "scenes", library / "scenes.mp4"):
            code, out, err = granalign("search", source, SHOWN, *MODELS, "--vid", name)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"--vid {name}: got {source}, which is the video 'scenes'" in err


def test_a_video_without_an_index_shows_what_is_read(
    granalign: Granalign, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granalign_fast.cli.progress.INTERVAL", 0.0)
    shutil.copy(library / "street.mp4", "new.mp4")
    code, _, err = granalign("search", "new.mp4", SHOWN, *MODELS)
    assert code == 0
    assert re.search(r"^reading: 1 of 1 MiB", err, re.MULTILINE)
    assert re.search(r"^indexing: 6 of 6 clips", err, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--contact-sheet=a.gif",), "a.gif: expected a name that ends in .jpg, .jpeg or .png"),
        (("--contact-sheet=no/a.png",), "--contact-sheet no/a.png: its folder is not there"),
        (("--report=a.txt",), "--report a.txt: expected a name that ends in .html or .htm"),
        (("--report=no/a.html",), "--report no/a.html: its folder is not there"),
        (("--contact-sheet=a.png",), "--contact-sheet: got captions alone, expected an index"),
    ],
)
def test_what_cannot_be_drawn_is_known_before_the_search(
    options: tuple[str, ...], message: str, granalign: Granalign
) -> None:
    Path("words.jsonl").write_text('{"vid": "a", "captions": ["a dog, brown", "a cat"]}\n')
    code, out, err = granalign("search", "words.jsonl", "dog", "--models=nowhere", *options)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_the_command_takes_the_pictures_that_can_be_drawn() -> None:
    assert set(search_outputs._SHEETS) == set(contact_sheet.SUFFIXES)


def test_captions_alone_have_a_report(granalign: Granalign, minilm: Path) -> None:
    Path("words.jsonl").write_text('{"vid": "a", "captions": ["a dog, brown", "a cat"]}\n')
    assert granalign("search", "words.jsonl", "dog", "--report=a.html", "--plot=a.png")[0] == 0
    page = Path("a.html").read_text(encoding="utf-8")
    assert "a dog, brown" in page and "<img" not in page and "no pictures" not in page


def test_the_picture_of_a_long_video_has_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine minutes: the strip ends at 8:57, and the best moment is the last one, at 9:12."""
    path = render(tmp_path / "long.mp4", constant(1, 560), gop=10)
    clips = 280
    source = VideoSource(path, path.stat().st_size, sha256_of(path))
    frames = FrameTable(2.0 * np.arange(clips) + 1, ("f",) * clips, source=source)
    index = VideoIndex(
        CaptionedVideo("long", ("",) * clips, 2.0, 560.0), np.ones((clips, 1), np.float32), frames
    )
    curve = np.random.default_rng(5).random(clips).astype(np.float32)
    starts = (552.0, 4.0, 300.0, 77.0, 131.0, 400.0)
    moments = tuple(Moment(start, start + 4, 0.5) for start in starts)
    given: list[Any] = []
    figures: list[Any] = []
    draw, save = filmstrip.draw_filmstrip, filmstrip.save_figure

    def keep(*arguments: Any, **options: Any) -> None:
        given.append(options["thumbnails"])
        draw(*arguments, **options)

    def keep_figure(figure: Any, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(filmstrip, "draw_filmstrip", keep)
    monkeypatch.setattr(filmstrip, "save_figure", keep_figure)
    result = SearchResult("long", "the end", moments, curve, curve[None])
    search_outputs.draw(index, result, tmp_path / "long.png")
    (thumbnails,) = given
    assert len(thumbnails) == 5, "the picture names five"
    for image, moment in zip(thumbnails, moments, strict=False):
        shown = read(image)
        assert shown is not None and moment.start <= shown < moment.end
    row = figures[0].axes[0]
    assert len(row.images) == 5
    labels = [text.get_text() for text in row.texts]
    assert labels[0] == "#1  9:12.0 - 9:16.0" and labels[4] == "#5  2:11.0 - 2:15.0"
