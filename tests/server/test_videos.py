"""Videos and their media over HTTP, judged by other programs' readers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import opentimelineio
import pytest
from helpers.service import Service, running
from PIL import Image

from granalign_fast.video.frames import read_frames


def test_videos_are_listed(service: Service) -> None:
    answer = service.client.get("/v1/videos").json()
    assert (answer["total"], answer["damaged"]) == (2, {})
    assert [video["vid"] for video in answer["videos"]] == ["first", "second"]
    one = service.client.get("/v1/videos/first").json()
    assert one == answer["videos"][0]
    assert one["file"] == "first.mp4" and one["seconds"] == pytest.approx(14, abs=0.2)
    assert one["clip_seconds"] == 2.0 and one["frames_per_clip"] == 1
    page = service.client.get("/v1/videos", params={"offset": 1, "limit": 1}).json()
    assert [video["vid"] for video in page["videos"]] == ["second"]
    assert service.client.get("/v1/videos", params={"tag": "none"}).json()["total"] == 0


def test_the_service_says_what_it_can_do(service: Service) -> None:
    answer = service.client.get("/v1").json()
    assert answer["preset"] == "tuned" and answer["uploads"] and answer["roots"] == []
    names = {"tuned", "single", "paper", "visual", "recognition", "reze"}
    assert set(answer["presets"]) == names
    assert not any(answer["presets"].values())
    assert answer["limits"]["queries"] == 16


def test_the_file_is_sent_whole_and_in_ranges(service: Service, indexed: Path) -> None:
    content = (indexed / "videos" / "first.mp4").read_bytes()
    url = "/v1/videos/first/media"
    whole = service.client.get(url)
    assert whole.content == content and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, part in (("10-19", content[10:20]), ("-7", content[-7:]), ("50-", content[50:])):
        got = service.client.get(url, headers={"range": f"bytes={asked}"})
        assert (got.status_code, got.content) == (206, part)
    beyond = service.client.get(url, headers={"range": f"bytes={len(content)}-"})
    assert (beyond.status_code, beyond.json()["type"]) == (416, "urn:granalign:problem:bad-range")
    assert beyond.headers["content-range"] == f"bytes */{len(content)}"
    # One of two is there; and a range that is not valid counts as none (RFC 9110, 14.2).
    got = service.client.get(url, headers={"range": f"bytes={len(content)}-,3-5"})
    assert (got.status_code, got.content) == (206, content[3:6])
    for asked in ("bytes=5-2", "bytes=a-b", "lines=1-2", "bytes", "bytes=1-2,x"):
        got = service.client.get(url, headers={"range": asked})
        assert (got.status_code, got.content) == (200, content)
    assert service.client.head(url).headers["content-length"] == str(len(content))


@pytest.mark.parametrize("second", [0.0, 3.3, 9.9, 13.8])
def test_a_frame_is_that_of_its_time(service: Service, indexed: Path, second: float) -> None:
    got = service.client.get("/v1/videos/first/frame", params={"t": second, "width": 3840})
    assert got.headers["content-type"] == "image/jpeg"
    image = np.asarray(Image.open(io.BytesIO(got.content)), np.int16)
    with av.open(str(indexed / "videos" / "first.mp4")) as container:
        shown = [frame for frame in container.decode(video=0) if frame.time <= second + 0.05][-1]
    assert abs(image - shown.to_ndarray(format="rgb24")).mean() < 6
    assert (
        service.client.get("/v1/videos/first/frame", params={"t": second})
        .headers["cache-control"]
        .startswith("private")
    )


def test_a_thumbnail_is_small(service: Service) -> None:
    image = Image.open(io.BytesIO(service.client.get("/v1/videos/first/thumbnail").content))
    assert image.format == "JPEG" and image.width <= 320
    narrow = service.client.get("/v1/videos/first/thumbnail", params={"width": 40})
    assert Image.open(io.BytesIO(narrow.content)).width == 40


def test_a_moment_is_cut_out(service: Service, tmp_path: Path) -> None:
    moment = {"start": 4, "end": 7, "exact": True, "container": "mkv"}
    got = service.client.get("/v1/videos/first/clip", params=moment)
    assert got.headers["content-type"] == "video/x-matroska"
    assert float(got.headers["x-clip-start"]) == pytest.approx(4, abs=0.05)
    path = tmp_path / "clip.mkv"
    path.write_bytes(got.content)
    assert len(list(read_frames(path, clip_seconds=1.0))) == 3
    copied = service.client.get("/v1/videos/first/clip", params={"start": 4, "end": 7})
    assert copied.status_code == 200 and copied.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize(
    ("parameters", "detail"),
    [
        (
            {"start": 4, "end": 7, "container": "webm"},
            "container: got webm, which does not take this video as it is, expected mp4 or mov or "
            "mkv or exact=true, which encodes it",
        ),
        ({"start": 7, "end": 4}, "start, end: got 7 to 4, expected an end after the start, and at"),
        ({"start": 500, "end": 510}, "start: got 500, expected a second before the end at "),
    ],
)
def test_a_clip_that_cannot_be_cut(
    service: Service, parameters: dict[str, str | int], detail: str
) -> None:
    """The error speaks of parameters of the request, and names no path of the server."""
    problem = service.client.get("/v1/videos/first/clip", params=parameters).json()
    assert problem["status"] == 422 and problem["detail"].startswith(detail)


def test_moments_are_exported(service: Service, indexed: Path) -> None:
    parameters = {"query": "a ring", "moment": ["4-7-0.9", "1.5-3"]}
    url = "/v1/videos/first/export"
    srt = service.client.get(url, params=parameters | {"format": "srt"}).text
    assert srt.splitlines()[1] == "00:00:01,500 --> 00:00:03,000"
    text = service.client.get(url, params=parameters | {"format": "otio"})
    timeline = opentimelineio.adapters.read_from_string(text.text, "otio_json")
    assert len(list(timeline.find_clips())) == 2
    for name in service.client.get("/v1").json()["formats"]:
        got = service.client.get(url, params=parameters | {"format": name})
        assert got.status_code == 200 and got.headers["content-disposition"].startswith("attach")
        assert str(Path.cwd()) not in got.text and str(indexed) not in got.text
    (one, _) = timeline.find_clips()
    media = one.media_reference.target_url
    assert media == f"{service.url}/v1/videos/first/media/first.mp4"
    assert service.client.head(media).status_code == 200
    given = parameters | {"format": "otio", "file": "/archive/first.mp4"}
    assert "file:///archive/first.mp4" in service.client.get(url, params=given).text


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/v1/videos/none", 404),
        ("/v1/videos/none/media", 404),
        ("/v1/videos/first/frame", 422),
        ("/v1/videos/first/frame?t=14.5", 422),
        ("/v1/videos/first/frame?t=-1", 422),
        ("/v1/videos/first/frame?t=nan", 422),
        ("/v1/videos/first/frame?t=1&width=100000", 422),
        ("/v1/videos/first/clip?start=5&end=5", 422),
        ("/v1/videos/first/clip?start=0&end=601", 422),
        ("/v1/videos/first/clip?start=0&end=5&container=exe", 422),
        ("/v1/videos/first/export?format=srt&query=a&moment=x", 422),
        ("/v1/videos/first/export?format=srt&query=a&moment=1-2&file=here", 422),
        ("/v1/videos/first/media/other.mp4", 404),
        ("/v1/videos/first/export?format=none&query=a&moment=1-2", 422),
        ("/v1/videos/first/export?format=srt&query=a&moment=99-100", 422),
        ("/v1/videos/first/nothing", 404),
        ("/nothing", 404),
    ],
)
def test_what_there_is_not(service: Service, url: str, status: int) -> None:
    got = service.client.get(url)
    assert (got.status_code, got.headers["content-type"]) == (status, "application/problem+json")
    assert json.loads(got.text)["status"] == status


def test_wrong_methods(service: Service) -> None:
    assert service.client.put("/v1/videos").status_code == 405
    assert service.client.request("FOO", "/v1/videos").status_code == 405


def test_a_file_that_was_replaced_is_not_sent(library: Path, indexed: Path, tmp_path: Path) -> None:
    from granalign_fast.index.relocation import relocate_videos

    moved = tmp_path / "videos"
    moved.mkdir()
    for name in ("first.mp4", "second.mp4"):
        (moved / name).write_bytes((indexed / "videos" / name).read_bytes())
    relocate_videos(library, indexed / "videos", moved)
    with running(library, "--read-only") as service:
        service.wait_until_ready()
        assert service.client.get("/v1/videos/first/media").status_code == 200
        assert service.client.get("/v1/videos/first/frame?t=1").status_code == 200
        (moved / "first.mp4").write_bytes(b"secret" * 100)
        (moved / "second.mp4").unlink()
        for url in ("first/media", "first/frame?t=9", "second/media", "second/clip?start=1&end=2"):
            got = service.client.get(f"/v1/videos/{url}")
            assert got.status_code == 410 and b"secret" not in got.content
            assert str(tmp_path) not in got.text
        refused = service.client.delete("/v1/videos/first")
        assert (refused.status_code, refused.json()["status"]) == (501, 501)
        assert service.client.post("/v1/videos?name=a.mp4", content=b"a").status_code == 501
    assert not (library / ".jobs").exists()
