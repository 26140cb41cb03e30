"""Requests that no client of good will sends, as bytes on a socket."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.ffmpeg import ffmpeg
from helpers.service import Service, running

from granalign_fast.index.work_folder import lock_folder
from granalign_fast.server.jobs import Job, Jobs
from granalign_fast.server.settings import Limits


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
        "/v1/videos/%252e%252e%252f%252e%252e%252fetc%252fpasswd/media",
        "/v1/videos/..%5c..%5cetc%5cpasswd/media",
        "/v1/videos/..\\..\\etc\\passwd/media",
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
        b"GET /nothing HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: localhost:99999999\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: localhost/@evil.example\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        + b"1" * 25
        + b"\r\n\r\n",
        b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nX: a\rY: b\r\n\r\n",
        b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"POST /v1/videos/first HTTP/1.1\r\nHost: localhost\r\n"
        b"X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
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


def test_a_body_with_two_lengths_ends_the_connection(service: Service) -> None:
    """A proxy that goes by the other length would see the end of the body as a second request."""
    second = b"GET /v1/videos HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunks = b"0\r\n\r\n" + second
    for lengths in (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(chunks),
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(chunks),
    ):
        head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n" + lengths
        got = answer(service, head + b"\r\n" + chunks)
        assert got.startswith(b"HTTP/1.1 400") and got.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in got.lower()


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"[" * 100_000 + b"]" * 100_000, {400}),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, {400}),
        (b'{"query": "a", "budget": NaN}', {422}),
        (b'{"query": "a", "budget": 1e400}', {422}),
        (b'{"query": "a", "top": ' + b"9" * 5000 + b"}", {400}),
        (b'{"query": "a", "top": ' + b"9" * 300 + b"}", {422}),
        (b'{"query": "\\ud800"}', {422}),
        (b'{"query": "a\\u0000\\n\\u001b[2J", "refine": 0}', {200, 422}),
        (b'{"query": "a", "query": "a ring", "refine": 0}', {200}),
        (b'{"query": "a", "filters": {"after": "99999-01-01"}}', {422}),
        (b"\xff\xfe", {400}),
    ],
)
def test_json_that_is_odd(service: Service, body: bytes, statuses: set[int]) -> None:
    headers = {"content-type": "application/json"}
    got = service.client.post("/v1/search", content=body, headers=headers)
    assert got.status_code in statuses, got.text
    assert len(got.text) < 20_000


@pytest.mark.parametrize(
    ("ranges", "statuses"),
    [
        ("bytes=" + ",".join(["0-"] * 500), {200, 206}),
        ("bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(1500)), {200, 206}),
        ("bytes=0-9,5-14", {206}),
        ("bytes=0-" + "9" * 30, {206}),
        ("bytes=-" + "9" * 30, {206}),
        ("bytes=5-2", {200}),
        ("bytes=a-b", {200}),
        ("bytes=-0", {416}),
        ("lines=1-2", {200}),
    ],
)
def test_ranges_that_are_odd(service: Service, ranges: str, statuses: set[int]) -> None:
    url = "/v1/videos/first/media"
    size = int(service.client.head(url).headers["content-length"])
    got = service.client.get(url, headers={"range": ranges})
    assert got.status_code in statuses
    assert len(got.content) < size + 1000  # no range is sent twice


def test_the_log_has_one_line_for_a_request(service: Service) -> None:
    service.client.get("/v1/videos/a%0d%0a2026-01-01T00:00:00Z%20info%20forged%1b[2J%e2%80%ae")
    assert lives(service)  # and so the line before is written
    until = time.monotonic() + 20
    while not (lines := [line for line in service.lines if "forged" in line]):
        assert time.monotonic() < until
        time.sleep(0.01)
    (line,) = lines
    assert "info GET /v1/videos/a" in line
    assert line.isprintable() and "\u202e" not in line


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


def test_a_service_that_is_full_says_so(library: Path) -> None:
    limits = ["--max-queue", "2", "--max-batch", "1"]
    with running(library, "--read-only", *limits) as service:
        service.wait_until_ready()
        body = {"query": "a large white ring"}
        for count, status in ((3, 200), (16, 200), (17, 422)):  # whole while there is room for one
            many = service.client.post("/v1/search", json={"queries": ["a"] * count})
            assert many.status_code == status
        with ThreadPoolExecutor(16) as pool:
            got = list(pool.map(lambda _: service.client.post("/v1/search", json=body), range(32)))
        assert {one.status_code for one in got} == {200, 429}
        refusals = [one for one in got if one.status_code == 429]
        assert all(int(one.headers["retry-after"]) >= 1 for one in refusals)
        assert {one.json()["type"] for one in refusals} == {"urn:granalign:problem:too-many"}
        assert service.client.post("/v1/search", json=body).status_code == 200
        refused = service.client.get("/metrics").text
        assert 'granalign_http_requests_refused_total{problem="too-many"}' in refused
        assert 'requests_total{method="POST",route="/v1/search",status="429"}' in refused
        assert 'requests_total{method="POST",route="other"' not in refused


def test_a_picture_that_is_no_picture(library: Path, tmp_path: Path) -> None:
    """A small file that unfolds into a huge frame is refused, and the service lives."""
    bomb = tmp_path / "bomb.gif"
    header = b"GIF89a" + (65535).to_bytes(2, "little") * 2 + b"\0\0\0"
    bomb.write_bytes(header + b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0\x3b")
    tiny = tmp_path / "tiny.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=s=16x16:r=1:d=2", tiny)
    others = {
        "bomb.gif": bomb.read_bytes(),
        "bomb.png": _png(60_000, 60_000),
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "list.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
    }
    with running(library) as service:
        service.wait_until_ready()
        for name, content in others.items():
            job = service.client.post(f"/v1/videos?name={name}", content=content).json()
            failed = service.wait_for(job["id"], "failed", "done")
            assert failed["state"] == "failed" and failed["error"].startswith(name)
            assert "root:" not in failed["error"]
        job = service.client.post("/v1/videos?name=tiny.mp4", content=tiny.read_bytes()).json()
        assert service.wait_for(job["id"], "failed", "done")["state"] == "done"
        assert lives(service)


def _png(width: int, height: int) -> bytes:
    """Return a small PNG that says that it is huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_many_jobs_and_many_who_follow_them(library: Path) -> None:
    """Past the limits clients get 429, and searches are answered as before."""
    limits = Limits()
    jobs = Jobs(library)
    jobs.create_folders()
    waiting = [
        Job(name="a.mp4", upload=False, path=Path("/none/a.mp4")) for _ in range(limits.jobs)
    ]
    for job in waiting:
        jobs.write(job, durably=False)
    # Another process is indexing, so that the jobs wait.
    with lock_folder(library), running(library) as service, ExitStack() as stack:
        service.wait_until_ready()
        refused = service.client.post("/v1/videos?name=b.mp4", content=b"b")
        assert refused.status_code == 429 and "retry-after" in refused.headers
        events = f"GET /v1/jobs/{waiting[0].id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for number in range(limits.followers + 1):
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), timeout=20)
            )
            client.sendall(events.encode())
            status = client.recv(1000)[9:12]
            assert status == (b"200" if number < limits.followers else b"429"), number
        begin = time.monotonic()
        body = {"query": "a large white ring"}
        assert service.client.post("/v1/search", json=body).status_code == 200
        assert service.client.get("/v1/jobs").status_code == 200
        assert time.monotonic() - begin < 10
        assert service.client.delete("/v1/videos/second").status_code == 200
