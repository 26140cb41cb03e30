"""Requests that no client of good will sends, as bytes on a socket."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from helpers.ffmpeg import ffmpeg
from helpers.service import Service, running
from starlette.types import Receive, Scope, Send

from granalign_fast.server import serving


def answer(service: Service, data: bytes, *, seconds: float = 20.0) -> bytes:
    """Send bytes, and return all that comes back until the service closes or says nothing."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=seconds) as client:
        client.sendall(data)
        got = b""
        try:
            while part := client.recv(65536):
                got += part
                if b"\r\n\r\n" in got and b"connection: close" not in got.lower():
                    client.settimeout(0.5)
        except (TimeoutError, ConnectionResetError):
            pass
        return got


def lives(service: Service) -> bool:
    return service.client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/../../../etc/passwd/media",
        "/v1/videos/..%2f..%2fetc%2fpasswd/media",
        "/v1/videos/%2e%2e/media",
        "/v1/videos/../media",
        "/v1/videos/.catalogue/media",
        "/v1/videos/.jobs/media",
        "/v1/videos/first%00/media",
        "/v1/videos/first%0d%0aX-Injected:%201/media",
        "/v1/videos/" + "a" * 8000 + "/media",
        "/v1/videos/first/media/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/videos/first/media/../../../../etc/passwd",
        "/v1/videos/%ff%fe/media",
        "/v1/videos/first/thumbnail?t=%00",
        "/v1/jobs/..%2f..%2f.tags",
        "/v1/jobs/../jobs/x",
        "//etc/passwd",
        "/page/../../pyproject.toml",
        "/page/%2e%2e/%2e%2e/app.py",
        "/docs/../../app.py",
    ],
)
def test_paths_that_leave(service: Service, path: str) -> None:
    got = answer(service, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert got.startswith((b"HTTP/1.1 4", b"HTTP/1.1 3")), got[:200]
    assert (
        b"root:" not in got
        and b"import" not in got
        and b"X-Injected" not in got.split(b"\r\n\r\n")[0]
    )
    assert lives(service)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/videos HTTP/1.1\r\n" + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\na",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/videos HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/videos HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET http://evil.example/v1/videos HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_requests_that_are_none(service: Service, data: bytes) -> None:
    got = answer(service, data)
    assert got == b"" or got.startswith(b"HTTP/1.1 4"), got[:300]
    assert b"Traceback" not in got
    assert lives(service)


def test_a_body_that_is_too_large(service: Service) -> None:
    most = 1 << 18
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    said = answer(service, f"{head}Content-Length: {most + 1}\r\n\r\n".encode())
    assert b" 413 " in said.split(b"\r\n")[0] and b"problem+json" in said
    chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 6
    assert b" 413 " in answer(service, chunked).split(b"\r\n")[0]
    # A body that expands: the service knows no content encodings.
    response = service.client.post(
        "/v1/search",
        content=b"\x1f\x8b" + b"\0" * 100,
        headers={"content-encoding": "gzip", "content-type": "application/json"},
    )
    assert response.status_code == 400
    assert lives(service)


def test_clients_that_say_nothing_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client has some seconds for its headers, also for those of its second request."""
    monkeypatch.setattr(serving, "_HEADER_SECONDS", 0.5)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        _answer_alive, http=serving.PatientProtocol, ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    whole = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    clients = {}
    try:
        for opening in (b"", b"GET / HT", whole[:-2] + b"X-A: ", whole + b"GET /"):
            clients[opening] = socket.create_connection(listener.getsockname(), timeout=20)
            clients[opening].sendall(opening)
        for opening, client in clients.items():
            got = b""
            while part := client.recv(65536):
                got += part
            assert (b"alive" in got) == opening.startswith(whole)
            client.close()
    finally:
        server.should_exit = True
        thread.join()


async def _answer_alive(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"alive"})


def test_a_service_that_is_full_says_so(library: Path) -> None:
    limits = ["--max-queue", "2", "--max-batch", "1"]
    with running(library, "--read-only", *limits) as service:
        service.wait_until_ready()
        body = {"query": "a large white ring"}
        many = service.client.post("/v1/search", json={"queries": ["a", "b", "c"]})
        assert many.status_code == 429 and int(many.headers["retry-after"]) >= 1
        assert many.json()["type"] == "urn:granalign:problem:too-many"
        with ThreadPoolExecutor(16) as pool:
            got = list(pool.map(lambda _: service.client.post("/v1/search", json=body), range(32)))
        assert {one.status_code for one in got} == {200, 429}
        assert service.client.post("/v1/search", json=body).status_code == 200
        refused = service.client.get("/metrics").text
        assert 'granalign_http_requests_refused_total{problem="too-many"}' in refused


def test_a_picture_that_is_no_picture(library: Path, tmp_path: Path) -> None:
    """A small file that unfolds into a huge frame is refused, and the service lives."""
    bomb = tmp_path / "bomb.gif"
    header = b"GIF89a" + (65535).to_bytes(2, "little") * 2 + b"\0\0\0"
    bomb.write_bytes(header + b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0\x3b")
    tiny = tmp_path / "tiny.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=s=16x16:r=1:d=2", tiny)
    with running(library) as service:
        service.wait_until_ready()
        job = service.client.post("/v1/videos?name=bomb.gif", content=bomb.read_bytes()).json()
        assert service.wait_for(job["id"], "failed", "done")["state"] == "failed"
        job = service.client.post("/v1/videos?name=tiny.mp4", content=tiny.read_bytes()).json()
        assert service.wait_for(job["id"], "failed", "done")["state"] == "done"
        assert lives(service)
