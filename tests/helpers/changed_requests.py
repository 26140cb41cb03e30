"""Requests of each route of a service, changed at random by a number."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes

from helpers.mutated.values import OUTSIDE, TEXTS, changed, dumped

SEARCH: dict[str, Any] = {
    "query": "a large white ring",
    "top": 3,
    "refine": 2,
    "budget": 1.0,
    "preset": "tuned",
    "filters": {"videos": ["first"], "tags": [], "after": "2020-01-01", "min_length": 1.0},
    "stream": False,
    "saliency": True,
    "timeout": 10.0,
}
REWRITES = {"query": "a ring", "simplified": ["ring"], "detailed": ["a white ring"]}
SEARCHES: tuple[dict[str, Any], ...] = (
    SEARCH,
    {"query": REWRITES | {"entities": ["ring"], "actions": []}, "top": 1, "refine": 1},
    {"queries": ["a ring", REWRITES], "refine": 1},
    {"query": "a ring", "stream": True, "refine": 1},
)
GETS: tuple[tuple[str, dict[str, str]], ...] = (
    ("/", {}),
    ("/v1", {}),
    ("/docs", {}),
    ("/metrics", {}),
    ("/page/page.js", {}),
    ("/openapi.json", {}),
    ("/health/ready", {}),
    ("/v1/videos", {"tag": "a", "offset": "0", "limit": "5"}),
    ("/v1/videos/first", {}),
    ("/v1/videos/first/media", {}),
    ("/v1/videos/first/media/first.mp4", {}),
    ("/v1/videos/first/frame", {"t": "1.5", "width": "64"}),
    ("/v1/videos/first/thumbnail", {"t": "3", "width": "64"}),
    ("/v1/videos/first/clip", {"start": "2", "end": "4", "exact": "false", "container": "mp4"}),
    ("/v1/videos/first/export", {"format": "srt", "query": "a", "moment": "1-3-0.5", "file": "/a"}),
    ("/v1/jobs", {"limit": "5"}),
    ("/v1/jobs/0123456789abcdef0123456789abcdef", {}),
    ("/v1/jobs/0123456789abcdef0123456789abcdef/events", {}),
)
HEADERS: tuple[tuple[str, str], ...] = (
    ("Range", "bytes=0-99"),
    ("If-Range", '"a"'),
    ("Accept", "text/event-stream"),
    ("Cookie", "granalign_session=a.1.b.c"),
    ("Authorization", "Bearer abc"),
    ("Origin", "http://localhost"),
    ("X-Request-Id", "mine"),
    ("X-HTTP-Method-Override", "DELETE"),
    ("X-Forwarded-Host", "evil.example"),
    ("Content-Encoding", "gzip"),
    ("Expect", "100-continue"),
    ("Connection", "keep-alive"),
)
PIECES: tuple[bytes, ...] = (
    *(b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"%00", b"%2e%2e%2f", b"..", b"/", b"\xff"),
    *(b"?", b"&", b"=", b"[", b"]", b"%", b"\xc3\xa9", b"\x1b[2J", b"-1", b"9" * 25, b"a" * 5000),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Host: evil.example\r\n"),
)
RANGES: tuple[str, ...] = (
    *("bytes=0-", "bytes=-1", "bytes=5-2", "bytes=0-0,2-3", "bytes=a-b", "bytes=--1", "bytes="),
    *("bytes=0-" + "9" * 30, ",".join(["bytes=0-1"] * 500), "bytes=" + ",".join(["0-"] * 500)),
    *("lines=1-2", "bytes=99999999-", "bytes=0-1," * 9 + "0-"),
)

Made = tuple[bytes, str]
"""A request, and in words what was changed."""


class Requests:
    """Makes changed requests.

    Args:
        video: the bytes of a small video.
        outside: a folder that no request may reach.
    """

    def __init__(self, video: bytes, outside: Path) -> None:
        self._video, self._outside = video, outside
        self._makers: dict[Callable[[random.Random], bytes], int] = {
            self.search_of_changed_json: 30,
            self.changed_parameters: 25,
            self.changed_headers: 12,
            self.changed_bytes: 12,
            self.changed_framing: 8,
            self.path_of_changed_json: 4,
            self.changed_form: 6,
            self.changed_video: 1,
            self.other_method: 2,
        }

    def make(self, number: int, kind: str | None = None) -> Made:
        """Return the request of a number, and its kind; the kind is drawn unless it is given."""
        rng = random.Random(number)
        (maker,) = rng.choices(list(self._makers), list(self._makers.values()))
        if kind is not None:
            maker = next(one for one in self._makers if one.__name__ == kind)
        return maker(rng), maker.__name__

    def search_of_changed_json(self, rng: random.Random) -> bytes:
        """Change values of a search; sometimes its text."""
        text = dumped(changed(rng, rng.choice(SEARCHES)))
        if rng.random() < 0.2:
            text = text.replace("{", rng.choice(('{"top": 1, ', '{"query": "b", ', "{{", "[")), 1)
        return _post("/v1/search", self._places(text).encode(errors="surrogatepass"))

    def path_of_changed_json(self, rng: random.Random) -> bytes:
        """Ask for a video by another path."""
        asked = {"path": rng.choice(("new.mp4", *TEXTS)), "tags": ["a"]}
        text = dumped(changed(rng, asked) if rng.random() < 0.5 else asked)
        return _post("/v1/videos", self._places(text).encode(errors="surrogatepass"))

    def changed_parameters(self, rng: random.Random) -> bytes:
        """Change a part of a path, or parameters."""
        path, parameters = rng.choice(GETS)
        given = list(parameters.items())
        parts = path.split("/")
        if rng.random() < 0.3 or not given:
            parts[rng.randrange(1, len(parts))] = self._odd(rng)
            path = "/".join(parts)
        if given and rng.random() < 0.8:
            for _ in range(rng.choice((1, 1, 2))):
                at = rng.randrange(len(given))
                name, value = given[at]
                given[at] = rng.choice(((name, self._odd(rng)), (self._odd(rng), value)))
            if rng.random() < 0.2:
                given *= rng.choice((2, 50, 600))
        query = "&".join(f"{name}={value}" for name, value in given)[:30_000]
        return _head("GET", f"{path[:20_000]}?{query}") + b"\r\n"

    def changed_headers(self, rng: random.Random) -> bytes:
        """Add headers, or change them."""
        path, parameters = rng.choice(GETS)
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        given = [("Host", "localhost"), *rng.sample(HEADERS, rng.randint(1, 4))]
        if rng.random() < 0.4:
            given.append(("Range", rng.choice(RANGES)))
        at = rng.randrange(len(given))
        name, value = given[at]
        odd = self._odd(rng, escaped=False)[:5000].replace("\n", "").replace("\r", "")
        given[at] = rng.choice(
            ((name, odd), (name, value + odd), (name, value[:-1]), (name + odd[:3], value))
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in given)
        head = f"GET {path}?{query} HTTP/1.1\r\n{lines}\r\n"
        return head.encode(rng.choice(("utf-8", "latin-1")), errors="replace")

    def changed_bytes(self, rng: random.Random) -> bytes:
        """Change bytes anywhere in a request."""
        if rng.random() < 0.5:
            path, parameters = rng.choice(GETS)
            query = "&".join(f"{name}={value}" for name, value in parameters.items())
            request = _head("GET", f"{path}?{query}") + b"\r\n"
        else:
            request = _post("/v1/search", json.dumps(rng.choice(SEARCHES)).encode())
        return self._disturbed(rng, request, len(request))

    def changed_framing(self, rng: random.Random) -> bytes:
        """Send a body in chunks, some of them wrong, or with another length."""
        body = json.dumps(rng.choice(SEARCHES)).encode()
        kind = b"Content-Type: application/json\r\n"
        if rng.random() < 0.4:
            length = rng.choice((0, 1, len(body) - 1, len(body) + 1, 10**6, 10**12, -1))
            said = f"Content-Length: {length}\r\n\r\n".encode()
            return _head("POST", "/v1/search") + kind + said + body
        parts = []
        while body:
            size = rng.randint(1, 40)
            said = rng.choice((size, size, size, size, size, size + 1, -1, 2**40, 0))
            parts.append(f"{min(said, len(body)) if said == size else said:x}".encode())
            parts[-1] += (
                rng.choice((b"", b"", b"", b";a=b", b" ")) + b"\r\n" + body[:size] + b"\r\n"
            )
            body = body[size:]
        end = rng.choice((b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"", b"0\r\n"))
        head = _head("POST", "/v1/search") + kind + b"Transfer-Encoding: chunked\r\n\r\n"
        return head + b"".join(parts) + end

    def changed_form(self, rng: random.Random) -> bytes:
        """Upload by a form of which something is wrong; the file is mostly no video."""
        content = rng.choice((b"", b"no video", b"\r\n--x", b"--x--", rng.randbytes(300)))
        names = [rng.choice(("a.mp4", "", "../../a.mp4", *TEXTS[:9])) for _ in range(2)]
        parts = [
            f'Content-Disposition: form-data; name="file"; filename="{names[0]}"\r\n\r\n'.encode(
                errors="replace"
            )
            + content,
            f'Content-Disposition: form-data; name="tag"\r\n\r\n{names[1]}'.encode(
                errors="replace"
            ),
        ]
        rng.shuffle(parts)
        parts = parts[: rng.choice((1, 2, 2))] * rng.choice((1, 1, 1, 2, 60))
        body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
        if rng.random() < 0.7:
            body = self._disturbed(rng, body, len(body))
        boundary = rng.choice((b"x", b"x", b"x", b'"x"', b"", b"y", b"x" * 300, b"\xff"))
        kind = b"multipart/form-data; boundary=" + boundary
        return _post("/v1/videos", body, kind)

    def changed_video(self, rng: random.Random) -> bytes:
        """Upload a video of which some bytes are changed, under an odd name."""
        name = rng.choice(("a.mp4", self._odd(rng)))[:3000]
        content = self._disturbed(rng, self._video, 4096)
        return _post(f"/v1/videos?name={name}", content, b"application/octet-stream")

    def other_method(self, rng: random.Random) -> bytes:
        """Use another method on a route."""
        path, _ = rng.choice((*GETS, ("/v1/search", {}), ("/v1/session", {})))
        methods = ("PUT", "PATCH", "OPTIONS", "HEAD", "TRACE", "FOO", "post", "POST", "G" * 300)
        if "first" not in path:  # the other answers are compared with those of this video
            methods += ("DELETE",)
        return _head(rng.choice(methods), path) + b"Content-Length: 2\r\n\r\n{}"

    def _odd(self, rng: random.Random, *, escaped: bool = True) -> str:
        """Return an odd text, as a part of a URL or not."""
        text = rng.choice((*TEXTS, "1", "-1", "1e400", "1_0", "0x1", "٣", "٣.٥", "true", "null"))
        text = self._places(text)[: rng.choice((20, 200, 30_000))]
        if not escaped:
            return text
        once = quote(text.encode(errors="surrogatepass"), safe=rng.choice(("", "/", "/:?")))
        return rng.choice((once, once, quote(once), quote_from_bytes(rng.randbytes(4))))

    def _places(self, text: str) -> str:
        return text.replace(OUTSIDE, str(self._outside))

    def _disturbed(self, rng: random.Random, data: bytes, most: int) -> bytes:
        """Return bytes of which some among the first ones are changed."""
        changed_data = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(min(most, len(changed_data)) or 1)
            kind = rng.randrange(5)
            if kind == 0:
                changed_data[at : at + 1] = rng.randbytes(1)
            elif kind == 1:
                changed_data[at:at] = rng.choice(PIECES)
            elif kind == 2:
                del changed_data[at : at + rng.randint(1, 20)]
            elif kind == 3:
                changed_data[at:at] = changed_data[at : at + rng.randint(1, 60)]
            else:
                del changed_data[at + rng.randrange(200) :]
        return bytes(changed_data)


def _head(method: str, url: str) -> bytes:
    return f"{method} {url} HTTP/1.1\r\nHost: localhost\r\n".encode(errors="replace")


def _post(url: str, body: bytes, kind: bytes = b"application/json") -> bytes:
    said = b"Content-Type: " + kind + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    return _head("POST", url) + said + body
