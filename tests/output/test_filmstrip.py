"""The picture with frames: positions, refused arguments, and no overlapping texts."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.index import CaptionedVideo, VideoIndex
from granalign_fast.output import filmstrip
from granalign_fast.output.filmstrip import draw_filmstrip, strip_clips
from granalign_fast.output.plot import draw_search, shorten
from granalign_fast.types import Moment, SearchResult

MOMENTS = (Moment(24.0, 46.0, 0.93), Moment(40.0, 52.0, 0.71), Moment(146.0, 150.0, 0.2))
TRUTH = ((22.0, 44.0), (100.0, 110.0))
ODD = "A $dog$ \\frac{ of \n <b> & \0 " + "x" * 300
RED, BLUE = (200, 30, 30), (30, 30, 200)


def solid(colour: tuple[int, int, int], height: int = 90, width: int = 160) -> Any:
    return np.full((height, width, 3), colour, np.uint8)


def searched(
    clips: int = 75,
    moments: Sequence[Moment] = MOMENTS,
    *,
    query: str = "the dog runs",
    clip_seconds: float = 2.0,
    duration: float | None = None,
    exists: float | None = None,
) -> tuple[VideoIndex, SearchResult]:
    video = CaptionedVideo("street", ("a dog",) * clips, clip_seconds, duration)
    curve = np.linspace(0, 1, clips, dtype=np.float32)
    result = SearchResult("street", query, tuple(moments), curve, curve[None], exists)
    return VideoIndex(video, np.ones((clips, 1), np.float32)), result


def frames(clips: int, seconds: float = 2.0) -> list[tuple[float, npt.NDArray[np.uint8]]]:
    return [((clip + 0.5) * seconds, solid(RED)) for clip in strip_clips(clips)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that a test has saved."""
    figures: list[Any] = []
    save = filmstrip.save_figure

    def keep(figure: Any, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(filmstrip, "save_figure", keep)
    return figures


@pytest.mark.parametrize("clips", [1, 2, 11, 12, 13, 75, 5400])
def test_strip_clips_are_the_middles_of_equal_stretches(clips: int) -> None:
    chosen = strip_clips(clips)
    assert len(chosen) == min(clips, 12)
    for tile, clip in enumerate(chosen):
        middle = (tile + 0.5) * clips / len(chosen)
        # The clip around the middle; if two clips meet there, the later one.
        assert clip <= middle < clip + 1


CASES = {
    "plain": {},
    "one clip": {"clips": 1, "moments": [Moment(0.0, 2.0, 0.5)], "exists": 0.0},
    "hours": {
        "clips": 5400,
        "moments": [Moment(s, s + 9.0, 0.5) for s in (3600.0, 3620.0, 10791.0, 0.0, 3590.0)],
    },
    "nothing": {"moments": [], "exists": 1.0},
    "crowd": {"moments": [Moment(2.0 * i, 2.0 * i + 1.5, -0.9) for i in range(12)], "exists": 0.5},
    "nested": {"moments": [Moment(0.0 + i, 150.0 - i, 0.9) for i in range(5)]},
    "odd query": {"query": ODD, "exists": 0.25},
    "wide query": {"query": "WWW MMM " * 30, "exists": 0.25},
    "as wide as a label": {"moments": [Moment(5.0, 5.0 + w, 0.5) for w in (6.0, 7.0, 8.0, 9.0)]},
    "short": {
        "clips": 3,
        "clip_seconds": 0.5,
        "duration": 1.4,
        "moments": [Moment(0.2, 1.3, 1.0)],
    },
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_texts_do_not_overlap_or_leave_the_picture(
    case: str, drawn: list[Any], tmp_path: Path
) -> None:
    options: Any = CASES[case]
    index, result = searched(**options)
    images = frames(len(result.saliency), index.video.clip_seconds)
    draw_filmstrip(index, result, images, tmp_path / "a.png", truth=((0.0, 1.0), (1.2, 1.3)))
    (figure,) = drawn
    texts = [text for text in figure.findobj(match=_is_text) if text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if _shown(text)]
    assert len(boxes) > 8
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width, text
        assert box.y0 >= 0 and box.y1 <= figure.bbox.height, text
    for (one, box), (other, second) in itertools.combinations(boxes, 2):
        apart = (
            box.x1 <= second.x0 or second.x1 <= box.x0 or box.y1 <= second.y0 or second.y1 <= box.y0
        )
        assert apart, f"{one!r} overlaps {other!r}"
    lanes = figure.axes[-1]
    bars = [bar.get_window_extent() for group in lanes.containers for bar in group]
    for text in lanes.texts:
        box = text.get_window_extent()
        for bar in bars:
            inside = bar.x0 <= box.x0 and box.x1 <= bar.x1
            outside = box.x1 <= bar.x0 or bar.x1 <= box.x0 or box.y1 <= bar.y0 or bar.y1 <= box.y0
            assert inside or outside, f"{text.get_text()!r} lies half on a bar"


def _is_text(artist: Any) -> bool:
    return type(artist).__name__ in ("Text", "Annotation")


def _shown(text: Any) -> bool:
    """Return True for a visible text; the strip's tick labels belong to axes that are off."""
    axes = text.axes
    hidden = axes is not None and not axes.axison and text not in axes.texts
    box = text.get_window_extent()
    return text.get_visible() and not hidden and box.width > 0


def test_bars_have_the_times_of_the_moments(drawn: list[Any], tmp_path: Path) -> None:
    index, result = searched(exists=0.87)
    draw_filmstrip(index, result, [], tmp_path / "a.png", truth=TRUTH)
    (figure,) = drawn
    curve, lanes = figure.axes
    assert curve.get_xlim() == lanes.get_xlim() == (0, 150)
    bars = [
        (bar.get_x(), bar.get_x() + bar.get_width()) for group in lanes.containers for bar in group
    ]
    assert bars == [(moment.start, moment.end) for moment in MOMENTS] + list(TRUTH)
    strengths = [bar.get_alpha() for group in lanes.containers for bar in group]
    assert strengths[0] == 1 and max(strengths[1:3]) < 0.6
    words = {text.get_text() for text in (*lanes.texts, *figure.texts)}
    assert words == {
        *("#1  0.93", "#2  0.71", "#3  0.20", "predicted", "true"),
        *("“the dog runs”", "shown in this video: 0.87"),
    }


def test_without_truth_or_a_score_their_labels_are_missing(
    drawn: list[Any], tmp_path: Path
) -> None:
    draw_filmstrip(*searched(moments=[]), [], tmp_path / "a.png")
    words = {t.get_text() for t in (*drawn[0].axes[-1].texts, *drawn[0].texts)}
    assert words == {"predicted", "no moments", "“the dog runs”"}


def test_only_five_moments_are_shown(drawn: list[Any], tmp_path: Path) -> None:
    moments = [Moment(10.0 * i, 10.0 * i + 8, 0.5) for i in range(9)]
    draw_filmstrip(*searched(moments=moments), [], tmp_path / "a.png")
    assert sum(len(group) for group in drawn[0].axes[-1].containers) == 5


@pytest.mark.parametrize(
    ("clips", "shape"),
    [(1, (90, 160)), (1, (160, 90)), (5, (20, 400)), (12, (2000, 1000)), (75, (90, 160))],
)
def test_frames_keep_shape_and_order(clips: int, shape: tuple[int, int], tmp_path: Path) -> None:
    chosen = strip_clips(clips)
    images = [solid(RED if tile % 2 else BLUE, *shape) for tile in range(len(chosen))]
    timed = [(2.0 * clip + 1, image) for clip, image in zip(chosen, images, strict=True)]
    index, result = searched(clips, [])
    draw_filmstrip(index, result, timed[::-1], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    height, width = shape
    inner = (0.95 * 150, (11 - 0.35) * 150)
    step = (inner[1] - inner[0]) / len(chosen)
    for number in range(len(chosen)):
        left = inner[0] + number * step
        tile = picture[:, round(left) : round(left + step)]
        colour = RED if number % 2 else BLUE
        matches = np.abs(tile - colour).max(axis=2) < 40
        rows, columns = np.flatnonzero(matches.any(axis=1)), np.flatnonzero(matches.any(axis=0))
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert matches.sum() >= 0.95 * high * wide
        assert abs(wide - high * width / height) <= 2 + 2 * width / height
        middle = columns.mean() - (tile.shape[1] - 1) / 2
        assert abs(middle) <= 2


def test_the_frame_nearest_to_each_middle_is_drawn(drawn: list[Any], tmp_path: Path) -> None:
    everything = [(2.0 * clip + 0.5, solid(RED)) for clip in range(75)]
    draw_filmstrip(*searched(), everything, tmp_path / "a.png")
    times = [text.get_text() for text in drawn[0].axes[0].texts]
    middles = [(tile + 0.5) * 150 / 12 for tile in range(12)]
    expected = [min((t for t, _ in everything), key=lambda t: abs(t - m)) for m in middles]
    seconds = [60 * int(text.split(":")[0]) + int(text.split(":")[1]) for text in times]
    assert np.abs(np.subtract(seconds, expected)).max() <= 0.5


def test_frames_of_the_best_moment_have_a_border(drawn: list[Any], tmp_path: Path) -> None:
    draw_filmstrip(*searched(), frames(75), tmp_path / "a.png")
    strip = drawn[0].axes[0]
    per_tile = 150 / 12
    bordered = {int((p.get_x() + p.get_width() / 2) / per_tile) for p in strip.patches}
    inside = {tile for tile, clip in enumerate(strip_clips(75)) if 24 <= 2 * clip + 1 < 46}
    assert bordered == inside != set()


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_suffix_selects_the_format(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    index, result = searched(query=ODD)
    draw_filmstrip(index, result, [(1.0, solid(RED, 2000, 3000))], path, truth=TRUTH)
    content = path.read_bytes()
    assert content.startswith(start) and len(content) < 400_000
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("images", "truth", "name", "message"),
    [
        ([(1.0, np.zeros((4, 4), np.uint8))], (), "a.png", r"frames\[0\]: got uint8 \(4, 4\)"),
        ([(1.0, np.zeros((4, 4, 3)))], (), "a.png", r"frames\[0\]: got float64"),
        ([(float("nan"), solid(RED))], (), "a.png", r"frames\[0\]: got time nan"),
        ([(-1.0, solid(RED))], (), "a.png", r"frames\[0\]: got time -1.0"),
        ([], ((3.0, 3.0),), "a.png", r"truth\[0\]: got 3.0 to 3.0"),
        ([], ((0.0, float("nan")),), "a.png", r"truth\[0\]"),
        ([], (), "a.gif", r"a\.gif: expected a name that ends in \.png, \.svg or \.pdf"),
        ([], (), "none/a.png", "cannot be written"),
    ],
)
def test_invalid_arguments_are_refused(
    images: Any, truth: Any, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(GranAlignError, match=message):
        draw_filmstrip(*searched(), images, tmp_path / name, truth=truth)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"\[plot\]"):
        draw_filmstrip(*searched(), [], tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("a red  car\n", 20, "a red car"),
        ("a red car", 9, "a red car"),
        ("a red car here", 13, "a red car ..."),
        ("a red carriage", 13, "a red car ..."),
        ("a redcarriages", 13, "a redcarr ..."),
        ("x" * 50, 10, "xxxxxx ..."),
    ],
)
def test_shorten(text: str, width: int, expected: str) -> None:
    assert shorten(text, width) == expected


def test_draw_search_takes_any_query(tmp_path: Path) -> None:
    draw_search(*searched(query=ODD), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1650, 780)


def test_every_moment_has_a_frame_in_the_order_of_rank(drawn: list[Any], tmp_path: Path) -> None:
    colours = [(200, 30 * i, 30) for i in range(3)]
    thumbnails = [solid(colour) for colour in colours]
    draw_filmstrip(*searched(), frames(75), tmp_path / "a.png", thumbnails=thumbnails, truth=TRUTH)
    row, strip = drawn[0].axes[:2]
    assert [tuple(image.get_array()[0, 0]) for image in row.images] == colours
    assert [text.get_text() for text in row.texts] == [
        "#1  0:24.0 - 0:46.0",
        "#2  0:40.0 - 0:52.0",
        "#3  2:26.0 - 2:30.0",
    ]
    lefts = [image.get_extent()[0] for image in row.images]
    assert lefts == sorted(lefts) and len(row.patches) == 1
    assert len(strip.images) == 12


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (1, 2000)])
@pytest.mark.parametrize("case", ["plain", "one clip", "hours", "crowd", "nested"])
def test_texts_of_moments_do_not_overlap(
    case: str, size: tuple[int, int], drawn: list[Any], tmp_path: Path
) -> None:
    options: Any = CASES[case]
    index, result = searched(**options)
    result = replace(result, exists=0.05, probably_absent=True)
    thumbnails = [solid(RED, *size)] * min(5, len(result.moments))
    draw_filmstrip(index, result, frames(75), tmp_path / "a.png", thumbnails=thumbnails)
    (figure,) = drawn
    texts = [text for text in figure.findobj(match=_is_text) if text.get_text().strip()]
    assert any(text.get_text() == "probably not in this video (0.05)" for text in texts)
    boxes = [text.get_window_extent() for text in texts if _shown(text)]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize(
    ("thumbnails", "message"),
    [
        ([solid(RED)] * 2, "thumbnails: got 2, expected 3, one for each moment drawn"),
        ([np.zeros((4, 4, 3))] * 3, r"frames\[0\]: got float64"),
    ],
)
def test_wrong_thumbnails(thumbnails: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match=message):
        draw_filmstrip(*searched(), [], tmp_path / "a.png", thumbnails=thumbnails)
    assert not list(tmp_path.iterdir())
