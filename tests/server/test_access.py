"""Tokens, scopes, sessions, hosts, origins, headers and the log."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers.command import runner
from helpers.service import Service, running

from granalign_fast.errors import GranAlignError
from granalign_fast.miniatures import MODELS
from granalign_fast.server.access import Tokens, host_name, is_loopback

READ, WRITE = "reading-0123456789", "writing-0123456789"
SEARCH = {"query": "a large white ring"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with tokens, of which nobody changes the library."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"# ours\n\npage read {READ}\nadmin read,write {WRITE}\n")
    tokens.chmod(0o600)
    options = ["--token-file", tokens, "--log-format", "json", "--cors", "https://friend.example"]
    with running(indexed / "library", "--read-only", *options) as service:
        yield service.wait_until_ready()


def test_a_token_is_needed(guarded: Service) -> None:
    for headers in ({}, bearer("wrong"), bearer(READ[:-1]), {"authorization": READ}):
        for url in ("/v1/videos", "/metrics", "/v1/videos/first/media", "/v1/nothing"):
            got = guarded.client.get(url, headers=headers)
            assert got.status_code == 401 and got.headers["www-authenticate"].startswith("Bearer")
            assert got.json()["type"] == "urn:granalign:problem:unauthorised"
    for url in ("/health/live", "/health/ready", "/docs", "/openapi.json"):
        assert guarded.client.get(url).status_code == 200
    assert guarded.client.get("/v1/videos", headers=bearer(READ)).status_code == 200


def test_scopes(guarded: Service) -> None:
    search = guarded.client.post("/v1/search", json=SEARCH, headers=bearer(READ))
    assert search.status_code == 200
    for method, url in (
        *(("DELETE", "/v1/videos/first"), ("POST", "/v1/videos"), ("DELETE", "/v1/jobs/a")),
        *(("POST", "/v1/nothing"), ("PUT", "/v1/search")),
    ):
        assert guarded.client.request(method, url, headers=bearer(READ)).status_code == 403
    # The scope suffices here, and the service is read-only.
    got = guarded.client.delete("/v1/videos/first", headers=bearer(WRITE))
    assert got.status_code == 501


def test_a_session_stands_for_its_token(guarded: Service) -> None:
    with httpx.Client(base_url=guarded.url) as browser:
        begun = browser.post("/v1/session", headers=bearer(READ))
        cookie = begun.headers["set-cookie"].lower()
        assert begun.status_code == 204 and "httponly" in cookie and "samesite=strict" in cookie
        assert READ not in cookie
        assert browser.get("/v1/videos").status_code == 200
        assert browser.get("/v1/videos/first/thumbnail").status_code == 200
        assert browser.delete("/v1/videos/first").status_code == 403
        value = browser.cookies["granalign_session"]
        for forged in (
            value[:-1] + ("0" if value[-1] != "0" else "1"),
            "a.1.b.c",
            ".",
            "",
            "a" * 5000,
        ):
            got = httpx.get(f"{guarded.url}/v1/videos", cookies={"granalign_session": forged})
            assert got.status_code == 401
        # A page of another site cannot use it.
        other = browser.post("/v1/search", json=SEARCH, headers={"origin": "https://evil.example"})
        assert other.status_code == 403
        browser.delete("/v1/session")
        assert browser.get("/v1/videos").status_code == 401


def test_other_sites(guarded: Service) -> None:
    def search(origin: str) -> httpx.Response:
        headers = bearer(READ) | {"origin": origin}
        return guarded.client.post("/v1/search", json=SEARCH, headers=headers)

    assert search("https://evil.example").status_code == 403
    assert search("null").status_code == 403
    friend = search("https://friend.example")
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in friend.headers
    assert search(guarded.url).status_code == 200
    asked = {"access-control-request-method": "POST", "origin": "https://evil.example"}
    preflight = guarded.client.options("/v1/search", headers=asked)
    assert "access-control-allow-origin" not in preflight.headers


def test_a_service_of_this_machine_has_no_other_name(service: Service) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        got = service.client.get("/v1/videos", headers={"host": host})
        assert got.status_code == 421, host
    for host in (f"localhost:{service.port}", "127.0.0.1", "[::1]:80"):
        assert service.client.get("/v1/videos", headers={"host": host}).status_code == 200
    for origin in ("https://evil.example", "null", f"http://evil.example:{service.port}"):
        got = service.client.post("/v1/search", json=SEARCH, headers={"origin": origin})
        assert got.status_code == 403
    assert "access-control-allow-origin" not in service.client.get("/v1").headers


def test_security_headers(service: Service) -> None:
    for url in ("/v1/videos", "/v1/videos/first/media", "/nothing", "/docs"):
        headers = service.client.get(url).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_the_log_has_ids_and_no_secrets(guarded: Service) -> None:
    query = "a very private query"
    got = guarded.client.post(
        "/v1/search", json={"query": query}, headers=bearer(READ) | {"x-request-id": "mine-1"}
    )
    assert got.headers["x-request-id"] == "mine-1"
    guarded.client.get(f"/v1/videos?tag={query}&token={READ}", headers=bearer(WRITE))
    forged = guarded.client.get("/v1/videos", headers={"x-request-id": 'a"\tb'})
    assert re.fullmatch("[0-9a-f]{32}", forged.headers["x-request-id"])
    events = [json.loads(line) for line in guarded.lines if line.startswith("{")]
    (mine,) = [event for event in events if event.get("request_id") == "mine-1"]
    assert (mine["method"], mine["route"], mine["status"]) == ("POST", "/v1/search", 200)
    assert mine["token"] == "page" and mine["seconds"] > 0
    text = "\n".join(guarded.lines)
    assert READ not in text and WRITE not in text and query not in text
    assert not [line for line in guarded.lines[1:] if not line.startswith("{")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no token"),
        ("page read", "tokens:1: expected NAME SCOPES TOKEN"),
        ("\npage all 0123456789abcdef", "tokens:2: expected the scopes read or read,write"),
        ("page read short", "tokens:1: expected a token of at least 16 characters"),
        ("a/b read 0123456789abcdef", "tokens:1: expected NAME"),
        ("a read 0123456789abcdef\na read 0123456789abcdeg", "two lines have one name"),
        ("a read 0123456789abcdef\nb read 0123456789abcdef", "two lines have one token"),
    ],
)
def test_token_files_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as caught:
        Tokens.parse(text)
    assert "0123456789" not in str(caught.value) and "short" not in str(caught.value)


def test_the_time_of_a_comparison_does_not_depend_on_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every token is compared, by digests of one length, wherever the right one stands."""
    tokens = Tokens.parse("\n".join(f"n{number} read {READ}{number}" for number in range(5)))
    compared: list[tuple[int, int]] = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return first == second

    monkeypatch.setattr("hmac.compare_digest", compare)
    for text in (f"{READ}0", f"{READ}4", READ, "", "a" * 10_000, "\udcff"):
        compared.clear()
        tokens.find(text)
        assert compared == [(32, 32)] * 5


def test_a_session_expires_and_belongs_to_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens.parse(f"page read {READ}")
    token = tokens.find(READ)
    assert token is not None
    value = tokens.session(token)
    assert tokens.of_session(value) == token
    assert Tokens.parse(f"page read {WRITE}").of_session(value) is None
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert tokens.of_session(value) is None


def test_names_of_hosts() -> None:
    assert host_name("LOCALHOST:1") == "localhost" and host_name("[::1]:2") == "::1"
    assert is_loopback("127.0.0.2") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it, expected --token-fi"),
        (["--host", "::"], "--host ::: other machines can reach it"),
        (["--token-file", "none", "--no-auth"], "--no-auth and --token-file: got both"),
        (["--token-file", "none"], "none: cannot be read (No such file or directory)"),
        (["--log-format", "xml"], "--log-format: got 'xml', expected text or json"),
        (["--host", "203.0.113.1", "--no-auth"], "--port 8000: cannot listen there"),
        (["--preset", "none"], "got 'none', expected one of"),
        (["--root", "none"], "--root none: got no folder"),
        (["--cors", "example.org"], "--cors example.org: expected the scheme and the name of a"),
        (["--cors", "https://example.org/"], "--cors https://example.org/: expected the scheme"),
        (["--cors", "*"], "--cors *: expected the scheme and the name of a site, and no path"),
        (["--clip-seconds", "0"], "clip_seconds: got 0.0, expected seconds from 0.01"),
        (["--frames-per-clip", "0"], "frames_per_clip: got 0, expected one of"),
    ],
)
def test_what_is_not_served(
    indexed: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    granalign = runner(capsys, monkeypatch)
    code, out, err = granalign("serve", indexed / "library", "--read-only", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "option", ["--max-delay", "--max-seconds", "--cache-gib", "--max-upload-gib"]
)
@pytest.mark.parametrize("value", ["inf", "1e300", "nan"])
def test_numbers_without_bounds_are_refused(
    indexed: Path,
    option: str,
    value: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    granalign = runner(capsys, monkeypatch)
    code, out, err = granalign("serve", indexed / "library", "--read-only", option, value)
    assert (code, out) == (2, "") and f"'{option}': Input should be" in err


def test_libraries_that_are_not_served(
    indexed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    granalign = runner(capsys, monkeypatch)
    code, _, err = granalign("serve", tmp_path / "none")
    assert code == 2 and "none: cannot be read" in err
    code, _, err = granalign("serve", indexed / "library" / "first")
    assert code == 2 and "got the index of one video, expected a folder of indexes" in err
    code, _, err = granalign("serve", indexed / "library", "--models", tmp_path)
    assert code == 2 and err.count("\n") == 1


def test_models_that_do_not_fit_end_the_service(indexed: Path, tmp_path: Path) -> None:
    """The indexes were made with models that are not given."""
    shutil.copytree(MODELS / "clip", tmp_path / "clip")
    with running(indexed / "library", "--read-only", models=str(tmp_path)) as service:
        assert service.process.wait(60) == 2
        service.end()
    assert "was made with models that are not given" in service.lines[-1]
