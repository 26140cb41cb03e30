"""The addresses of model servers, and their keys."""

from __future__ import annotations

import pytest

from granalign_fast import GranAlignError
from granalign_fast.models.remote.address import Address


@pytest.mark.parametrize(
    ("text", "url", "route"),
    [
        ("http://gpu:8000", "http://gpu:8000/v1", ""),
        ("http://GPU:8000/", "http://gpu:8000/v1", ""),
        ("https://host/team/v1/", "https://host/team/v1", ""),
        ("http://h/v1/chat/completions", "http://h/v1", "/chat/completions"),
        ("http://h:80/embed", "http://h:80", "/embed"),
        ("http://h/v1/embeddings", "http://h/v1", "/embeddings"),
        ("http://[::1]:8000", "http://[::1]:8000/v1", ""),
    ],
)
def test_urls_are_completed(text: str, url: str, route: str) -> None:
    address = Address.parse("embed", text)
    assert (address.url, address.route) == (url, route)


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@gpu:8000/v1",
        "http://hunter2@gpu:8000/v1",
        "http://gpu/v1?key=hunter2",
        "http://gpu/v1#hunter2",
        "gpu:8000",
        "ftp://gpu/v1",
        "http://",
        "http://gpu:port",
        "http://gpu:99999/v1",
        "http://g pu/",
        "http://[::1/v1",
        "http://gpu/\n",
        "",
        "http://gpu/" + "x" * 1000,
    ],
)
def test_urls_that_are_none_are_refused_without_their_secrets(text: str) -> None:
    with pytest.raises(GranAlignError, match="--vlm-url: got") as error:
        Address.parse("vlm", text)
    assert "hunter2" not in str(error.value) and str(error.value).isprintable()


def test_a_key_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRANALIGN_VLM_API_KEY", "a\r\nX-Evil: 1")
    with pytest.raises(GranAlignError, match="GRANALIGN_VLM_API_KEY: got characters"):
        Address.parse("vlm", "http://gpu")
