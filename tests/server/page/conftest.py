"""Chromium, driven by Playwright, on the page of a running service."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.service import Service

QUERY = "a white ring"
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; a test that needs it is skipped where Chromium or Playwright is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("chromium: not installed; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


class Tab:
    """A page of the browser, and what it complained about."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._heard)
        page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        # The browser itself reports each answer of 4xx and 5xx; the tests look at what is shown.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.complaints.append(f"asked another host: {request.url}")

    def open(self, path: str = "/") -> Tab:
        """Load the page, and wait until it has read what the service can do."""
        self.page.goto(self.url + path)
        self.page.locator("#video-count:not(:empty)").wait_for()
        return self

    def search(self, query: str = QUERY) -> Tab:
        """Search, and wait for the last answer."""
        self.page.fill("#query", query)
        self.page.press("#query", "Enter")
        self.page.locator("#status", has_text=re.compile("moments? in")).wait_for()
        return self

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.page.locator(selector).text_content())


@pytest.fixture
def tab(chromium: Any, service: Service) -> Iterator[Tab]:
    """A page of the service that tests only read from, in a window of usual size."""
    yield from opened(chromium, service.url)


def opened(chromium: Any, url: str, **options: Any) -> Iterator[Tab]:
    """Yield a page in a profile of its own; at the end it must have had nothing to complain of."""
    context = chromium.new_context(accept_downloads=True, **options)
    tab = Tab(context.new_page(), url)
    yield tab
    context.close()
    assert tab.complaints == []


@pytest.fixture
def new_video(indexed: Path) -> Path:
    """A video that is in no library."""
    return indexed / "videos" / "new.mp4"
