"""Kill a service at random moments: ``PYTHONPATH=tests python -m helpers.kill_service 20 [SEED]``.

Clients upload videos, at once and slowly, and have others indexed by path. The service is killed
with ``kill -9``, and the next one goes on. After each start every video that is listed must be
whole: its index, its file, its moments. At the end every upload that was accepted is done or failed
by name, each index equals that of an undisturbed run, and nothing is left over.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from granalign_fast.index import VideoIndex
from granalign_fast.pipeline import open_models
from helpers.service import Service, running
from helpers.small_library import write_small_library

_LATEST = 6.0
"""Seconds after which the service is killed at the latest."""


class Clients:
    """Two clients that upload until the service has gone.

    Attributes:
        accepted: jobs that the service has answered with, by id: the key of the content.
    """

    def __init__(self, contents: dict[str, bytes], rng: random.Random) -> None:
        self.accepted: dict[str, str] = {}
        self._contents, self._rng, self._number = contents, rng, 0
        self._lock = threading.Lock()

    def begin(self, port: int) -> list[threading.Thread]:
        """Start to upload."""
        works = (self._upload, self._upload_slowly)
        threads = [threading.Thread(target=work, args=(port,)) for work in works]
        for thread in threads:
            thread.start()
        return threads

    def _next(self) -> tuple[str, str]:
        with self._lock:
            self._number += 1
            return f"video{self._number}.mp4", self._rng.choice(list(self._contents))

    def _upload(self, port: int) -> None:
        with suppress(httpx.HTTPError), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(3):
                name, key = self._next()
                got = client.post(f"/v1/videos?name={name}", content=self._contents[key])
                self.accepted[got.json()["id"]] = key

    def _upload_slowly(self, port: int) -> None:
        """Send a video in small pieces, so that the kill finds it half there."""
        name, key = self._next()
        content = self._contents[key]
        head = f"POST /v1/videos?name={name} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head.encode())
            for at in range(0, len(content), 1 + len(content) // 20):
                client.sendall(content[at : at + 1 + len(content) // 20])
                time.sleep(0.2)


def check(service: Service, library: Path, contents: dict[str, bytes]) -> int:
    """Check that each video that the service lists is whole; return how many there are."""
    listed = service.client.get("/v1/videos", params={"limit": 1000}).json()
    assert listed["damaged"] == {}, listed["damaged"]
    for video in listed["videos"]:
        vid = video["vid"]
        index = VideoIndex.load(library / vid)
        assert index.video.clips == video["clips"]
        media = service.client.get(f"/v1/videos/{vid}/media")
        assert media.status_code == 200, (vid, media.text)
        assert media.content in contents.values(), f"{vid}: another file"
        body = {"query": "a ring", "filters": {"videos": [vid]}}
        found = service.client.post("/v1/search", json=body).json()
        assert found["results"][0]["moments"], vid
    return len(listed["videos"])


def wait_for_jobs(service: Service) -> list[dict[str, Any]]:
    """Wait until all jobs have ended; return them."""
    jobs: list[dict[str, Any]] = service.client.get("/v1/jobs", params={"limit": 1000}).json()[
        "jobs"
    ]
    return [service.wait_for(job["id"], "done", "failed", "cancelled") for job in jobs]


def main(kills: int, seed: int) -> int:
    """Kill the service so often, and report."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        files = write_small_library(folder)
        library = folder / "library"
        contents = {key: path.read_bytes() for key, path in files.items()}
        clean = {}
        for key in contents:  # an index of each content that nobody has disturbed
            (path,) = open_models("miniatures", prefix_gib=0.0).index(
                [files[key]], folder / "clean"
            )
            clean[key] = VideoIndex.load(path)
        clients, states = Clients(contents, rng), Counter[str]()
        for _ in range(kills):
            with running(library) as service:
                service.wait_until_ready()
                check(service, library, contents)
                threads = clients.begin(service.port)
                time.sleep(rng.uniform(0, _LATEST))
                found = service.client.get("/v1/jobs", params={"limit": 1000}).json()["jobs"]
                states.update({job["state"] for job in found} - {"done", "failed"})
                service.end(signal.SIGKILL)
                for thread in threads:
                    thread.join()
        with running(library) as service:
            service.wait_until_ready()
            jobs = wait_for_jobs(service)
            videos = check(service, library, contents)
            ended = {job["id"]: job for job in jobs}
            assert clients.accepted.keys() <= ended.keys(), "a job is lost"
            for job in jobs:
                assert job["state"] == "done" or job["error"].startswith(job["name"]), job
            for id, key in clients.accepted.items():
                if ended[id]["state"] == "done":
                    index = VideoIndex.load(library / ended[id]["vid"])
                    assert index.video.captions == clean[key].video.captions
                    ours, theirs = index.caption_embeddings, clean[key].caption_embeddings
                    assert ours is not None and theirs is not None
                    assert ours.tobytes() == theirs.tobytes()
            done = {job["vid"] for job in jobs if job["state"] == "done"}
            served = {video["vid"] for video in service.client.get("/v1/videos").json()["videos"]}
            assert done <= served, done - served
            uploads = list((library / ".uploads").iterdir())
            assert len(uploads) == len(done - {"first", "second"}), uploads
            assert service.end() == 0
        outcomes = Counter(job["state"] for job in jobs)
        shutil.rmtree(library)
    print(
        f"{kills} killed; jobs in work at the kills: {dict(states)}; {len(clients.accepted)} "
        f"accepted uploads, all jobs at the end: {dict(outcomes)}; {videos} videos, all whole"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(one) for one in [*sys.argv[1:], *("20", "0")[len(sys.argv) - 1 :]])))
