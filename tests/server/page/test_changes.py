"""Uploads, removals, exports and tokens on the page."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from helpers.service import Service, running

from .conftest import Tab, opened

pytestmark = pytest.mark.needs_browser
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def own(library: Path, chromium: Any) -> Iterator[Tab]:
    """A page of a service with a library that this test may change."""
    with running(library) as service:
        yield from opened(chromium, service.wait_until_ready().url)


def test_a_video_is_uploaded_searched_and_removed(own: Tab, new_video: Path) -> None:
    page = own.open().page
    page.click("#open-library")
    page.fill("#new-tag", "fresh")
    page.set_input_files("#files", new_video)
    page.locator("#jobs", has_text="is in the library").wait_for()
    page.locator("#video-count", has_text="(3)").wait_for()
    page.click("#library [data-close]")
    page.click("#filters summary")
    page.select_option("[name=tag]", "fresh")
    own.search()
    assert set(page.locator(".moment .name").all_text_contents()) == {"new.mp4"}
    page.locator(".moment .open").first.click()
    page.locator("#video").evaluate(
        "video => video.readyState > 1 || "
        "new Promise((done) => video.addEventListener('canplay', done))"
    )
    page.click("#open-library")
    remove = page.get_by_role("button", name="Remove new.mp4")
    remove.click()
    page.get_by_role("button", name="Keep").click()
    assert remove.is_visible()
    remove.click()
    page.locator("#removal").get_by_role("button", name="Remove").click()
    page.locator("#video-count", has_text="(2)").wait_for()
    assert remove.count() == 0


def test_files_are_dropped_on_the_page(own: Tab, new_video: Path) -> None:
    page = own.open().page
    content = base64.b64encode(new_video.read_bytes()).decode()
    page.evaluate(
        """([text, content]) => {
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File(["no video"], "notes.mp4", { type: "video/mp4" }));
          transfer.items.add(new File([bytes], "dropped.mp4", { type: "video/mp4" }));
          for (const name of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(
              new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true }));
          }
        }""",
        ["", content],
    )
    assert page.locator("#library").is_visible()
    page.locator("#jobs .failed").wait_for()
    assert "video" in own.text("#jobs .failed")
    page.locator("#jobs", has_text="is in the library").wait_for()


@pytest.fixture
def chosen(tab: Tab) -> Tab:
    """The page with the first moments of one video chosen, at most two."""
    tab.open()
    tab.page.click("#filters summary")
    tab.page.fill("[name=videos]", "first*")
    tab.search()
    for box in tab.page.locator(".moment .tick").all()[:2]:
        box.check()
    assert re.fullmatch("(1 moment|2 moments) of 1 video chosen", tab.text("#chosen-count"))
    return tab


def save(tab: Tab, format_name: str) -> tuple[str, Path]:
    tab.page.select_option("[name=format]", format_name)
    with tab.page.expect_download() as download:
        tab.page.click("#export [type=submit]")
    return download.value.suggested_filename, Path(download.value.path())


def test_moments_are_saved_for_other_programs(chosen: Tab) -> None:
    times = [
        text.split(" – ") for text in chosen.page.locator(".moment .times").all_text_contents()
    ]
    name, path = save(chosen, "srt")
    assert name.endswith(".srt")
    starts = re.findall(r"^00:(\d\d):(\d\d),(\d)", path.read_text(encoding="utf-8"), re.M)
    assert 1 <= len(starts) <= 2
    assert sorted(f"{int(m)}:{s}.{tenth}" for m, s, tenth in starts) == sorted(
        start for start, _ in times[: len(starts)]
    )
    name, path = save(chosen, "csv")
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert name.endswith(".csv") and len(rows) == 1 + len(starts)
    for other in ("vtt", "edl", "otio", "fcpxml", "ffmetadata"):
        name, path = save(chosen, other)
        assert path.stat().st_size > 50


def test_a_moment_is_saved_as_a_clip(chosen: Tab) -> None:
    for box in chosen.page.locator(".moment .tick").all()[1:2]:
        box.uncheck()
    name, path = save(chosen, "clip")
    assert name.endswith(".mp4")
    first = chosen.page.locator(".moment .times").first.text_content()
    start, end = (float(text.partition(":")[2]) for text in first.split(" – "))
    with av.open(path) as container:
        assert float(container.duration / av.time_base) == pytest.approx(end - start, abs=0.2)
    chosen.page.click("#choose-none")
    assert not chosen.page.locator("#export").is_visible()


def test_a_token_is_asked_for(library: Path, chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"page read {TOKEN}\n", encoding="utf-8")
    (tmp_path / "tokens").chmod(0o600)
    with running(library, "--token-file", tmp_path / "tokens") as service:
        service.wait_until_ready({"authorization": f"Bearer {TOKEN}"})
        for tab in opened(chromium, service.url):
            tab.page.goto(tab.url)
            for text in ("wrong, and with a €", TOKEN):
                tab.page.locator("#token").wait_for()
                tab.page.fill("#token-text", text)
                tab.page.keyboard.press("Enter")
                if text != TOKEN:
                    tab.page.locator("#token-problem:not(:empty)").wait_for()
            tab.page.locator("#video-count:not(:empty)").wait_for()
            tab.search()
            picture = tab.page.locator(".moment img").first
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
            assert TOKEN not in tab.page.content()
            assert tab.page.evaluate("() => document.cookie + localStorage.length") == "0"


def test_problems_are_said(tab: Tab) -> None:
    page = tab.open().page
    problem = {"title": "Too many", "detail": "got 64 queries that wait; try again in 3 s"}
    page.route("**/v1/search", lambda route: route.fulfill(status=429, json=problem))
    page.fill("#query", "a")
    page.press("#query", "Enter")
    page.locator("#problem", has_text="try again in 3 s").wait_for()
    page.unroute("**/v1/search")
    page.route(
        "**/v1/search", lambda route: route.fulfill(body="event: first\ndata: {", status=200)
    )
    page.press("#query", "Enter")
    page.locator("#problem", has_text="The connection was cut").wait_for()
    page.unroute("**/v1/search")
    page.route("**/v1/search", lambda route: route.abort())
    page.press("#query", "Enter")
    page.locator("#problem", has_text="does not answer").wait_for()
    page.unroute("**/v1/search")
    tab.search()
    assert tab.text("#problem") == ""


def test_a_file_that_is_gone_is_shown_by_a_note(
    chromium: Any, library: Path, indexed: Path, service: Service
) -> None:
    """The player cannot load the file: the page says so."""
    for tab in opened(chromium, service.url):
        tab.page.route("**/media", lambda route: route.fulfill(status=410, body="{}"))
        tab.open().search()
        tab.page.locator(".moment .open").first.click()
        tab.page.locator("#player-note", has_text="cannot play the file").wait_for()
        still = tab.page.locator("#still")
        assert still.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
