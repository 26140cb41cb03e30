"""Indexing jobs in one process: what they write, how they resume, and what a failure costs."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers.index_worker import FINGERPRINTS, tree, write_video
from helpers.job_models import VIDEOS, JobModels

from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.index.builder import index_videos
from granalign_fast.library.jobs import Workers, chunks, index_sources, job, output
from granalign_fast.library.jobs.local import LocalExecutor
from granalign_fast.library.jobs.records import Job, Outcome, SourceVideo
from granalign_fast.library.jobs.stages import decode, model_stages
from granalign_fast.storage import Store
from granalign_fast.video.frames import DamagedVideoWarning

SHORT = 0.5
"""Seconds of a clip: the longest video then has 79 clips."""


@pytest.fixture(scope="module")
def clean(job_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The indexes that `index_videos` makes of the videos."""
    out = tmp_path_factory.mktemp("clean")
    paths = sorted(job_videos.iterdir())
    index_videos(paths, out, JobModels().of_this_machine(), clip_seconds=SHORT, rows=4)
    return out


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest video has ten chunks, the others one each."""
    monkeypatch.setattr(chunks, "MOST_CLIPS", 12)


def run(names: Any, out: Any, models: JobModels | None = None, **settings: Any) -> Any:
    options = {"clip_seconds": SHORT, "rows": 4} | settings
    return index_sources(names, out, models or JobModels(), **options)


def indexes(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if name[0] != "."}


def test_indexes_equal_those_of_the_plain_way(job_videos: Path, clean: Path, tmp_path: Path):
    result = run([job_videos], tmp_path / "out")
    assert set(result.vids) == set(VIDEOS) and result.indexed == 3 and result.captions
    assert indexes(tmp_path / "out") == indexes(clean)
    assert not (tmp_path / "out" / ".indexing").exists()


def test_a_finished_job_runs_no_model(job_videos: Path, clean: Path, tmp_path: Path):
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(clean, out, copy_function=shutil.copy2)
    result = run([job_videos], out, JobModels(log=log))
    assert set(result.vids) == set(VIDEOS) and result.indexed == 0 and not log.exists()


class Killed(BaseException):
    """The death of the process."""


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_a_killed_job_resumes_at_the_chunk(
    chunk: int, job_videos: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, log = tmp_path / "out", tmp_path / "log"
    taken = job._Run._take

    def take(self: Any, outcome: Outcome) -> None:
        taken(self, outcome)
        if len(self.chunks.get("street", ())) == chunk:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(job._Run, "_take", take)
        with pytest.raises(Killed):
            run([job_videos / "street.mp4"], out)
    assert not list(out.glob("street*"))
    run([job_videos], out, JobModels(log=log))
    assert indexes(out) == indexes(clean) and not (out / ".indexing").exists()
    assert len(log.read_text().splitlines()) == clips_of(clean) - 12 * chunk


def clips_of(library: Path) -> int:
    return sum(VideoIndex.load(library / vid).video.clips for vid in VIDEOS)


def test_a_job_killed_before_it_joins_needs_no_model_again(
    job_videos: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(self: LocalExecutor, spec: Job, outcome: Outcome) -> None:
        raise Killed

    out, log = tmp_path / "out", tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "join", die)
        with pytest.raises(Killed):
            run([job_videos / "street.mp4"], out)
    assert run([job_videos / "street.mp4"], out, JobModels(log=log)).indexed == 1
    assert not log.exists()
    assert tree(out / "street") == tree(clean / "street")


def test_altered_rows_are_made_anew(
    job_videos: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, written = tmp_path / "out", []
    write = Store.write

    def torn(self: Store, name: str, content: bytes) -> None:
        written.append(name)
        write(self, name, content[:40] if len(written) == 2 else content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", torn)
        with pytest.raises(GranAlignError, match=r"street.mp4: its unfinished rows were altered"):
            run([job_videos], out)
    run([job_videos], out)
    assert indexes(out) == indexes(clean)


def test_a_bad_video_costs_only_itself(job_videos: Path, clean: Path, tmp_path: Path):
    videos, failed = tmp_path / "videos", {}
    shutil.copytree(job_videos, videos)
    (videos / "bad.mp4").write_bytes(b"no video")
    result = run([videos], tmp_path / "out", on_error=failed.__setitem__)
    assert set(result.vids) == set(VIDEOS)
    assert list(failed) == [str(videos / "bad.mp4")]
    assert str(failed[str(videos / "bad.mp4")]).startswith(f"{videos}/bad.mp4: not a video")
    for vid in VIDEOS:
        assert np.array_equal(
            VideoIndex.load(tmp_path / "out" / vid).embeddings,
            VideoIndex.load(clean / vid).embeddings,
        )
    assert not (tmp_path / "out" / ".indexing").exists()
    assert not (tmp_path / "out" / "bad").exists()


def test_a_video_that_a_model_refuses_is_named(job_videos: Path, tmp_path: Path):
    class Refusing(JobModels):
        def __init__(self) -> None:
            super().__init__()
            answer, seen = self.captioner.agnostic, 0

            def agnostic(frames: Any) -> list[str]:
                nonlocal seen
                seen += len(frames)
                if 60 < seen < 65:  # in the middle of the longest video, which comes second
                    raise GranAlignError("too dark")
                return answer(frames)

            self.captioner.agnostic = agnostic  # type: ignore[method-assign]

    failed: dict[str, GranAlignError] = {}
    result = run([job_videos], tmp_path / "out", Refusing(), on_error=failed.__setitem__)
    (name,) = failed
    assert Path(name).stem == "street" and sorted(result.vids) == ["kitchen", "yard"]
    assert "and the rest of its chunk: too dark" in str(failed[name])


def test_a_damaged_video_is_indexed_as_far_as_it_goes(job_videos: Path, tmp_path: Path):
    video = tmp_path / "street.mkv"
    with av.open(str(job_videos / "street.mp4")) as source, av.open(str(video), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.warns(DamagedVideoWarning, match=str(video)):
        result = run([video], tmp_path / "out")
    assert result.vids == ("street",) and 0 < result.clips < 79


def test_warnings_of_models_are_not_those_of_a_video(job_videos: Path, tmp_path: Path):
    """The next chunk is decoded in a thread while a model runs in this one."""
    models = JobModels()
    answer, said = models.captioner.agnostic, 0

    def agnostic(frames: Any) -> list[str]:
        nonlocal said
        for _ in range(20):
            time.sleep(0.0005)  # lets the other thread run
            said += 1
            warnings.warn(f"number {said}", RuntimeWarning, stacklevel=1)
        return answer(frames)

    models.captioner.agnostic = agnostic  # type: ignore[method-assign]
    show = warnings.showwarning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run([job_videos], tmp_path / "out", models)
    assert [str(one.message) for one in caught] == [f"number {n + 1}" for n in range(said)]
    assert {one.category for one in caught} == {RuntimeWarning} and warnings.showwarning is show


def test_changed_moved_and_copied_files(job_videos: Path, tmp_path: Path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    (videos / "a").mkdir(parents=True)
    (videos / "b").mkdir()
    shutil.copy(job_videos / "yard.mp4", videos / "a" / "yard.mp4")
    run([videos], out)
    # Another file of the same name gets an id of its own, by the rule of `index_videos`.
    write_video(videos / "b" / "yard.mp4", 2, seed=9)
    expected = [
        path.name
        for path in index_videos(
            [videos / "a" / "yard.mp4", videos / "b" / "yard.mp4"],
            tmp_path / "plain",
            JobModels().of_this_machine(),
            clip_seconds=SHORT,
        )
    ]
    assert sorted(run([videos], out).vids) == sorted(expected) and "yard" in expected
    # A copy shares the index; a moved file keeps it, and its new path is written.
    (videos / "c").mkdir()
    (videos / "a" / "yard.mp4").rename(videos / "c" / "yard.mp4")
    result = run([videos], out)
    assert sorted(result.vids) == sorted(expected) and result.indexed == 0
    frames = VideoIndex.load(out / "yard").frames
    assert frames is not None and frames.path == videos / "c" / "yard.mp4"
    # A file that has changed is indexed again.
    write_video(videos / "c" / "yard.mp4", 3, seed=10)
    assert run([videos], out).indexed == 1
    assert VideoIndex.load(out / "yard").video.clips > 3


def test_captions_are_not_lost(job_videos: Path, clean: Path, tmp_path: Path):
    out, failed = tmp_path / "out", {}
    shutil.copytree(clean, out, copy_function=shutil.copy2)
    bare = JobModels(fingerprints={"clip": "other"})
    result = run([job_videos], out, bare, on_error=failed.__setitem__)
    assert not result.vids and indexes(out) == indexes(clean)
    assert all("captions, which these models would lose" in str(e) for e in failed.values())


def test_what_is_not_an_index_is_not_overwritten(job_videos: Path, tmp_path: Path):
    other, failed = tmp_path / "out" / "yard", {}
    other.mkdir(parents=True)
    (other / "letter.txt").write_text("dear")
    run([job_videos], tmp_path / "out", on_error=failed.__setitem__)
    assert "expected the index of a video or nothing" in str(*failed.values())
    assert (other / "letter.txt").read_text() == "dear" and len(failed) == 1


def test_frames_alone(job_videos: Path, tmp_path: Path):
    models = JobModels(fingerprints={"clip": FINGERPRINTS["clip"]})
    result = run([job_videos], tmp_path / "out", models)
    assert not result.captions and set(result.vids) == set(VIDEOS)
    assert VideoIndex.load(tmp_path / "out" / "yard").embeddings is None


@pytest.mark.parametrize("frames", [1, 4])
def test_a_chunk_survives_its_columns(job_videos: Path, tmp_path: Path, frames: int):
    path = job_videos / "yard.mp4"
    file = Store.at(path).find()
    assert file is not None
    spec = Job(Store.at(tmp_path), JobModels(), FINGERPRINTS, SHORT, 4, frames)
    (chunk,) = decode(spec, SourceVideo("yard", str(path), file.bytes, file.modified_ns))
    for make in (None, *model_stages(spec).values()):
        chunk = chunk if make is None else make(spec)(chunk)
        row = chunk.to_row()
        again = chunks.Chunk.from_row(**row)
        assert again.to_row() == row and again.hashes == chunk.hashes
        assert [len(frame.later) for frame in again.frames] == [frames - 1] * len(chunk.frames)
        assert all(map(np.array_equal, again.images, chunk.images))
    assert again.rows().to_safetensors() == chunk.rows().to_safetensors()
    assert all(image.size == 0 for image in again.without_pictures().images)


@pytest.mark.parametrize(
    "text",
    [
        "captions",
        "captions=0",
        "captions=3-2",
        "sound=1",
        "texts=1:x",
        "texts=1:1.5",
        "texts=1:nan",
    ],
)
def test_wrong_workers_are_refused(text: str):
    with pytest.raises(GranAlignError, match="workers"):
        Workers.parse(text)


def test_workers():
    assert Workers.parse("captions=4") == ("captions", Workers(4, 4))
    assert Workers.parse("decode=2-16") == ("decode", Workers(2, 16))
    assert Workers.parse("texts=1:0.5", 1.0) == ("texts", Workers(1, 1, 0.5))
    assert Workers.parse("texts=2", 0.2) == ("texts", Workers(2, 2, 0.2))


@pytest.fixture
def stored(job_videos: Path, buckets: Path) -> Iterator[Path]:
    """The videos in an object store."""
    shutil.copytree(job_videos, buckets / "media" / "videos")
    yield buckets


def test_from_store_to_store(stored: Path, clean: Path, tmp_path: Path):
    result = run(["s3://media/videos/*.mp4"], "s3://lib/all")
    assert set(result.vids) == set(VIDEOS)
    for vid in VIDEOS:
        got, expected = VideoIndex.load(stored / "lib" / "all" / vid), VideoIndex.load(clean / vid)
        assert got.video == expected.video and np.array_equal(got.embeddings, expected.embeddings)
        assert got.frames is not None and expected.frames is not None
        assert got.frames.hashes == expected.frames.hashes
        assert got.frames.source is not None and expected.frames.source is not None
        assert got.frames.source.sha256 == expected.frames.source.sha256
        manifest = json.loads((stored / "lib" / "all" / vid / "manifest.json").read_bytes())
        assert manifest["source"]["path"] == f"s3://media/videos/{vid}.mp4"
    log = tmp_path / "log"
    assert run(["s3://media/videos"], "s3://lib/all", JobModels(log=log)).indexed == 0
    assert not log.exists()
    names = Store.at("s3://lib/all").list()
    assert not [name for name in names if name.startswith(".indexing")]
    # The same into a folder of this machine.
    run(["gs://media/videos/yard.mp4"], tmp_path / "out")
    assert np.array_equal(
        VideoIndex.load(tmp_path / "out" / "yard").embeddings,
        VideoIndex.load(clean / "yard").embeddings,
    )


def test_a_job_leaves_the_rows_of_another_one_alone(stored: Path):
    """Two jobs index different videos into one store; the rows of "gone" are older than a month."""
    other = Store.at("s3://lib/all")
    for vid in ("yard", "street", "gone"):
        other.write(f".indexing/parts/{vid}/0123/00000000-00000012", b"rows")
    (old,) = (stored / "lib" / "all" / ".indexing" / "parts" / "gone").glob("*/*")
    os.utime(old, (time.time() - 31 * 86400,) * 2)
    run(["s3://media/videos/yard.mp4"], "s3://lib/all")
    names = [name for name in other.list() if name.startswith(".indexing")]
    assert names == [".indexing/parts/street/0123/00000000-00000012"]


@pytest.mark.parametrize(("age", "wait"), [(-0.5, 2.0), (0.5, 1.5), (3.0, 0.0), (-9.0, 2.0)])
def test_two_manifests_differ_in_their_times(
    stored: Path, clean: Path, monkeypatch: pytest.MonkeyPatch, age: float, wait: float
):
    """The store keeps whole seconds, and its clock may be ahead of ours."""
    slept: list[float] = []
    store = Store.at("s3://lib/all")
    index = VideoIndex.load(clean / "yard")
    output.put_index(store, index)
    written = (stored / "lib" / "all" / "yard" / "manifest.json").stat().st_mtime
    monkeypatch.setattr(output.time, "time", lambda: written + age)
    monkeypatch.setattr(output.time, "sleep", slept.append)
    output.put_index(store, index)
    assert slept == [pytest.approx(wait, abs=1e-3)]


def test_names_that_stand_for_nothing(stored: Path, tmp_path: Path):
    failed: dict[str, GranAlignError] = {}
    names = ["s3://media/videos/*.avi", "s3://media/nothing", str(tmp_path / "none.mp4")]
    assert run(names, tmp_path / "out", on_error=failed.__setitem__).vids == ()
    assert len(failed) == 3 and "got no video there" in str(failed["s3://media/nothing"])


def test_clips_of_several_frames(job_videos: Path, tmp_path: Path):
    settings = {"clip_seconds": 1.0, "frames_per_clip": 4}
    index_videos(
        sorted(job_videos.iterdir()),
        tmp_path / "clean",
        JobModels().of_this_machine(),
        rows=8,
        **settings,
    )
    result = run([job_videos], tmp_path / "out", rows=8, **settings)
    assert result.indexed == 3
    assert indexes(tmp_path / "out") == indexes(tmp_path / "clean")
    # They are up to date; another number of frames is not.
    assert run([job_videos], tmp_path / "out", rows=8, **settings).indexed == 0
    assert run([job_videos], tmp_path / "out", rows=8, clip_seconds=1.0).indexed == 3
    with pytest.raises(GranAlignError, match="frames_per_clip: got 5"):
        run([job_videos], tmp_path / "out", frames_per_clip=5)
