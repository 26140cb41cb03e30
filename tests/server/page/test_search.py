"""Searching on the page, and playing what was found."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .conftest import QUERY, Tab

pytestmark = pytest.mark.needs_browser


def current_time(tab: Tab) -> float:
    return float(tab.page.locator("#video").evaluate("video => video.currentTime"))


def seconds(text: str) -> float:
    """The seconds of a time such as ``1:02.5``."""
    minutes, rest = text.split(":")
    return 60 * int(minutes) + float(rest)


def test_moments_are_shown_with_pictures_times_and_captions(tab: Tab) -> None:
    tab.open().search()
    cards = tab.page.locator(".moment")
    assert cards.count() > 1
    first = cards.first
    assert re.fullmatch(r"\d+:\d\d\.\d – \d+:\d\d\.\d", first.locator(".times").text_content())
    assert first.locator(".name").text_content() in ("first.mp4", "second.mp4")
    assert first.locator(".caption").text_content()
    picture = first.locator("img")
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 224
    shown = tab.text("#how-content")
    assert "2 videos compared" in shown and "First stage" in shown and "Models" in shown
    assert tab.page.url.endswith("?q=a+white+ring")


def test_the_first_look_is_shown_before_the_answer_is_complete(tab: Tab) -> None:
    tab.open()
    tab.page.evaluate(
        """() => {
          window.seen = [];
          const cards = document.getElementById("moments");
          new MutationObserver(() => window.seen.push(
            [document.getElementById("status").textContent, cards.children.length]
          )).observe(document.getElementById("status"), { childList: true });
        }"""
    )
    tab.search()
    seen = tab.page.evaluate("() => window.seen")
    looks = [count for text, count in seen if text.startswith("First look")]
    assert looks and looks[0] > 0
    assert re.search("moments? in", seen[-1][0])


def test_an_address_with_a_query_searches_at_once(tab: Tab) -> None:
    tab.open("/?q=a%20white%20ring")
    tab.page.locator(".moment").first.wait_for()
    assert tab.page.input_value("#query") == QUERY


def test_a_moment_is_played_from_its_start_to_its_end(tab: Tab) -> None:
    tab.open().search()
    start, end = map(seconds, tab.page.locator(".moment .times").first.text_content().split(" – "))
    tab.page.locator(".moment .open").first.click()
    video = tab.page.locator("#video")
    first = video.evaluate(
        "video => new Promise((done) => video.addEventListener("
        "'timeupdate', () => done(video.currentTime), { once: true }))"
    )
    assert start - 0.1 <= first <= end + 1
    video.evaluate(
        "video => video.paused || new Promise((done) => video.addEventListener('pause', done))"
    )
    assert end <= current_time(tab) <= end + 1
    assert tab.page.locator(".moment.current").count() == 1
    assert tab.page.locator("#timeline polyline").count() == 1


def test_the_timeline_jumps_and_its_blocks_are_moments(tab: Tab) -> None:
    tab.open().search()
    tab.page.locator(".moment .open").first.click()
    name = tab.page.locator(".moment.current .name").text_content()
    assert tab.text("#player-title") == name
    blocks = tab.page.locator("#timeline button")
    same = tab.page.locator(".moment", has=tab.page.get_by_text(name, exact=True))
    assert blocks.count() == same.count()
    # No block hides another one.
    boxes = [block.bounding_box() for block in blocks.all()]
    for place, one in enumerate(boxes):
        for other in boxes[:place]:
            apart = abs(one["y"] - other["y"]) >= one["height"] - 1
            assert (
                apart
                or one["x"] >= other["x"] + other["width"] - 25
                or other["x"] >= one["x"] + one["width"] - 25
            )
    bar = tab.page.locator(".timeline").bounding_box()
    tab.page.mouse.click(bar["x"] + bar["width"] / 2, bar["y"] + 10)
    video = tab.page.locator("#video")
    length = video.evaluate("video => video.duration")
    assert current_time(tab) == pytest.approx(length / 2, abs=1.5)
    last = blocks.last
    last.click()
    assert last.get_attribute("aria-current") == "true"


def test_the_keys_step_between_moments(tab: Tab) -> None:
    tab.open()
    assert tab.page.evaluate("() => document.activeElement.id") == "query"
    tab.page.keyboard.type(QUERY)
    tab.page.keyboard.press("Enter")
    tab.page.locator("#status", has_text=re.compile("moments? in")).wait_for()
    # By Tab from the search box to the first moment.
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("() => document.activeElement.className") == "open":
            break
    tab.page.keyboard.press("Enter")
    assert current_rank(tab) == 1
    tab.page.keyboard.press("n")
    assert current_rank(tab) == 2
    tab.page.keyboard.press("p")
    tab.page.keyboard.press("p")
    assert current_rank(tab) == tab.page.locator(".moment").count()
    tab.page.focus("#query")
    tab.page.keyboard.type("n")  # a letter, where one can write
    assert current_rank(tab) == tab.page.locator(".moment").count()


def current_rank(tab: Tab) -> int:
    card: Any = tab.page.locator(".moment.current .words span").first
    return int(card.text_content().rstrip("."))


def test_filters(tab: Tab) -> None:
    tab.open()
    tab.page.click("#filters summary")
    tab.page.fill("[name=videos]", "second*")
    assert tab.text("#filter-count") == "(1 in use)"
    tab.search()
    assert set(tab.page.locator(".moment .name").all_text_contents()) == {"second.mp4"}
    tab.page.fill("[name=min_length]", "3600")
    tab.page.press("#query", "Enter")
    tab.page.locator("#status", has_text="look at the filters").wait_for()
    assert tab.page.locator(".moment").count() == 0


def test_what_no_video_shows_is_said(tab: Tab) -> None:
    tab.open().search()
    assert not tab.page.locator("#absent").is_visible()

    def answer(route: Any) -> None:
        text = route.fetch().text()
        route.fulfill(body=re.sub(r'("probably_absent": ?)false', r"\1true", text))

    tab.page.route("**/v1/search", answer)
    tab.search()
    assert tab.page.locator("#absent").is_visible()
    assert tab.page.locator(".mark", has_text="probably not in this video").count() > 0


def test_text_of_strangers_is_no_html(tab: Tab) -> None:
    name = "<img src=x onerror=alert(1)>\u202e.mp4"

    def answer(route: Any) -> None:
        body = route.fetch().text()
        route.fulfill(body=body.replace("first.mp4", name).replace("second.mp4", name))

    tab.page.route("**/v1/search", answer)
    tab.open().search()
    assert tab.page.locator(".moment .name").first.text_content() == name
    assert tab.page.locator("[onerror]").count() == 0
