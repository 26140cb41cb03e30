"""Uploads and jobs, through kills, cancellations and files that are no videos."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from helpers.service import Service, events, running

from granalign_fast.index import VideoIndex
from granalign_fast.pipeline import open_models


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


def test_files_that_are_no_videos_fail_by_name(library: Path, tmp_path: Path) -> None:
    with running(library) as service:
        service.wait_until_ready()
        kinds = {"text.mp4": b"no video at all" * 100, "empty.mkv": b"\0" * 5000, "a\nb.mp4": b"x"}
        jobs = [
            service.client.post("/v1/videos", params={"name": name}, content=content).json()
            for name, content in kinds.items()
        ]
        for job in jobs:
            ended = service.wait_for(job["id"], "done", "failed")
            assert ended["state"] == "failed" and ended["error"].startswith(ended["name"])
            assert str(library) not in ended["error"]
        assert [job["name"] for job in jobs] == ["text.mp4", "empty.mkv", "ab.mp4"]
        assert list((library / ".uploads").iterdir()) == []
        assert service.client.get("/v1/videos").json()["total"] == 2


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


def test_paths_stay_below_the_roots(library: Path, indexed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    shutil.copy(indexed / "videos" / "new.mp4", root / "inside" / "new.mp4")
    (root / "away").symlink_to(indexed / "videos")
    (root / "link.mp4").symlink_to(indexed / "videos" / "new.mp4")
    (root / "good.mp4").symlink_to(root / "inside" / "new.mp4")
    sibling = tmp_path / "root2"
    sibling.mkdir()
    shutil.copy(indexed / "videos" / "new.mp4", sibling / "new.mp4")
    with running(library, "--root", root) as service:
        service.wait_until_ready()

        def status(path: str) -> int:
            return service.client.post("/v1/videos", json={"path": path}).status_code

        outside = [
            *("../root2/new.mp4", "away/new.mp4", "link.mp4", "/etc/passwd", "..", ".", "", "/"),
            *(str(sibling / "new.mp4"), "inside", "inside/../../root2/new.mp4", "a\0b"),
            *("%2e%2e/root2/new.mp4", "~/.bashrc", "file:///etc/passwd", "http://127.0.0.1/a.mp4"),
        ]
        assert {path: status(path) for path in outside if status(path) not in (400, 404)} == {}
        assert status("inside/new.mp4") == 202
        assert status("good.mp4") == 202
        assert status(str(root / "inside" / "new.mp4")) == 202


def test_a_kill_while_indexing_loses_nothing(library: Path, indexed: Path) -> None:
    video = indexed / "long.mp4"
    with running(library) as service:
        service.wait_until_ready()
        job = service.client.post("/v1/videos?name=long.mp4", content=video.read_bytes()).json()
        service.wait_for(job["id"], "indexing")
        service.end(signal.SIGKILL)
    assert not (library / "long").exists()
    with running(library) as service:
        service.wait_until_ready()
        assert service.wait_for(job["id"], "done", "failed")["vid"] == "long"
        assert service.client.get("/v1/videos/long/media").content == video.read_bytes()


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


def test_a_kill_while_uploading_leaves_nothing_half(library: Path, indexed: Path) -> None:
    content = (indexed / "long.mp4").read_bytes()
    with running(library) as service:
        service.wait_until_ready()
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            head = "POST /v1/videos?name=cut.mp4 HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Length: {len(content)}\r\n\r\n"
            client.sendall(head.encode() + content[: len(content) // 2])
            until = time.monotonic() + 20
            while not service.client.get("/v1/jobs").json()["jobs"]:
                assert time.monotonic() < until
            (job,) = service.client.get("/v1/jobs").json()["jobs"]
            assert job["state"] == "receiving"
            service.end(signal.SIGKILL)
    with running(library) as service:
        service.wait_until_ready()
        failed = service.wait_for(job["id"], "failed")
        assert failed["error"].startswith("cut.mp4: the service ended while it was uploaded")
        assert list((library / ".uploads").iterdir()) == []
        assert service.client.get("/v1/videos").json()["total"] == 2
        # A client that goes in the middle leaves nothing at all.
        with pytest.raises(httpx.HTTPError), httpx.Client(base_url=service.url) as client:

            def broken() -> object:
                yield content[:1000]
                raise httpx.WriteError("gone")

            client.post("/v1/videos?name=gone.mp4", content=broken())
        until = time.monotonic() + 20
        while any(
            one["name"] == "gone.mp4" for one in service.client.get("/v1/jobs").json()["jobs"]
        ):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert list((library / ".uploads").iterdir()) == []


def test_what_another_process_does_is_seen(library: Path, indexed: Path) -> None:
    with running(library) as service:
        service.wait_until_ready()
        open_models("miniatures", prefix_gib=0.0).index([indexed / "videos" / "new.mp4"], library)
        until = time.monotonic() + 20
        while service.client.get("/v1/videos").json()["total"] != 3:
            assert time.monotonic() < until
            time.sleep(0.2)
        answer = service.client.post("/v1/search", json={"query": "a ring"}).json()
        assert answer["results"][0]["searched"] == 3


def test_a_video_is_removed_while_another_one_is_indexed(library: Path, indexed: Path) -> None:
    with running(library) as service:
        service.wait_until_ready()
        content = (indexed / "long.mp4").read_bytes()
        job = service.client.post("/v1/videos?name=long.mp4", content=content).json()
        service.wait_for(job["id"], "indexing")
        assert service.client.delete("/v1/videos/first").json() == {"removed": ["first"]}
        assert service.client.get("/v1/videos/first").status_code == 404
        assert not (library / "first").exists()
        assert service.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "indexing"
        found = service.client.post("/v1/search", json={"query": "a ring"}).json()
        assert found["results"][0]["searched"] == 1
        assert service.wait_for(job["id"], "done", "failed")["vid"] == "long"
        listed = service.client.get("/v1/videos").json()
        assert [video["vid"] for video in listed["videos"]] == ["long", "second"]
