"""Uploads and jobs, through kills, cancellations and files that are no videos."""

from __future__ import annotations

import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from helpers.service import Service, events, running

from granalign_fast.index import VideoIndex
from granalign_fast.pipeline import open_models
from granalign_fast.runtime.workers import WorkerError
from granalign_fast.server.engine import Engine
from granalign_fast.server.indexing import Indexer
from granalign_fast.server.jobs import Job, Jobs, file_name
from granalign_fast.server.settings import Settings


class Shared(NamedTuple):
    """A service whose library several tests change; each leaves the videos of the others alone."""

    service: Service
    library: Path
    root: Path
    """Of files that it may index by path."""

    def uploads(self) -> set[str]:
        """The folders of uploads that there are."""
        return {path.name for path in (self.library / ".uploads").iterdir()}

    def videos(self) -> set[str]:
        """The ids of all videos."""
        listed = self.service.client.get("/v1/videos").json()["videos"]
        return {video["vid"] for video in listed}


@pytest.fixture(scope="module")
def shared(indexed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("changed")
    library = Path(shutil.copytree(indexed / "library", folder / "library"))
    root = folder / "root"
    root.mkdir()
    with running(library, "--root", root) as service:
        yield Shared(service.wait_until_ready(), library, root)


def test_an_upload_is_indexed_and_found(library: Path, indexed: Path) -> None:
    video = indexed / "videos" / "new.mp4"
    roots = indexed / "videos"
    with running(library, "--root", roots) as service:
        service.wait_until_ready()
        # 1. As a form, with tags.
        with video.open("rb") as file:
            response = service.client.post(
                "/v1/videos", files={"file": ("new.mp4", file)}, data={"tag": ["a trip"]}
            )
        assert response.status_code == 202
        job = response.json()
        assert response.headers["location"] == f"/v1/jobs/{job['id']}"
        with service.client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            got = list(events(stream))
        assert got[-1][0] == "done" and {name for name, _ in got[:-1]} <= {"progress"}
        last = got[-1][1]
        assert (last["state"], last["vid"], last["done"]) == ("done", "new", 7)
        shown = service.client.get("/v1/videos/new").json()
        assert (shown["tags"], shown["clips"]) == (["a trip"], 7)
        found = service.client.post(
            "/v1/search", json={"query": "a ring", "filters": {"tags": ["a trip"]}}
        ).json()
        assert found["results"][0]["moments"][0]["vid"] == "new"
        assert service.client.get("/v1/videos/new/media").content == video.read_bytes()
        # 2. The index equals that of the command.
        apart = open_models("miniatures", prefix_gib=0.0).index([video], library.parent / "apart")
        ours, theirs = VideoIndex.load(library / "new"), VideoIndex.load(apart[0])
        assert ours.video == theirs.video
        assert ours.caption_embeddings.tobytes() == theirs.caption_embeddings.tobytes()
        # 3. As the body alone: the same content under another name is another video.
        copy = service.client.post("/v1/videos?name=copy.mp4", content=video.read_bytes()).json()
        assert service.wait_for(copy["id"], "done", "failed")["vid"] == "copy"
        # 4. By a path below the root, which is in the library already.
        by_path = service.client.post("/v1/videos", json={"path": "first.mp4"}).json()
        assert service.wait_for(by_path["id"], "done", "failed")["vid"] == "first"
        # 5. An upload goes with its video, a file of somebody else stays.
        uploads = sorted((library / ".uploads").iterdir())
        assert len(uploads) == 2
        assert service.client.delete("/v1/videos/copy").json() == {"removed": ["copy"]}
        assert service.client.delete("/v1/videos/first").json() == {"removed": ["first"]}
        assert len(list((library / ".uploads").iterdir())) == 1
        assert (roots / "first.mp4").exists()
        assert service.client.get("/v1/videos/copy").status_code == 404
        everything = service.client.post("/v1/search", json={"query": "a ring"}).json()
        assert everything["results"][0]["searched"] == 2
        jobs = service.client.get("/v1/jobs").json()["jobs"]
        assert [one["name"] for one in jobs] == ["first.mp4", "copy.mp4", "new.mp4"]
        assert str(library.parent) not in service.client.get("/v1/jobs").text
        assert service.end() == 0


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({}, b"", 422),
        ({"content-type": "image/png"}, b"a", 415),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b'{"path": "a.mp4"}', 403),
        ({"content-type": "multipart/form-data"}, b"a", 422),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x\r\n", 422),
        ({"content-type": "multipart/form-data; boundary=x"}, b"nonsense", 422),
        (
            {"content-type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="tag"\r\n\r\n'
            + b"a" * 5000
            + b"\r\n--x--\r\n",
            422,
        ),
        (
            {"content-type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="tag"\r\n\r\na\r\n--x--\r\n',
            422,
        ),
    ],
)
def test_what_is_no_upload(
    service: Service, headers: dict[str, str], content: bytes, status: int
) -> None:
    name = "" if headers else "?name=a.mp4"
    got = service.client.post(f"/v1/videos{name}", headers=headers, content=content)
    assert got.status_code == status, got.text
    assert service.client.get("/v1/jobs").json()["jobs"] == []


def test_a_service_that_ends_well_leaves_its_jobs_to_the_next(library: Path, indexed: Path) -> None:
    content = (indexed / "long.mp4").read_bytes()
    with running(library) as service:
        service.wait_until_ready()
        jobs = [
            service.client.post(f"/v1/videos?name={name}.mp4", content=content).json()
            for name in ("one", "two")
        ]
        service.wait_for(jobs[0]["id"], "indexing")
        cancelled = service.client.delete(f"/v1/jobs/{jobs[1]['id']}")
        assert cancelled.status_code == 202
        assert service.end() == 0
    with running(library) as service:
        service.wait_until_ready()
        assert service.wait_for(jobs[1]["id"], "cancelled")["vid"] is None
        service.wait_for(jobs[0]["id"], "indexing", "done")
        service.client.delete(f"/v1/jobs/{jobs[0]['id']}")
        assert service.wait_for(jobs[0]["id"], "cancelled", "done")["state"] == "cancelled"
        assert service.client.delete(f"/v1/jobs/{jobs[0]['id']}").status_code == 409
        assert list((library / ".uploads").iterdir()) == []
        assert service.client.get("/v1/videos").json()["total"] == 2


def test_files_that_are_no_videos_fail_by_name(shared: Shared) -> None:
    uploads, videos = shared.uploads(), shared.videos()
    kinds = {"text.mp4": b"no video at all" * 100, "empty.mkv": b"\0" * 5000, "a\nb.mp4": b"x"}
    jobs = [
        shared.service.client.post("/v1/videos", params={"name": name}, content=content).json()
        for name, content in kinds.items()
    ]
    for job in jobs:
        ended = shared.service.wait_for(job["id"], "done", "failed")
        assert ended["state"] == "failed" and ended["error"].startswith(ended["name"])
        assert str(shared.library) not in ended["error"]
    assert [job["name"] for job in jobs] == ["text.mp4", "empty.mkv", "ab.mp4"]
    assert (shared.uploads(), shared.videos()) == (uploads, videos)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../x.mp4", "x.mp4"),
        ("a/b\\c.mp4", "c.mp4"),
        ("a\u202egpm.exe", "agpm.exe"),
        ("a\nb\x1b[31m\0.mp4", "ab[31m.mp4"),
        ("...", "video"),
        (".hidden.mp4", "hidden.mp4"),
        ("a" * 400 + ".mp4", "a" * 200 + ".mp4"),
        ("\U0001f600" * 100 + ".mp4", "\U0001f600" * 50 + ".mp4"),
        ("a\udcff.mp4", "a%FF.mp4"),
        ("", "video"),
    ],
)
def test_names_of_uploads(given: str, kept: str) -> None:
    """A name is one of a file: without folders, and without what changes how others look."""
    assert file_name(given) == kept
    assert len(kept.encode()) <= 216


def test_paths_stay_below_the_roots(shared: Shared, indexed: Path) -> None:
    root, new = shared.root, indexed / "videos" / "new.mp4"
    (root / "inside").mkdir()
    shutil.copy(new, root / "inside" / "new.mp4")
    (root / "away").symlink_to(indexed / "videos")
    (root / "link.mp4").symlink_to(new)
    (root / "good.mp4").symlink_to(root / "inside" / "new.mp4")
    sibling = root.parent / "root2"
    sibling.mkdir()
    shutil.copy(new, sibling / "new.mp4")

    def ask(path: str) -> httpx.Response:
        return shared.service.client.post("/v1/videos", json={"path": path})

    outside = [
        *("../root2/new.mp4", "away/new.mp4", "link.mp4", "/etc/passwd", "..", ".", "", "/"),
        *(str(sibling / "new.mp4"), "inside", "inside/../../root2/new.mp4", "a\0b"),
        *("%2e%2e/root2/new.mp4", "~/.bashrc", "file:///etc/passwd", "http://127.0.0.1/a.mp4"),
    ]
    statuses = {path: ask(path).status_code for path in outside}
    assert {path: got for path, got in statuses.items() if got not in (400, 404)} == {}
    for path in ("inside/new.mp4", "good.mp4", str(root / "inside" / "new.mp4")):
        got = ask(path)
        assert got.status_code == 202
        shared.service.client.delete(f"/v1/jobs/{got.json()['id']}")
        shared.service.wait_for(got.json()["id"], "done", "cancelled")


def test_what_another_process_does_is_seen(shared: Shared, indexed: Path, tmp_path: Path) -> None:
    video = Path(shutil.copy(indexed / "videos" / "new.mp4", tmp_path / "other.mp4"))
    open_models("miniatures", prefix_gib=0.0).index([video], shared.library)
    until = time.monotonic() + 20
    while "other" not in shared.videos():
        assert time.monotonic() < until
        time.sleep(0.2)
    body = {"query": "a ring", "filters": {"videos": ["other"]}}
    answer = shared.service.client.post("/v1/search", json=body).json()
    assert answer["results"][0]["searched"] == 1


def test_a_video_is_removed_while_another_one_is_indexed(shared: Shared, indexed: Path) -> None:
    service = shared.service
    content = (indexed / "videos" / "new.mp4").read_bytes()
    job = service.client.post("/v1/videos?name=goes.mp4", content=content).json()
    assert service.wait_for(job["id"], "done", "failed")["vid"] == "goes"
    content = (indexed / "long.mp4").read_bytes()
    job = service.client.post("/v1/videos?name=stays.mp4", content=content).json()
    service.wait_for(job["id"], "indexing")
    assert service.client.delete("/v1/videos/goes").json() == {"removed": ["goes"]}
    assert service.client.get("/v1/videos/goes").status_code == 404
    assert not (shared.library / "goes").exists()
    assert service.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "indexing"
    body = {"query": "a ring", "filters": {"videos": ["goes", "first"]}}
    found = service.client.post("/v1/search", json=body).json()
    assert found["results"][0]["searched"] == 1
    assert service.wait_for(job["id"], "done", "failed")["vid"] == "stays"
    assert "stays" in shared.videos() and "goes" not in shared.videos()


def test_a_job_that_was_complete_when_it_was_cancelled_is_done(
    library: Path, indexed: Path
) -> None:
    """The index is in its place, and the process that wrote it has not said so yet."""
    jobs = Jobs(library)
    jobs.create_folders()
    indexer = Indexer(Engine(Settings(library=library)), jobs)
    begun = []
    for name in ("late", "early"):
        job = Job(name=f"{name}.mp4", upload=True, state="indexing", attempts=1)
        folder = jobs.upload_folder(job.id)
        folder.mkdir()
        path = Path(shutil.copy(indexed / "videos" / "new.mp4", folder / job.name))
        begun.append(jobs.change(job, "indexing", path=path.absolute()))
    late, early = begun
    assert late.path is not None and early.path is not None
    open_models("miniatures", prefix_gib=0.0).index([late.path], library)
    indexer._end_cancelled(late)
    indexer._end_cancelled(early)
    done, cancelled = jobs.get(late.id), jobs.get(early.id)
    assert done is not None and cancelled is not None
    assert (done.state, done.vid, done.done, done.total) == ("done", "late", 7, 7)
    assert cancelled.state == "cancelled"
    assert late.path.exists() and not early.path.exists()


def test_a_job_that_begins_as_the_service_ends_waits_for_the_next_start(library: Path) -> None:
    """Its video may take hours, and the service must end now."""
    jobs = Jobs(library)
    jobs.create_folders()
    indexer = Indexer(Engine(Settings(library=library)), jobs)
    job = jobs.change(
        Job(name="new.mp4", upload=False), "queued", path=(library / "new.mp4").absolute()
    )
    indexer.stop()

    class Worker:
        def run(self, *arguments: object, cancel: threading.Event, **options: object) -> str:
            assert cancel.is_set()
            raise WorkerError("the call was cancelled", "cancelled")

    worker: Any = Worker()
    indexer._run_job(job, worker)
    found = jobs.get(job.id)
    assert found is not None and (found.state, found.attempts) == ("queued", 0)


def test_a_client_that_goes_in_the_middle_leaves_nothing(shared: Shared, indexed: Path) -> None:
    content = (indexed / "long.mp4").read_bytes()
    uploads = shared.uploads()
    with pytest.raises(httpx.HTTPError), httpx.Client(base_url=shared.service.url) as client:

        def broken() -> Iterator[bytes]:
            yield content[:1000]
            raise httpx.WriteError("gone")

        client.post("/v1/videos?name=gone.mp4", content=broken())
    until = time.monotonic() + 20
    while any(
        one["name"] == "gone.mp4" for one in shared.service.client.get("/v1/jobs").json()["jobs"]
    ):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert shared.uploads() == uploads
    assert not [line for line in shared.service.lines if "Traceback" in line]


@pytest.mark.once
def test_a_kill_loses_no_job_and_leaves_no_file_half(library: Path, indexed: Path) -> None:
    """One video is being indexed, another one is half here."""
    content = (indexed / "long.mp4").read_bytes()
    with running(library) as service:
        service.wait_until_ready()
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            head = "POST /v1/videos?name=cut.mp4 HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Length: {len(content)}\r\n\r\n"
            client.sendall(head.encode() + content[: len(content) // 2])
            until = time.monotonic() + 20
            while not (jobs := service.client.get("/v1/jobs").json()["jobs"]):
                assert time.monotonic() < until
            (half,) = jobs
            assert half["state"] == "receiving"
            whole = service.client.post("/v1/videos?name=long.mp4", content=content).json()
            service.wait_for(whole["id"], "indexing")
            service.end(signal.SIGKILL)
    assert not (library / "long").exists()
    with running(library) as service:
        service.wait_until_ready()
        failed = service.wait_for(half["id"], "failed")
        assert failed["error"].startswith("cut.mp4: the service ended while it was uploaded")
        assert service.wait_for(whole["id"], "done", "failed")["vid"] == "long"
        assert service.client.get("/v1/videos/long/media").content == content
        assert len(list((library / ".uploads").iterdir())) == 1
        assert service.client.get("/v1/videos").json()["total"] == 3
