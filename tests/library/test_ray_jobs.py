"""Indexing by Ray Data with two workers, and against a real S3 server."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import runner
from helpers.job_models import JobModels
from helpers.libraries import contents, write_index
from helpers.two_publishers import run_all

from granalign_fast.index import VideoIndex
from granalign_fast.index.builder import index_videos
from granalign_fast.index.media import with_media
from granalign_fast.library.jobs import Workers, index_sources
from granalign_fast.library.jobs.output import put_index
from granalign_fast.library.opening import open_library_catalogue
from granalign_fast.library.tags import read_tags
from granalign_fast.search.key_frames import frame_set
from granalign_fast.storage import Address, Store
from granalign_fast.video.frames import read_clips

pytestmark = [
    pytest.mark.needs_ray,
    pytest.mark.filterwarnings("default"),  # of Ray and of the server, which are not ours
]

PYTHONPATH = os.pathsep.join(
    [
        str(Path(__file__).parents[1]),
        str(Path(__file__).parents[2]),
        os.environ.get("PYTHONPATH", ""),
    ]
)
"""The path of a process that finds the tests' helpers and the package."""
SHORT = 0.25
"""Seconds of a clip: the longest video then has 158 clips, in two chunks."""
TWO = {"decode": Workers(1, 2), "captions": Workers(2, 2)}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a real S3 server on this machine, to which the environment points."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield boto3.client("s3", region_name="us-east-1")
    server.stop()


@pytest.fixture(scope="session")
def cluster(s3: Any) -> Iterator[Any]:
    """A Ray cluster on this machine, which the jobs of this process share, and which finds S3."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def clean(job_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the indexes that this machine makes without Ray."""
    out = tmp_path_factory.mktemp("clean")
    paths = sorted(job_videos.iterdir())
    index_videos(paths, out, JobModels().of_this_machine(), clip_seconds=SHORT, rows=4)
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    """The content of every file of the indexes in a folder."""
    paths = [path for path in out.glob("[!.]*/*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def run(names: Any, out: Path, models: JobModels, **settings: Any) -> Any:
    options = {"clip_seconds": SHORT, "rows": 4, "ray": "local", "workers": TWO} | settings
    return index_sources(names, out, models, **options)


def test_indexes_equal_those_of_one_machine(
    cluster: Any, job_videos: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    failed: dict[str, Any] = {}
    done: list[tuple[int, int]] = []
    result = run(
        [job_videos, tmp_path / "bad.mp4"],
        tmp_path / "out",
        JobModels(),
        on_error=failed.__setitem__,
        progress=lambda count, total, _: done.append((count, total)),
    )
    assert files(tmp_path / "out") == clean and result.indexed == 3
    assert list(failed) == [str(tmp_path / "bad.mp4")]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not (tmp_path / "out" / ".indexing").exists()


def test_a_worker_dies_on_the_way(
    cluster: Any, job_videos: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    result = run([job_videos], tmp_path / "out", JobModels(kill_in=tmp_path))
    assert (tmp_path / "dead").exists()
    assert files(tmp_path / "out") == clean and result.indexed == 3


DRIVER = """
import sys
from pathlib import Path
from helpers.job_models import JobModels
from helpers.libraries import contents, write_index
from helpers.two_publishers import run_all
from granalign_fast.library.jobs import index_sources
videos, out, log = map(Path, sys.argv[1:])
index_sources(
    [videos], out, JobModels(log=log, delay=0.1), ray="local", clip_seconds=0.25, rows=4
)
"""


def test_the_driver_dies_and_is_started_again(
    job_videos: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    out, log = tmp_path / "out", tmp_path / "log"
    words = [sys.executable, "-c", DRIVER, str(job_videos), str(out), str(log)]
    settings = {"env": os.environ | {"PYTHONPATH": PYTHONPATH}, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen(words, start_new_session=True, **settings)  # type: ignore[call-overload]
    until = time.monotonic() + 300
    # A chunk of the longest video, or a whole short one, is stored.
    while not (list(out.glob("*/manifest.json")) or list(out.glob(".indexing/parts/*/*/0*"))):
        assert driver.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    whole = files(out)
    assert whole.items() <= clean.items() and len(whole) < len(clean)
    stored = [path.name for path in out.glob(".indexing/parts/*/*/0*")]
    again = tmp_path / "again"
    subprocess.run([*words[:-1], str(again)], check=True, timeout=300, **settings)  # type: ignore[call-overload]
    assert files(out) == clean and not (out / ".indexing").exists()
    # What was there was not captioned again. Workers of the first driver may have added to it.
    clips = {folder.name: VideoIndex.load(folder).video.clips for folder in out.glob("[!.]*")}
    there = sum(clips[vid] for vid in {name.partition("/")[0] for name in whole})
    there += sum(int(name[9:17]) - int(name[:8]) for name in stored)
    assert there > 0 and len(again.read_text().splitlines()) <= sum(clips.values()) - there


@pytest.fixture
def granalign(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return runner(capsys, monkeypatch)


def test_index_resume_and_search_in_an_object_store(
    s3: Any, cluster: Any, job_videos: Path, granalign: Any
) -> None:
    s3.create_bucket(Bucket="media")
    s3.create_bucket(Bucket="library")
    for name in ("yard", "kitchen"):
        s3.upload_file(str(job_videos / f"{name}.mp4"), "media", f"a/{name}.mp4")
    index = ("index", "--out", "s3://library/all", "--models", "miniatures", "--json")
    # 1. On this machine, then by Ray: what is there is left alone, what is new is added.
    code, out, err = granalign(*index, "s3://media/a/yard.mp4")
    assert (code, json.loads(out)["indexes"]) == (0, ["s3://library/all/yard"]), err
    before = s3.head_object(Bucket="library", Key="all/yard/manifest.json")["LastModified"]
    s3.put_object(Bucket="media", Key="a/bad.mp4", Body=b"no video")
    code, out, err = granalign(*index, "--ray", "local", "s3://media/a/*.mp4", "--tag", "new")
    result = json.loads(out)
    assert code == 1 and sorted(result["indexes"]) == [
        "s3://library/all/kitchen",
        "s3://library/all/yard",
    ]
    assert [one["path"] for one in result["failed"]] == ["s3://media/a/bad.mp4"]
    after = s3.head_object(Bucket="library", Key="all/yard/manifest.json")["LastModified"]
    assert before == after
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket="library")["Contents"]]
    assert not [key for key in keys if key.startswith("all/.indexing")]
    # 2. Search the library, and one video of it; its frames come by range requests.
    search = ("search", "s3://library/all", "a red picture", "--models", "miniatures", "--json")
    search += ("--media", "s3://media")
    code, out, err = granalign(*search, "--tag", "new")
    found = json.loads(out)
    assert code == 0 and found["library"] == "s3://library/all" and found["searched"] == 2, err
    assert {one["video"] for one in found["videos"]} == {
        "s3://media/a/yard.mp4",
        "s3://media/a/kitchen.mp4",
    }
    assert not found["warnings"]
    code, out, err = granalign(*search, "--vid", "yard")
    assert code == 0 and json.loads(out)["moments"], err
    # 3. Upkeep.
    code, out, _ = granalign("library", "list", "s3://library/all", "--json")
    assert [one["vid"] for one in json.loads(out)["videos"]] == ["kitchen", "yard"]
    assert granalign("library", "remove", "s3://library/all", "yard")[0] == 0
    code, out, _ = granalign("library", "rebuild", "s3://library/all", "--json")
    assert json.loads(out)["videos"] == 1
    code, out, err = granalign("library", "verify", "s3://library/all")
    assert code == 2 and "copy it to this machine" in err


def test_machines_that_publish_and_tag_at_once(s3: Any, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="shared")
    place, found = "s3://shared/films", Address.find("s3://shared/films")
    assert found is not None
    put_index(Store(found), write_index(tmp_path / "shared", 5, seed=1))
    run_all([("publish", 0), ("publish", 1), ("tag", 2), ("tag", 3)], place, 5, tmp_path / "caches")
    catalogue = open_library_catalogue(place)
    expected = {"shared", *(f"v-{number}-{turn}" for number in (0, 1) for turn in range(5))}
    assert contents(catalogue).keys() == expected
    tags = read_tags(catalogue.folder)["shared"]
    assert set(tags) == {f"tag-{number}-{turn}" for number in (2, 3) for turn in range(5)}
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket="shared")["Contents"]]
    assert not [key for key in keys if key.startswith("films/.claims/") and key[-1] != "/"]


def test_frames_of_a_stored_video(s3: Any, job_videos: Path, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="frames")
    s3.upload_file(str(job_videos / "street.mp4"), "frames", "street.mp4")
    index_sources(["s3://frames/street.mp4"], tmp_path / "out", JobModels())
    index = VideoIndex.load(tmp_path / "out" / "street")
    images = frame_set(with_media(index, "s3://frames")).load([0, 7, 19])
    assert all(map(np.array_equal, images, read_clips(job_videos / "street.mp4", [0, 7, 19])))


def test_a_bucket_that_is_not_there(s3: Any, granalign: Any, job_videos: Path) -> None:
    words = (
        "index",
        job_videos / "yard.mp4",
        "--models",
        "miniatures",
        "--out",
        "s3://missing/all",
    )
    code, _, err = granalign(*words)
    assert code in (1, 2) and "s3://missing/all" in err and len(err.splitlines()) <= 3
    code, _, err = granalign("search", "s3://missing/all", "a car", "--models", "miniatures")
    assert code == 2 and len(err.splitlines()) == 1
