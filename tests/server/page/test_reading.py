"""Whether everybody can use the page: names of controls, contrast, narrow windows."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.service import Service, running

from granalign_fast import server

from .conftest import Tab, opened

pytestmark = pytest.mark.needs_browser
CONTROLS = {"button", "checkbox", "combobox", "link", "searchbox", "spinbutton", "textbox", "Date"}
PAIRS = (
    ("ink", "paper"),
    ("ink", "panel"),
    ("ink", "warning"),
    ("faint", "paper"),
    ("faint", "panel"),
    ("on-accent", "accent"),
    ("on-moment", "moment"),
    ("bad", "paper"),
    ("bad", "panel"),
)


def test_every_control_has_a_name(tab: Tab) -> None:
    """The names are those of Chromium's own accessibility tree, which screen readers use."""
    page = tab.open().search().page
    page.click("#filters summary")
    page.locator(".moment .open").first.click()
    page.locator(".moment .tick").first.check()
    session = page.context.new_cdp_session(page)
    for opener, least in ((None, 20), ("#open-library", 6)):
        if opener:
            page.click(opener)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        controls = [
            node
            for node in nodes
            if not node["ignored"] and node.get("role", {}).get("value") in CONTROLS
        ]
        assert len(controls) > least
        unnamed = [node for node in controls if not node.get("name", {}).get("value")]
        assert unnamed == []


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_enough_contrast() -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks of text, in light and dark."""
    style = (Path(server.__file__).parent / "page" / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    for colours, (text, ground) in itertools.product((light, dark), PAIRS):
        low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2560])
def test_nothing_is_cut_off_at_any_width(chromium: Any, service: Service, width: int) -> None:
    for tab in opened(chromium, service.url, viewport={"width": width, "height": 800}):
        page = tab.open().search().page
        page.locator(".moment .open").first.click()
        page.locator(".moment .tick").first.check()
        page.click("#filters summary")
        for opener in (None, "#open-library"):
            if opener:
                page.click(opener)
            wide = page.evaluate(
                "() => [...document.querySelectorAll('*')].filter((part) => "
                "part.getBoundingClientRect().right > innerWidth + 0.5 && part.checkVisibility())"
                ".map((part) => part.outerHTML.slice(0, 100))"
            )
            assert wide == []


def test_the_page_answers_while_models_are_loaded(chromium: Any, library: Path) -> None:
    with running(library) as service:
        for tab in opened(chromium, service.url):
            tab.open()  # waits until the service is ready
            assert tab.text("#video-count") == "(2)"
