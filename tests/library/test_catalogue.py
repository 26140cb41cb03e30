"""The catalogue equals the indexes, whatever has happened to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.fakes import BagOfWords
from helpers.libraries import contents, expected_contents, write_index

from granalign_fast.errors import GranAlignError
from granalign_fast.index.work_folder import lock_folder
from granalign_fast.library import catalogue as module
from granalign_fast.library import indexes, locks
from granalign_fast.library.catalogue import open_catalogue, update_catalogue
from granalign_fast.library.pointer import FOLDER, POINTER
from granalign_fast.library.segment import Segment
from granalign_fast.library.upkeep import Verification, remove_videos, verify_library


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Six videos of different lengths, catalogued one after another."""
    for number, clips in enumerate((76, 3, 200, 1, 40, 8)):
        write_index(tmp_path / f"video {number}", clips, seed=number)
        open_catalogue(tmp_path)
    return tmp_path


def test_appended_rows_are_those_of_the_indexes(library: Path) -> None:
    catalogue = open_catalogue(library)
    assert contents(catalogue) == expected_contents(library)
    assert not catalogue.missing
    # Segments of like size are merged: there are fewer than videos, and no folder is left over.
    assert len(catalogue.segments) < 4
    names = {path.name for path in (library / FOLDER).iterdir()}
    assert names == {POINTER, *(segment.folder.name for segment in catalogue.segments)}


def test_a_rebuilt_catalogue_is_equal(library: Path) -> None:
    before = contents(open_catalogue(library))
    catalogue = update_catalogue(library, rebuild=True)
    assert contents(catalogue) == before
    assert len(catalogue.segments) == 1


def test_appending_reads_only_the_new_index(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_index(library / "new", 5, seed=9)
    read: list[str] = []
    real = indexes.read_rows
    monkeypatch.setattr(
        indexes,
        "read_rows",
        lambda folder, *rest: (read.append(folder.name), real(folder, *rest))[1],
    )
    open_catalogue(library)
    open_catalogue(library)
    assert read == ["new"]


def _tear_pointer(root: Path) -> None:
    path = root / POINTER
    path.write_bytes(path.read_bytes()[:50])


def _tear_rows(root: Path) -> None:
    path = next(root.glob("*/captions.f16"))
    path.write_bytes(path.read_bytes()[:-2])


def _scale_others(root: Path) -> None:
    """The scale of codes is that of embeddings of another length, and the pointer agrees."""
    path = next(root.glob("*/captions-scale.f32"))
    path.write_bytes(path.read_bytes()[:-8])
    pointer = json.loads((root / POINTER).read_text())
    for segment in pointer["segments"]:
        if segment["name"] == path.parent.name:
            segment["files"][path.name][0] -= 8
    (root / POINTER).write_text(json.dumps(pointer))


def _announce_others(root: Path, **record: object) -> None:
    """The file of embeddings is empty, and the pointer agrees with its size."""
    path = next(root.glob("*/captions.f16"))
    path.write_bytes(b"")
    pointer = json.loads((root / POINTER).read_text())
    for segment in pointer["segments"]:
        if segment["name"] == path.parent.name:
            segment["files"][path.name][0] = 0
            segment.update(record)
    (root / POINTER).write_text(json.dumps(pointer))


def _tear_videos(root: Path) -> None:
    path = next(root.glob("*/videos.json"))
    path.write_bytes(b"[" + b"x" * (path.stat().st_size - 1))


def _tear_table(root: Path) -> None:
    path = next(root.glob("*/clips.parquet"))
    path.write_bytes(b"x" * path.stat().st_size)


def _age(root: Path) -> None:
    pointer = json.loads((root / POINTER).read_text())
    (root / POINTER).write_text(json.dumps(pointer | {"format": 0}))


@pytest.mark.parametrize(
    "harm",
    [
        shutil.rmtree,
        lambda root: (root / POINTER).unlink(),
        lambda root: shutil.rmtree(next(root.glob("segment-*"))),
        lambda root: (root / POINTER).write_text("[]"),
        _tear_pointer,
        _tear_rows,
        _scale_others,
        _announce_others,
        lambda root: _announce_others(root, dim=1 << 44),
        lambda root: _announce_others(root, dim=-4),
        lambda root: _announce_others(root, dim=1e400),
        _tear_videos,
        _tear_table,
        _age,
    ],
)
def test_a_torn_catalogue_is_made_again(library: Path, harm: Callable[[Path], object]) -> None:
    before = contents(open_catalogue(library))
    harm(library / FOLDER)
    assert contents(open_catalogue(library)) == before
    assert contents(open_catalogue(library)) == before


def test_a_table_that_is_damaged_inside_is_named_with_its_remedy(library: Path) -> None:
    """Its size is right, and hashes are not checked at each call: a read finds it."""
    for segment in open_catalogue(library).segments:
        path = segment.folder / "words.parquet"
        content = bytearray(path.read_bytes())
        content[4:100] = bytes(96)
        path.write_bytes(content)
    segment = open_catalogue(library).segments[0]
    with pytest.raises(GranAlignError, match=f"run granalign library rebuild {library}"):
        _ = segment.postings
    remote = Segment(segment.folder, segment.record, "s3://bucket/films")
    with pytest.raises(GranAlignError, match="run granalign library rebuild s3://bucket/films"):
        _ = remote.postings
    assert contents(update_catalogue(library, rebuild=True)) == expected_contents(library)


def test_threads_read_a_table_at_the_same_time(library: Path) -> None:
    segment = open_catalogue(library).segments[0]
    expected = segment.read_captions()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: segment.read_captions(), range(100)))
    finally:
        sys.setswitchinterval(before)
    assert all(captions == expected for captions in found)


def test_a_segment_of_removed_videos_is_written_again(library: Path) -> None:
    before = sum(segment.record.clips for segment in open_catalogue(library).segments)
    remove_videos(library, ["video 2"])
    catalogue = open_catalogue(library)
    assert sum(segment.record.clips for segment in catalogue.segments) == before - 200
    assert contents(catalogue) == expected_contents(library)


def test_unfinished_rows_of_a_removed_video_go_with_it(library: Path) -> None:
    parts = library / ".indexing" / "parts"
    for vid in ("video 2", "video 3"):
        (parts / vid).mkdir(parents=True)
        (parts / vid / "part-00000000.safetensors").write_bytes(b"rows")
    with lock_folder(library):  # of a run that is at work: it needs its rows
        remove_videos(library, ["video 4"])
    remove_videos(library, ["video 2"])
    assert [path.name for path in parts.iterdir()] == ["video 3"]


def test_names_lead_nowhere_else(library: Path) -> None:
    open_catalogue(library)
    pointer = json.loads((library / FOLDER / POINTER).read_text())
    pointer["segments"][0]["name"] = "../elsewhere"
    (library / FOLDER / POINTER).write_text(json.dumps(pointer))
    assert contents(open_catalogue(library)) == expected_contents(library)


def test_a_damaged_index_costs_itself_and_is_not_read_twice(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_index(library / "bad", 5, seed=9)
    (library / "bad" / "clips.parquet").write_bytes(b"torn")
    catalogue = open_catalogue(library)
    assert [video.vid for video in catalogue.videos()] == [f"video {i}" for i in range(6)]
    assert "bad/clips.parquet: altered" in catalogue.damaged["bad"][1]
    monkeypatch.setattr(indexes, "read_rows", None)
    assert open_catalogue(library).damaged.keys() == {"bad"}


def test_a_damaged_index_that_is_restored_is_read_again(library: Path) -> None:
    """A backup puts the file back, and the manifest stays as it was."""
    write_index(library / "bad", 5, seed=9)
    table = library / "bad" / "clips.parquet"
    whole = table.read_bytes()
    table.write_bytes(b"torn")
    assert open_catalogue(library).damaged.keys() == {"bad"}
    table.write_bytes(whole)
    catalogue = open_catalogue(library)
    assert not catalogue.damaged and contents(catalogue) == expected_contents(library)


def test_a_rebuild_that_fails_leaves_the_catalogue_as_it_was(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(open_catalogue(library))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_segments", full)
        with pytest.raises(GranAlignError, match="cannot be written"):
            update_catalogue(library, rebuild=True)
    assert contents(module._read(library)) == before


def test_embeddings_of_other_lengths_have_segments_of_their_own(library: Path) -> None:
    write_index(library / "short", 5, seed=9, dim=8)
    write_index(library / "with frames", 5, seed=10, frame_dim=4)
    catalogue = open_catalogue(library)
    assert contents(catalogue) == expected_contents(library)
    keys = [(one.record.dim, one.record.frame_dim) for one in catalogue.segments]
    assert set(keys) == {(BagOfWords.dim, 0), (8, 0), (BagOfWords.dim, 4)}


def test_a_full_disk_leaves_the_catalogue_as_it_was(library: Path) -> None:
    before = contents(open_catalogue(library))
    write_index(library / "new", 500, seed=9)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from granalign_fast.errors import GranAlignError\n"
        "from granalign_fast.library.catalogue import update_catalogue\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: update_catalogue(Path(sys.argv[1]))\n"
        "except GranAlignError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True)
    assert "its catalogue cannot be written (File too large); free disk space" in done.stdout
    assert done.stderr == ""
    on_disk = contents(module._read(library))
    assert on_disk == {vid: rows for vid, rows in before.items() if vid != "new"}
    assert contents(open_catalogue(library)) == expected_contents(library)


def test_what_cannot_be_written_is_kept_in_memory(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of a folder that it cannot write, or while a writer holds the lock."""
    write_index(library / "new", 5, seed=9)
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)
    with locks.locked_catalogue(library):
        catalogue = open_catalogue(library)
        assert contents(catalogue) == expected_contents(library)
        with pytest.raises(GranAlignError, match="another process is writing the catalogue"):
            update_catalogue(library)
        # The files of what is in memory are gone; those on disk are read.
        assert verify_library(library) == Verification(len(contents(catalogue)), {}, ())
        codes = module._read(library).segments[0].folder / "captions.u8"
        codes.write_bytes(bytes(codes.stat().st_size))
        assert verify_library(library).catalogue
    assert "new" not in contents(module._read(library))


def test_an_open_catalogue_outlives_its_files(library: Path) -> None:
    catalogue = open_catalogue(library)
    update_catalogue(library, rebuild=True)
    shutil.rmtree(library / FOLDER)
    assert contents(catalogue) == expected_contents(library)


def test_rows_that_are_no_numbers_are_refused(library: Path) -> None:
    write_index(library / "bad", 5, seed=9, value=np.nan)
    assert "no numbers of float16" in open_catalogue(library).damaged["bad"][1]


def test_no_folder_is_made_for_a_wrong_name(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="cannot be read"):
        open_catalogue(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "name", ["captions.f16", "captions.u8", "clips.parquet", "words.parquet", "counts.u16"]
)
def test_damage_on_disk_is_not_merged_into_a_new_segment(
    library: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    segments = open_catalogue(library).segments
    for segment in segments:
        path = segment.folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1  # one bit; the size stays
        path.write_bytes(content)
    write_index(library / "new", 300, seed=9)  # longer than all others: all segments are merged
    catalogue = open_catalogue(library)
    assert len(catalogue.segments) == 1
    assert contents(catalogue) == expected_contents(library)
    assert [segment.find_damage() for segment in catalogue.segments] == [None]
    damaged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert damaged and len(damaged) <= len(segments)  # a table may not even open
    assert all(f"{name}: got SHA-256" in text and "read again" in text for text in damaged)


def test_damage_is_not_copied_where_half_of_a_segment_is_removed(library: Path) -> None:
    update_catalogue(library, rebuild=True)
    (segment,) = open_catalogue(library).segments
    path = segment.folder / "captions.f16"
    path.write_bytes(bytes(path.stat().st_size))
    remove_videos(library, ["video 2"])
    catalogue = open_catalogue(library)
    assert catalogue.segments[0].folder != segment.folder
    assert contents(catalogue) == expected_contents(library)
