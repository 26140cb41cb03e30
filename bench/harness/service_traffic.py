"""Mixed traffic for a service: everything that clients do, also what they break off.

Each step is one use of the service: a request, or a few that belong together. It knows which
answers it may get; any other answer is kept as an error that nobody asked for.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

_SECONDS = 120.0
"""Seconds after which a request counts as hanging."""
_OWN_VIDEOS = 6
"""Videos of the traffic's own. Their number stays, so that memory may not grow with it."""
_FORMATS = ("srt", "vtt", "ffmetadata", "edl", "otio", "fcpxml", "csv")
_BOUNDARY = "traffic"
_SEARCH = "/v1/search"
_VIDEOS = "/v1/videos"


class Reply(NamedTuple):
    """The answer to a request."""

    status: int
    body: bytes

    @property
    def record(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Traffic:
    """The clients of a service, and what they have seen.

    Args:
        port: of the service, on this machine.
        videos: ids of videos that stay, with their seconds.
        files: video files to upload, of some seconds each.
        queries: to search for.
        seed: of everything random.

    Attributes:
        counts: how many answers there were, by step and status; ``gone`` where the client left.
        wrong: answers that no step may get, in words.
    """

    def __init__(
        self,
        port: int,
        videos: Mapping[str, float],
        files: Sequence[Path],
        queries: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self._port, self._queries = port, queries
        self._files = [path.read_bytes() for path in files]
        self._staying = dict(videos)
        self._own: dict[str, float] = {}
        self._number = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._steps: dict[Callable[[], None], int] = {
            self.search: 24,
            self.search_many: 4,
            self.stream: 8,
            self.leave_search: 4,
            self.leave_stream: 4,
            self.media_range: 8,
            self.media_whole: 3,
            self.leave_media: 3,
            self.thumbnail: 10,
            self.frame: 5,
            self.clip: 4,
            self.export: 5,
            self.upload: 6,
            self.leave_upload: 2,
            self.upload_no_video: 1,
            self.cancel: 2,
            self.delete: 6,
            self.look: 8,
            self.mistake: 6,
        }

    def step(self) -> None:
        """Do one thing, chosen by chance."""
        with self._lock:
            (chosen,) = self._random.choices(list(self._steps), list(self._steps.values()))
        name = chosen.__name__
        try:
            chosen()
        except (OSError, HTTPException, ValueError, KeyError) as error:
            self._blame(name, f"{type(error).__name__}: {error}")

    def each(self) -> None:
        """Do everything once."""
        for chosen in self._steps:
            chosen()

    def settle(self) -> None:
        """Upload or remove videos until there are as many as the traffic keeps."""
        while len(self._own) < _OWN_VIDEOS and not self.wrong:
            self._upload("upload")
        self._remove_surplus()

    # Searches.

    def search(self) -> None:
        """Search by one query, by some with rewrites or filters."""
        body: dict[str, Any] = {"query": self._query(), "refine": 4}
        with self._lock:
            kind = self._random.randrange(4)
        if kind == 1:
            body["query"] = {"query": self._query(), "simplified": [self._query()]}
        elif kind == 2:
            body |= {"filters": {"min_length": 1.0, "after": "2001-01-01"}, "saliency": True}
        self._ask("search", "POST", _SEARCH, body)

    def search_many(self) -> None:
        """Search by several queries."""
        queries = [self._query() for _ in range(3)]
        self._ask("search_many", "POST", _SEARCH, {"queries": queries, "refine": 2})

    def stream(self) -> None:
        """Search by events, up to the last one."""
        body = {"query": self._query(), "refine": 4, "stream": True}
        reply = self._ask("stream", "POST", _SEARCH, body)
        if b"event: done\n" not in reply.body:
            self._blame("stream", f"the last event is {reply.body[-300:]!r}")

    def leave_search(self) -> None:
        """Send a search, and go without reading."""
        body = json.dumps({"query": self._query()}).encode()
        self._send_and_leave("leave_search", _post(_SEARCH, "application/json", body))

    def leave_stream(self) -> None:
        """Go after the first events of a search."""
        body = json.dumps({"query": self._query(), "stream": True}).encode()
        self._send_and_leave("leave_stream", _post(_SEARCH, "application/json", body), read=200)

    # Media.

    def media_range(self) -> None:
        """Ask for a range of a file."""
        with self._video() as (vid, _):
            first = self._whole(0, 20_000)
            headers = {"range": f"bytes={first}-{first + self._whole(0, 5_000)}"}
            self._ask(
                "media_range", "GET", _media(vid), headers=headers, expected=(206, 416), vid=vid
            )

    def media_whole(self) -> None:
        """Ask for a whole file, and for its size."""
        with self._video() as (vid, _):
            self._ask("media_whole", "HEAD", _media(vid), vid=vid)
            self._ask("media_whole", "GET", _media(vid), vid=vid)

    def leave_media(self) -> None:
        """Go after the first bytes of a file."""
        with self._video() as (vid, _):
            request = f"GET {_media(vid)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            self._send_and_leave("leave_media", request, read=1000)

    def thumbnail(self) -> None:
        """Ask for a small picture."""
        with self._video() as (vid, _):
            self._ask("thumbnail", "GET", f"{_VIDEOS}/{quote(vid)}/thumbnail?width=160", vid=vid)

    def frame(self) -> None:
        """Ask for the frame at a time."""
        with self._video() as (vid, seconds):
            t = 2 * self._whole(0, int(seconds / 2) - 1)
            self._ask("frame", "GET", f"{_VIDEOS}/{quote(vid)}/frame?t={t}", vid=vid)

    def clip(self) -> None:
        """Cut a moment out, copied or encoded."""
        with self._video() as (vid, seconds):
            start = self._whole(0, int(seconds) - 4)
            exact = str(self._whole(0, 3) == 0).lower()
            query = f"start={start}&end={start + 3}&exact={exact}"
            self._ask("clip", "GET", f"{_VIDEOS}/{quote(vid)}/clip?{query}", vid=vid)

    def export(self) -> None:
        """Write moments in one of the formats."""
        with self._video() as (vid, _):
            name = _FORMATS[self._whole(0, len(_FORMATS) - 1)]
            query = urlencode(
                {"format": name, "query": self._query(), "moment": ["1-3-0.9", "4-6"]}, doseq=True
            )
            self._ask("export", "GET", f"{_VIDEOS}/{quote(vid)}/export?{query}", vid=vid)

    # Changes.

    def upload(self) -> None:
        """Upload a video, then remove another if there are more than the traffic keeps."""
        self._upload("upload")
        self._remove_surplus()

    def leave_upload(self) -> None:
        """Go in the middle of an upload."""
        name, content = self._new_file()
        request = _post(f"{_VIDEOS}?name={name}", "application/octet-stream", content)
        self._send_and_leave("leave_upload", request[: -len(content) // 2])

    def upload_no_video(self) -> None:
        """Upload a text, whose job fails."""
        url = f"{_VIDEOS}?name=text.mp4"
        reply = self._ask("upload_no_video", "POST", url, b"no video" * 100, expected=(202,))
        self._follow("upload_no_video", reply, ("failed",))

    def cancel(self) -> None:
        """Upload a video, and cancel its job."""
        name, content = self._new_file()
        reply = self._ask("cancel", "POST", f"{_VIDEOS}?name={name}", content, expected=(202,))
        if reply.status != 202:
            return
        url = f"/v1/jobs/{reply.record['id']}"
        self._ask("cancel", "DELETE", url, expected=(202, 409))
        self._follow("cancel", reply, ("cancelled", "done"))
        self._remove_surplus()

    def delete(self) -> None:
        """Remove a video that was uploaded, and upload another in its place."""
        self._remove(least=1)
        self._upload("delete")
        self._remove_surplus()

    # Everything else.

    def look(self) -> None:
        """Open the page, lists and descriptions."""
        urls = ("/", "/v1", "/v1/videos", "/v1/jobs?limit=20", "/metrics", "/docs", "/openapi.json")
        self._ask("look", "GET", urls[self._whole(0, len(urls) - 1)])

    def mistake(self) -> None:
        """Send what the service refuses."""
        wrong: tuple[tuple[str, str, Any, int], ...] = (
            ("GET", f"{_VIDEOS}/none", None, 404),
            ("GET", "/nothing", None, 404),
            ("POST", _SEARCH, {"query": ""}, 422),
            ("POST", _SEARCH, {"query": "a", "top": -1}, 422),
            ("PUT", _SEARCH, {}, 405),
            ("DELETE", "/v1/jobs/none", None, 404),
            ("POST", _VIDEOS, {"path": "/etc/passwd"}, 403),
        )
        method, url, body, status = wrong[self._whole(0, len(wrong) - 1)]
        self._ask("mistake", method, url, body, expected=(status,))

    # Helpers.

    def _upload(self, step: str) -> None:
        """Upload a video, as a form or as it is, and follow its job to the end."""
        name, content = self._new_file()
        if self._whole(0, 1):
            reply = self._ask(step, "POST", f"{_VIDEOS}?name={name}", content, expected=(202,))
        else:
            headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
            form = _form(name, content)
            reply = self._ask(step, "POST", _VIDEOS, form, headers=headers, expected=(202,))
        self._follow(step, reply, ("done",))

    def _remove_surplus(self) -> None:
        """Remove videos of the traffic's own until it has no more than it keeps."""
        while self._remove(least=_OWN_VIDEOS + 1):
            pass

    def _remove(self, least: int) -> bool:
        """Remove a video of the traffic's own if it has at least so many; return whether it did."""
        with self._lock:
            if len(self._own) < least:
                return False
            vid = self._random.choice(list(self._own))
            del self._own[vid]
        self._ask("delete", "DELETE", f"{_VIDEOS}/{quote(vid)}")
        return True

    def _query(self) -> str:
        with self._lock:
            return self._random.choice(self._queries)

    def _whole(self, least: int, most: int) -> int:
        with self._lock:
            return self._random.randint(least, max(least, most))

    def _new_file(self) -> tuple[str, bytes]:
        with self._lock:
            self._number += 1
            return f"new{self._number:05}.mp4", self._random.choice(self._files)

    @contextmanager
    def _video(self) -> Iterator[tuple[str, float]]:
        with self._lock:
            chosen = self._random.choice(list((self._staying | self._own).items()))
        yield chosen

    def _ask(
        self,
        step: str,
        method: str,
        url: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        expected: Sequence[int] = (200,),
        vid: str | None = None,
    ) -> Reply:
        """Send a request and read the whole answer."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["content-type"] = "application/json"
        connection = HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        try:
            connection.request(method, url, body, sent)
            response = connection.getresponse()
            reply = Reply(response.status, response.read())
        finally:
            connection.close()
        self._count(step, str(reply.status))
        known = vid is None or vid in self._staying or vid in self._own
        # A video that another client has removed meanwhile.
        removed = not known and reply.status in (404, 410)
        if reply.status not in expected and not removed:
            self._blame(step, f"{method} {url}: {reply.status} {reply.body[:500]!r}")
        return reply

    def _follow(self, step: str, reply: Reply, states: Sequence[str]) -> None:
        """Read the events of a job up to the last one."""
        if reply.status != 202:
            return
        job = reply.record
        last = self._ask(step, "GET", f"/v1/jobs/{job['id']}/events")
        events = [line for line in last.body.splitlines() if line.startswith(b"data: ")]
        job = json.loads(events[-1].removeprefix(b"data: "))
        if job["state"] not in states:
            self._blame(step, f"the job is {job['state']}: {job['error']}")
        if job["state"] == "done":
            with self._lock:
                self._own[job["vid"]] = 2.0 * job["done"]

    def _send_and_leave(self, step: str, request: bytes, read: int = 0) -> None:
        """Send bytes, read some of the answer, and close the connection."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=_SECONDS) as client:
            client.sendall(request)
            if read:
                with suppress(ConnectionResetError):
                    client.recv(read)
        self._count(step, "gone")

    def _count(self, step: str, outcome: str) -> None:
        with self._lock:
            self.counts[step, outcome] += 1

    def _blame(self, step: str, text: str) -> None:
        with self._lock:
            self.wrong.append(f"{step}: {text}")


def _media(vid: str) -> str:
    return f"{_VIDEOS}/{quote(vid)}/media"


def _post(url: str, kind: str, body: bytes) -> bytes:
    head = f"POST {url} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _form(name: str, content: bytes) -> bytes:
    """Return a form with a video and a tag."""
    tag = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="tag"\r\n\r\ntraffic\r\n'
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: video/mp4\r\n\r\n"
    )
    return tag.encode() + head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
