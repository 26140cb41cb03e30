"""Contact sheets and reports: what they hold, and texts that are hostile to HTML."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageFont

from granalign_fast import CaptionedVideo, GranAlignError, Moment, Rewrites, SearchResult
from granalign_fast.index import VideoIndex
from granalign_fast.index.records import FrameTable, VideoSource
from granalign_fast.output import contact_sheet
from granalign_fast.output.contact_sheet import draw_contact_sheet
from granalign_fast.output.frames import fitted
from granalign_fast.output.report import write_report

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200))
HOSTILE = (
    "</title><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\" onload='x' &amp; &lt; ]]> --> <!--",
    "right \u202eto left\u202c \u2066isolated\u2069 \u200f",
    "control \x00 \x07 \x1b[31m \x7f \n line",
    "half a pair \ud800",
    "犬が走る — Ж é 🎬",
    "https://example.com/x.js url(http://a.b/c)",
)


def solid(colour: tuple[int, int, int], height: int = 90, width: int = 160) -> Any:
    return np.full((height, width, 3), colour, np.uint8)


def searched(
    count: int = 5, clips: int = 60, text: str = "a dog", **changes: Any
) -> tuple[VideoIndex, SearchResult]:
    """Return an index, and a result of some moments of four seconds.

    Args:
        count: number of moments.
        clips: number of clips.
        text: the query, each caption, each rewrite, and the name of the video.
        changes: other fields of the result.
    """
    source = VideoSource(Path("/videos") / text.replace("/", "|"), 1, "0" * 64)
    frames = FrameTable(2.0 * np.arange(clips), ("f",) * clips, source=source)
    index = VideoIndex(
        CaptionedVideo(text, (text,) * clips), np.ones((clips, 1), np.float32), frames
    )
    curve = np.linspace(0, 1, clips, dtype=np.float32)
    moments = tuple(Moment(8.0 * i, 8.0 * i + 4, 0.9 - i / 100) for i in range(count))
    result = SearchResult(text, "a query", moments, curve, curve[None], **changes)
    return index, result


class TestContactSheet:
    @pytest.mark.parametrize(
        ("suffix", "form"), [("jpg", "JPEG"), ("JPEG", "JPEG"), ("png", "PNG")]
    )
    @pytest.mark.parametrize("count", [1, 4, 5, 30])
    def test_every_moment_has_its_frame(
        self, count: int, suffix: str, form: str, tmp_path: Path
    ) -> None:
        path = tmp_path / f"sheet.{suffix}"
        frames = [solid(COLOURS[i % 5]) for i in range(count)]
        draw_contact_sheet(searched(count)[1], frames, path)
        with Image.open(path) as sheet:
            assert sheet.format == form
            pixels = np.asarray(sheet.convert("RGB")).astype(int)
        areas = [int((abs(pixels - colour).max(-1) < 12).sum()) for colour in COLOURS]
        for number, area in enumerate(areas):
            frames_of_it = len(range(number, count, 5))
            assert area == pytest.approx(320 * 180 * frames_of_it, rel=0.03)

    def test_frames_are_in_the_order_of_rank(self, tmp_path: Path) -> None:
        frames = [solid(colour, 200, 90) for colour in COLOURS]
        draw_contact_sheet(searched()[1], frames, tmp_path / "a.png")
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        places = [np.argwhere((pixels == colour).all(-1)).mean(0) for colour in COLOURS]
        rows = [round(place[0]) for place in places]
        assert rows[0] == rows[1] == rows[2] == rows[3] < rows[4]
        columns = [place[1] for place in places]
        assert columns[:4] == sorted(columns[:4]) and columns[4] == pytest.approx(columns[0], abs=1)

    def test_absence_and_warnings_are_in_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        lines = drawn_texts(monkeypatch)
        _, result = searched(exists=0.05, probably_absent=True)
        frames = [solid(COLOURS[0])] * 5
        draw_contact_sheet(result, frames, tmp_path / "a.png", warnings=["mind the gap"])
        assert lines[:4] == [
            "“a query”",
            "probably not in this video (shown at all: 5% likely)",
            "a dog",
            "warning: mind the gap",
        ]
        assert lines[4:6] == ["#1   0:00.0 - 0:04.0", "0.900"]

    @pytest.mark.parametrize("own_font", [True, False])
    @pytest.mark.parametrize("text", [*HOSTILE, "x" * 5000, "W W " * 500])
    def test_any_text_fits(
        self, text: str, own_font: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        if own_font:
            monkeypatch.setattr(contact_sheet, "_FONTS", ())
        ends: list[float] = []
        line = contact_sheet._draw_line

        def measure(draw: Any, place: Any, text: str, font: Any, colour: str, width: int) -> None:
            line(draw, place, text, font, colour, width)
            box = draw._image.convert("L").point(lambda value: 255 * (value < 160)).getbbox()
            ends.append(box[2] - place[0] - width if box else 0)

        monkeypatch.setattr(contact_sheet, "_draw_line", measure)
        result = replace(searched(2)[1], query=text, vid=text)
        draw_contact_sheet(result, [solid(COLOURS[3])] * 2, tmp_path / "a.png", warnings=[text])
        assert len(ends) == 3 and max(ends) <= 2

    @pytest.mark.parametrize(
        ("frames", "name", "message"),
        [
            ([solid(COLOURS[0])] * 4, "a.png", "frames: got 4, expected 5, one for each moment"),
            ([np.zeros((4, 4))] * 5, "a.png", r"frames\[0\]: got float64"),
            ([solid(COLOURS[0])] * 5, "a.gif", r"ends in \.jpg, \.jpeg or \.png"),
            ([solid(COLOURS[0])] * 5, "none/a.png", "cannot be written"),
        ],
    )
    def test_what_cannot_be_drawn(
        self, frames: Any, name: str, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(GranAlignError, match=message):
            draw_contact_sheet(searched()[1], frames, tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_letters_that_the_font_lacks_lose_their_accents(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(contact_sheet, "_FONTS", ())
        lines = drawn_texts(monkeypatch)
        result = replace(searched(1)[1], query="ein Dackel läuft über den Hügel")
        draw_contact_sheet(result, [solid(COLOURS[0])], tmp_path / "a.png")
        assert lines[0] == "“ein Dackel lauft uber den Hugel”"


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives every text that is drawn."""
    texts: list[str] = []
    draw = contact_sheet.ImageDraw.ImageDraw.text

    def keep(self: Any, place: Any, text: str, **options: Any) -> None:
        texts.append(text)
        draw(self, place, text, **options)

    monkeypatch.setattr(contact_sheet.ImageDraw.ImageDraw, "text", keep)
    return texts


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (90, 160), (1, 1)])
def test_an_image_is_never_larger_than_its_place(size: tuple[int, int]) -> None:
    small = fitted(solid(COLOURS[0], *size), 320, 240)
    assert 1 <= small.width <= 320 and 1 <= small.height <= 240
    assert small.width == 320 or small.height == 240


def test_pillow_has_a_font_of_its_own() -> None:
    assert isinstance(ImageFont.load_default(20), ImageFont.FreeTypeFont)


class Page(HTMLParser):
    """The page as a browser reads it: its tags, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report(tmp_path: Path, index: VideoIndex, result: SearchResult, **options: Any) -> str:
    frames = options.pop("frames", [solid(colour) for colour in COLOURS[: len(result.moments)]])
    write_report(index, result, frames, tmp_path / "r.html", **options)
    return (tmp_path / "r.html").read_text(encoding="utf-8")


class TestReport:
    def test_what_is_in_it(self, tmp_path: Path) -> None:
        rewrites = Rewrites("a query", ("a plain query",), ("a long query",))
        index, result = searched(exists=0.93, probably_absent=False, rewrites=rewrites)
        text = report(
            tmp_path, index, result, warnings=["mind the gap"], facts={"Models": "vlm: Qwen"}
        )
        page = Page(text)
        for part in (
            *("a query", "a dog", "/videos/a dog", "shown at all: 93% likely", "mind the gap"),
            *("#1", "0:00.0 – 0:04.0", "0.900", "#5", "0:32.0 – 0:36.0", "0.860", "vlm: Qwen"),
            *("a plain query", "a long query", "2:00.0"),
        ):
            assert part in page.text, part
        assert "robably not" not in page.text
        images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
        assert len(images) == 5
        for source, colour in zip(images, COLOURS, strict=True):
            data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
            with Image.open(io.BytesIO(data)) as picture:
                assert abs(np.asarray(picture).mean((0, 1)) - colour).max() < 5
        assert page.text.count("a dog") >= 5, "a caption for each moment"

    def test_absence_comes_before_the_moments(self, tmp_path: Path) -> None:
        text = report(tmp_path, *searched(exists=0.05, probably_absent=True))
        words = Page(text[text.index("<body>") :]).text
        said = words.index("Probably not in this video (shown at all: 5% likely)")
        assert said < words.index("How well each clip fits") < words.index("#1")

    @pytest.mark.parametrize("text", HOSTILE)
    def test_texts_stay_texts(self, text: str, tmp_path: Path) -> None:
        index, result = searched(text="x")
        index = replace(index, video=CaptionedVideo("v", (text,) * 60))
        result = replace(result, query=text, vid=text)
        safe = report(tmp_path, *searched(), warnings=["w"], facts={"f": "g"})
        page = report(tmp_path, index, result, warnings=[text], facts={text: text})
        # No tag and no attribute is added: the page is that of harmless texts.
        assert shape(page) == shape(safe)
        ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
        body = page[page.index("<body>") :]
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200f]", body)
        assert body.count("<bdi>") == body.count("</bdi>") > 10

    def test_it_needs_nothing_else(self, tmp_path: Path) -> None:
        page = report(tmp_path, *searched())
        tags = Page(page).tags
        assert not {"script", "link", "iframe", "video", "audio"} & {tag for tag, _ in tags}
        for _, attributes in tags:
            assert not any(name.startswith("on") or name == "href" for name in attributes)
            assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (
            "url(" not in page
            and "@import" not in page
            and "http" not in page.replace("http-equiv", "")
        )

    def test_light_and_dark(self, tmp_path: Path) -> None:
        page = report(tmp_path, *searched())
        assert "prefers-color-scheme: dark" in page
        assert ("meta", {"name": "color-scheme", "content": "light dark"}) in Page(page).tags

    @pytest.mark.parametrize("clips", [1, 2, 75, 9000])
    def test_the_curve_is_that_of_the_result(self, clips: int, tmp_path: Path) -> None:
        index, result = searched(1, clips)
        moments = (Moment(0.0, min(4.0, 2.0 * clips), 0.5),)
        saliency = np.random.default_rng(0).random(clips).astype(np.float32)
        page = report(tmp_path, index, replace(result, saliency=saliency, moments=moments))
        tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
        line = next(tree.iter("polyline")).attrib["points"].split()
        points = np.array([point.split(",") for point in line], float)
        assert len(points) <= 4000 and (np.diff(points[:, 0]) >= 0).all()
        assert points[0, 0] == 0 and points[-1, 0] == 100
        assert 1 - points[:, 1].min() / 100 == pytest.approx(saliency.max(), abs=0.001)
        if clips <= 2000:
            assert 1 - points[::2, 1] / 100 == pytest.approx(saliency, abs=0.001)

    def test_bars_and_their_labels_do_not_overlap(self, tmp_path: Path) -> None:
        index, result = searched(0)
        spans = [(0, 4), (2, 30), (116, 120), (112, 118), (29, 31), (0, 120), (4, 6)]
        moments = tuple(Moment(float(start), float(end), 0.5) for start, end in spans)
        page = report(tmp_path, index, replace(result, moments=moments), frames=[])
        bars = re.findall(
            r'style="left:([\d.]+)%;width:([\d.]+)%;top:(\d+)px"><b(?: class="(\w+)")?>#(\d+)', page
        )
        assert [int(number) for *_, number in bars] == list(range(1, 8))
        taken: dict[str, list[tuple[float, float]]] = {}
        for left, width, top, place, _ in bars:
            start, end = float(left), float(left) + float(width)
            assert (end - start >= 6) == (place == "inside")
            start, end = start - 6 * (place == "before"), end + 6 * (place == "")
            assert start >= 0 and end <= 100.001
            assert all(end <= a or b <= start for a, b in taken.get(top, []))
            taken.setdefault(top, []).append((start, end))

    def test_without_frames_or_moments(self, tmp_path: Path) -> None:
        index, result = searched(3)
        assert "<img" not in report(tmp_path, index, result, frames=[])
        captions = VideoIndex(index.video, index.embeddings)
        page = report(tmp_path, captions, replace(result, moments=()), frames=[])
        assert "No moments." in page and "File" not in page

    def test_what_cannot_be_written(self, tmp_path: Path) -> None:
        index, result = searched()
        for frames, name, message in (
            ([solid(COLOURS[0])], "a.html", "frames: got 1, expected 5"),
            ([np.zeros((4, 4))] * 5, "a.html", r"frames\[0\]: got float64"),
            ([], "none/a.html", "cannot be written"),
        ):
            with pytest.raises(GranAlignError, match=message):
                write_report(index, result, frames, tmp_path / name)
        assert not list(tmp_path.iterdir())


def shape(page: str) -> list[tuple[str, list[str]]]:
    """Return the tags of a page with the names of their attributes."""
    return [(tag, sorted(attributes)) for tag, attributes in Page(page).tags]
