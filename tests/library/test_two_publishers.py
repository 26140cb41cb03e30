"""Several machines change one library in an object store at the same time; nothing is lost."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.job_models import JobModels
from helpers.libraries import contents, expected_contents, write_index
from helpers.two_publishers import run_all

from granalign_fast.errors import GranAlignError
from granalign_fast.index.manifest import read_manifest_source
from granalign_fast.library import remote
from granalign_fast.library.jobs import index_sources, job
from granalign_fast.library.opening import open_library_catalogue
from granalign_fast.library.remote import publish_catalogue, tag_remote
from granalign_fast.library.remote_library import RemoteLibrary
from granalign_fast.library.tags import read_tags
from granalign_fast.storage import Address, Store, claims
from granalign_fast.storage.claims import claimed

PLACE = "s3://bucket/films"
ROUNDS = 6


def address() -> Address:
    found = Address.find(PLACE)
    assert found is not None
    return found


@pytest.fixture
def films(buckets: Path) -> Path:
    """The folder of a library with one video."""
    folder = buckets / "bucket" / "films"
    write_index(folder / "shared", 5, seed=1)
    return folder


def left(films: Path) -> list[str]:
    return [path.name for path in films.glob(".claims/*")]


def test_what_several_machines_publish_at_once_is_all_there(
    films: Path, buckets: Path, tmp_path: Path
) -> None:
    run_all(
        [("publish", 0), ("publish", 1), ("publish", 2)],
        PLACE,
        ROUNDS,
        tmp_path / "caches",
        {"BUCKETS": str(buckets)},
    )
    # A reader has the pointer alone, and needs every segment that it names.
    catalogue = open_library_catalogue(PLACE)
    assert len(catalogue.videos()) == 1 + 3 * ROUNDS
    assert contents(catalogue) == expected_contents(films)
    assert not left(films)


def test_processes_of_one_machine_wait_for_each_other(
    films: Path, buckets: Path, tmp_path: Path
) -> None:
    environment = {"BUCKETS": str(buckets), "XDG_CACHE_HOME": str(tmp_path / "one cache")}
    run_all([("publish", 0), ("publish", 1)], PLACE, 3, tmp_path, environment)
    assert contents(open_library_catalogue(PLACE)) == expected_contents(films)


def test_tags_of_several_machines_are_all_kept(films: Path, buckets: Path, tmp_path: Path) -> None:
    for turn in range(ROUNDS):
        write_index(films / f"old-9-{turn}", 4, seed=turn)
    tag_remote(address(), [f"old-9-{turn}" for turn in range(ROUNDS)], ["old"])
    run_all(
        [("tag", 0), ("tag", 1), ("remove", 9)],
        PLACE,
        ROUNDS,
        tmp_path / "caches",
        {"BUCKETS": str(buckets)},
    )
    tags = read_tags(open_library_catalogue(PLACE).folder)
    assert tags.keys() == {"shared"}
    assert set(tags["shared"]) == {f"tag-{n}-{turn}" for n in (0, 1) for turn in range(ROUNDS)}
    assert [video.vid for video in open_library_catalogue(PLACE).videos()] == ["shared"]
    assert not left(films)


def test_a_catalogue_that_another_machine_published_meanwhile_is_extended(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_catalogue(address())
    update, done = remote.update_catalogue, []

    def late(*words: Any, **options: Any) -> Any:
        catalogue = update(*words, **options)
        if not done:  # another machine publishes after this one has looked at the indexes
            done.append(True)
            write_index(films / "other", 50, seed=5)
            with monkeypatch.context() as patch:
                patch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
                publish_catalogue(address())
        return catalogue

    write_index(films / "mine", 7, seed=6)
    monkeypatch.setattr(remote, "update_catalogue", late)
    publish_catalogue(address())
    assert contents(open_library_catalogue(PLACE)) == expected_contents(films)


def test_a_machine_that_is_at_work_is_named_with_the_remedy(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(address())
    with claimed(store, ["the tags"]):
        monkeypatch.setattr(remote, "claimed", lambda *words: claimed(*words, patience=0.3))
        publish_catalogue(address())  # it changes something else
        message = (
            f"{PLACE}: got another machine that changes the tags, expected none; wait until it has "
            f"ended, and run the same command again"
        )
        with pytest.raises(GranAlignError) as error:
            tag_remote(address(), ["shared"], ["new"])
        assert str(error.value) == message
    assert tag_remote(address(), ["shared"], ["new"]) == {"shared": ("new",)}
    assert not left(films)


def test_of_many_threads_one_at_a_time_is_at_work(films: Path) -> None:
    at_work, most, done = [0], [0], []

    def work() -> None:
        store = Store(address())
        for _ in range(4):
            with claimed(store, ["a", "b"]):
                at_work[0] += 1
                most[0] = max(most[0], at_work[0])
                time.sleep(0.005)
                at_work[0] -= 1
                done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], len(done)) == (1, 16) and not left(films)


def test_the_claim_of_a_killed_process_is_deleted(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_DEAD", 0.5)
    (films / ".claims").mkdir()
    for end in ("", ".alive"):
        (films / ".claims" / f"0123456789abcdef{end}").write_text('["the tags"]')
    begin = time.monotonic()
    tag_remote(address(), ["shared"], ["new"])
    assert time.monotonic() - begin > 0.5 and not left(films)


def test_what_is_no_claim_is_named(films: Path) -> None:
    path = films / ".claims" / "0123"
    path.parent.mkdir()
    for content in ("{", "[1]", ""):
        path.write_text(content)
        with pytest.raises(GranAlignError, match=r"\.claims/0123: got no claim .*; delete it"):
            tag_remote(address(), ["shared"], ["new"])
    path.unlink()
    assert tag_remote(address(), ["shared"], ["new"])


def test_a_claim_that_is_renewed_stays(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_DEAD", 0.6)
    monkeypatch.setattr(claims, "_RENEW", 0.1)
    store = Store(address())
    with claimed(store, ["the tags"]) as claim:
        other = claimed(store, ["the tags"], patience=2)
        with pytest.raises(GranAlignError, match="got another machine"), other:
            pass
        claim.check()


def test_a_process_that_was_stopped_for_long_publishes_nothing(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_catalogue(address())
    before = (films / ".catalogue" / "catalogue.json").read_bytes()
    write_index(films / "new", 7, seed=6)
    put = Store.put

    def stopped(self: Store, *words: Any) -> str:
        for path in films.glob(".claims/*"):  # others have given it up
            path.unlink()
        return put(self, *words)

    monkeypatch.setattr(Store, "put", stopped)
    with pytest.raises(GranAlignError, match=r"not renewed in time.*run the same command again"):
        publish_catalogue(address())
    assert (films / ".catalogue" / "catalogue.json").read_bytes() == before


def test_a_segment_that_is_damaged_here_is_not_published(films: Path) -> None:
    library = RemoteLibrary(address())
    catalogue = remote.update_catalogue(library.folder, indexes=library)
    (segment,) = catalogue.segments
    rows = segment.folder / "captions.f16"
    rows.write_bytes(bytes(rows.stat().st_size))
    with pytest.raises(GranAlignError, match=f"got SHA-256.*library rebuild {PLACE}"):
        publish_catalogue(address())
    assert not (films / ".catalogue" / "catalogue.json").exists()
    publish_catalogue(address(), rebuild=True)  # the remedy works
    assert contents(open_library_catalogue(PLACE)) == expected_contents(films)


@pytest.fixture
def two_yards(job_videos: Path, buckets: Path) -> list[str]:
    """Two videos of one name."""
    for bucket, name in (("a", "yard"), ("b", "kitchen")):
        (buckets / bucket).mkdir()
        shutil.copy(job_videos / f"{name}.mp4", buckets / bucket / "yard.mp4")
    return ["s3://a/yard.mp4", "s3://b/yard.mp4"]


class Meanwhile(JobModels):
    """Models of a job that are opened while something else happens."""

    def __init__(self, happens: Any) -> None:
        super().__init__()
        self._happens = happens
        self._encode = self.captioner.agnostic
        self.captioner.agnostic = self._agnostic  # type: ignore[method-assign]

    def _agnostic(self, frames: Any) -> list[str]:
        happens, self._happens = self._happens, None
        if happens is not None:
            happens()
        return self._encode(frames)


def test_two_jobs_do_not_give_one_id_to_two_videos(
    two_yards: list[str], buckets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_DEAD", 0.3)
    monkeypatch.setattr(claims, "_RENEW", 0.05)
    monkeypatch.setattr(claims, "_LONGEST_PAUSE", 0.3)
    first, second = two_yards
    refused: list[str] = []

    def other_job() -> None:
        index_sources(
            [second],
            PLACE,
            JobModels(),
            on_error=lambda name, error: refused.append(f"{name}: {error}"),
        )

    result = index_sources([first], PLACE, Meanwhile(other_job))
    assert result.vids == ("yard",)
    (text,) = refused
    assert text.startswith(f"{second}: {PLACE}: another job is at work on the index of 'yard'")
    source = read_manifest_source(buckets / "bucket" / "films" / "yard")
    assert source is not None and str(source.path) == "/s3:/a/yard.mp4"
    again = index_sources([second], PLACE, JobModels())  # the remedy
    assert again.indexed == 1 and again.vids != ("yard",)
    assert len(open_library_catalogue(PLACE).videos()) == 2


def test_an_index_that_another_job_wrote_since_the_plan_is_not_replaced(
    two_yards: list[str], buckets: Path
) -> None:
    first, second = two_yards
    plan = job.plan

    def late(*words: Any) -> Any:
        planned = plan(*words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "plan", plan)
            index_sources([first], PLACE, JobModels())
        return planned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "plan", late)
        with pytest.raises(GranAlignError, match=r"another job has written the index of 'yard'"):
            index_sources([second], PLACE, JobModels())
    source = read_manifest_source(buckets / "bucket" / "films" / "yard")
    assert source is not None and str(source.path) == "/s3:/a/yard.mp4"
