"""Index folders: a saved index is loaded unchanged, and anything else is refused."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import safetensors.numpy
from pyarrow import parquet

from granalign_fast.errors import GranAlignError
from granalign_fast.index import CaptionedVideo, FrameTable, VideoIndex, VideoSource

SOURCE = VideoSource(Path("/videos/street.mp4"), 1234, "0" * 63 + "f")
CAPTIONS = ("a dog runs", "", "Straße 道路 \U0001f697\n\0")


def rows(dim: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(dim).normal(size=(len(CAPTIONS), dim)).astype(dtype)


TIMES = np.array([1.0, 1.0, 4.7000000000000001])
HASHES = ("1f", "1f", "2e")
FRAMES = FrameTable(TIMES, HASHES, rows(5), SOURCE)
INDEX = VideoIndex(CaptionedVideo("street", CAPTIONS, 2.0, 5.5), rows(3), FRAMES, {"vlm": "q-v1"})
INDEXES = {
    "whole": INDEX,
    "halves": replace(
        INDEX, embeddings=rows(3, np.float16), frames=replace(FRAMES, embeddings=rows(5, "f2"))
    ),
    "no frame embeddings": replace(INDEX, frames=replace(FRAMES, embeddings=None)),
    "no video file": replace(INDEX, frames=replace(FRAMES, source=None)),
    "captions only": VideoIndex(CaptionedVideo("a/b \ud800", CAPTIONS, 3), rows(3)),
    "views": replace(INDEX, embeddings=rows(6)[:, ::2], frames=None),
}


def same(left: VideoIndex, right: VideoIndex) -> None:
    assert (left.video, left.models) == (right.video, right.models)
    pairs = [(left.embeddings, right.embeddings)]
    assert (left.frames is None) == (right.frames is None)
    if left.frames is not None and right.frames is not None:
        assert left.frames.hashes == right.frames.hashes
        assert left.frames.source == right.frames.source and left.frames.path == right.frames.path
        pairs += [(left.frames.times, right.frames.times)]
        assert (left.frames.embeddings is None) == (right.frames.embeddings is None)
        if left.frames.embeddings is not None:
            pairs += [(left.frames.embeddings, right.frames.embeddings)]
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    INDEX.save(tmp_path / "street")
    return tmp_path / "street"


@pytest.mark.parametrize("name", INDEXES)
def test_a_saved_index_is_loaded_unchanged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    INDEXES[name].save(tmp_path / "one")
    for unpickling in ("load", "loads", "Unpickler"):
        monkeypatch.delattr(pickle, unpickling)
    same(VideoIndex.load(tmp_path / "one"), INDEXES[name])
    VideoIndex.load(tmp_path / "one").save(tmp_path / "two")
    for file in ("manifest.json", "clips.parquet", "embeddings.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_other_libraries_can_read_the_files(saved: Path) -> None:
    table = parquet.read_table(saved / "clips.parquet")
    assert table.to_pydict() == {
        "clip": [0, 1, 2],
        "time": TIMES.tolist(),
        "caption": list(CAPTIONS),
        "frame_hash": list(HASHES),
    }
    tensors = safetensors.numpy.load_file(saved / "embeddings.safetensors")
    assert sorted(tensors) == ["captions", "frames"]
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["source"] == {
        "name": "street.mp4",
        "path": "/videos/street.mp4",
        "bytes": 1234,
        "sha256": SOURCE.sha256,
    }
    assert manifest["files"] == {
        name: hashlib.sha256((saved / name).read_bytes()).hexdigest()
        for name in ("clips.parquet", "embeddings.safetensors")
    }


def test_saving_never_overwrites_and_leaves_nothing_half_done(saved: Path) -> None:
    before = (saved / "manifest.json").read_bytes()
    with pytest.raises(GranAlignError, match="already exists"):
        INDEX.save(saved)
    assert (saved / "manifest.json").read_bytes() == before
    broken = replace(INDEX, video=replace(INDEX.video, captions=("a", "b", "half \ud83d")))
    with pytest.raises(GranAlignError, match=r"caption 2 of 'street': got 'half \\ud83d'"):
        broken.save(saved.parent / "broken")
    assert [path.name for path in saved.parent.iterdir()] == ["street"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(FRAMES, times=TIMES[:2]), r"got float64 \(2,\), expected float64 \(3,\)"),
        (lambda: replace(FRAMES, times=TIMES.astype("f4")), "got float32"),
        (lambda: replace(FRAMES, times=TIMES[::-1]), "never decrease"),
        (lambda: replace(FRAMES, times=TIMES - 2), "from 0"),
        (lambda: replace(FRAMES, times=TIMES * np.nan), "from 0"),
        (lambda: replace(FRAMES, hashes=("1", "", "2")), "hash of frame 1: got ''"),
        (lambda: replace(FRAMES, embeddings=rows(4)[:2]), r"got float32 \(2, 4\), expected"),
        (lambda: replace(SOURCE, path=Path("street.mp4")), "expected an absolute one"),
        (lambda: replace(SOURCE, bytes=-1), "got -1 bytes"),
        (lambda: replace(SOURCE, sha256="F" * 64), "expected 64 hex digits"),
        (lambda: replace(INDEX, models={"vlm": 3}), "got 'vlm': 3"),
        (lambda: replace(INDEX, embeddings=rows(3)[:2]), "a row for each caption"),
        (
            lambda: replace(INDEX, frames=FrameTable(TIMES[:2], HASHES[:2])),
            "frames of 'street': got 2, expected 3",
        ),
    ],
)
def test_inconsistent_fields_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        make()


def test_the_representations_are_short_and_name_the_content() -> None:
    source = "VideoSource(path='/videos/street.mp4', bytes=1234, sha256='000000000000...')"
    frames = f"FrameTable(frames=3, embedding_dim=5, source={source})"
    assert repr(INDEX) == (
        "VideoIndex(vid='street', clips=3, clip_seconds=2.0, duration=5.5, embedding_dim=3, "
        f"frames={frames}, models={{'vlm': 'q-v1'}})"
    )
    assert repr(INDEX.video) == (
        "CaptionedVideo(vid='street', clips=3, clip_seconds=2.0, duration=5.5)"
    )
    assert repr(INDEXES["no frame embeddings"].frames) == (
        f"FrameTable(frames=3, embedding_dim=None, source={source})"
    )
    assert repr(INDEXES["captions only"]) == (
        "VideoIndex(vid='a/b \\ud800', clips=3, clip_seconds=3, duration=None, embedding_dim=3, "
        "frames=None, models={})"
    )
    long = VideoIndex(CaptionedVideo("v", ("a dog",) * 5000), np.ones((5000, 2), np.float32))
    assert len(repr(long)) < 200


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "flipped": flip,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("file", ["manifest.json", "clips.parquet", "embeddings.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_an_error(saved: Path, file: str, damage: str) -> None:
    DAMAGES[damage](saved / file)
    with pytest.raises(GranAlignError, match=file) as error:
        VideoIndex.load(saved)
    assert "\n" not in str(error.value)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and its hash in the manifest: only the content can reveal the change."""
    (folder / name).write_bytes(content)
    change(
        folder, lambda record: record["files"].update({name: hashlib.sha256(content).hexdigest()})
    )


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    record = json.loads(path.read_bytes())
    edit(record)
    path.write_text(json.dumps(record))


def table(**columns: Any) -> bytes:
    """The clip table with some columns replaced; a column that is None is left out."""
    kinds = {"clip": "int64", "time": "float64", "caption": "string", "frame_hash": "string"}
    values: dict[str, Any] = {
        "clip": [0, 1, 2],
        "time": TIMES,
        "caption": list(CAPTIONS),
        "frame_hash": list(HASHES),
    }
    arrays = {
        name: value if isinstance(value, pyarrow.Array) else pyarrow.array(value, kinds[name])
        for name, value in (values | columns).items()
        if value is not None
    }
    fields = [
        pyarrow.field(name, array.type, nullable=name in ("time", "frame_hash"))
        for name, array in arrays.items()
    ]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays, schema=pyarrow.schema(fields)), sink)
    return sink.getvalue()


def test_the_unchanged_table_of_these_tests_is_accepted(saved: Path) -> None:
    rewrite(saved, "clips.parquet", table())
    same(VideoIndex.load(saved), INDEX)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 not a table PAR1", "not a table of clips"),
        (table(frame_hash=None), "got columns clip int64, time double, caption string, expected"),
        (table(clip=pyarrow.array([0, 1, 2], "int32")), "got columns"),
        (table(clip=[0, 2, 1]), "expected clips 0, 1, 2"),
        (table(time=[1.0, None, 2.0]), "got frames of some clips"),
        (table(time=[None] * 3), "got frames of some clips"),
        (table(time=[None] * 3, frame_hash=[None] * 3), "got no frames"),
        (table(time=[2.0, 1.0, 3.0]), "never decrease"),
        (table(clip=[], time=[], caption=[], frame_hash=[]), "got 0 clips"),
        (
            table(clip=[0, 1], time=[1.0, 2.0], caption=["a", "b"], frame_hash=["1", "2"]),
            "got 2 clips, expected 3",
        ),
    ],
)
def test_a_wrong_table_is_an_error(saved: Path, content: bytes, message: str) -> None:
    rewrite(saved, "clips.parquet", content)
    with pytest.raises(GranAlignError, match=message):
        VideoIndex.load(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"captions": rows(3)}), "not safetensors"),
        (safetensors.numpy.save({"frames": rows(3)}), r"got \['frames'\]"),
        (safetensors.numpy.save({"captions": rows(3), "more": rows(3)}), "got"),
        (safetensors.numpy.save({"captions": rows(3)[:2]}), r"got float32 \(2, 3\)"),
        (safetensors.numpy.save({"captions": rows(3, "f8")}), "got float64"),
        (safetensors.numpy.save({"captions": rows(3), "frames": rows(3)[:1]}), r"\(1, 3\)"),
    ],
)
def test_wrong_embeddings_are_an_error(saved: Path, content: bytes, message: str) -> None:
    rewrite(saved, "embeddings.safetensors", content)
    with pytest.raises(GranAlignError, match=message):
        VideoIndex.load(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(format_version=1), "got format version 1, expected 2"),
        (lambda r: r.update(format_version=3), "got format version 3, expected 2"),
        (lambda r: r.update(clock="first frame"), "got clock .first frame."),
        (lambda r: r.update(missing=[[1, "2"]]), "got missing .*expected pairs of seconds"),
        (lambda r: r.update(missing=[[4.0, 2.0]]), "expected pairs of seconds in ascending"),
        (lambda r: r.update(missing=[[4.0]]), "not enough values|expected pairs"),
        (lambda r: r.update(format_version=True), "got format version True"),
        (lambda r: r.update(kind="clip"), "got kind 'clip', expected 'video-index'"),
        (lambda r: r.pop("models"), r"keys \['models'\]"),
        (lambda r: r.update(more=1), r"keys \['more'\]"),
        (lambda r: r.update(clips=0), "got clips 0"),
        (lambda r: r.update(clips="3"), "got clips '3'"),
        (lambda r: r.update(clips=4), "got 3 clips, expected 4"),
        (lambda r: r.update(models=[]), r"got models \[\]"),
        (lambda r: r["models"].update(vlm=None), "got models"),
        (lambda r: r.update(files={"../other": "0"}), r"got files \['../other'\]"),
        (lambda r: r.update(vid=7), "vid: got 7"),
        (lambda r: r.update(clip_seconds=None), "clip_seconds of 'street': got None"),
        (lambda r: r.update(duration=float("nan")), "duration of 'street': got nan"),
        (lambda r: r.update(duration=4), "the video ends at 4 s"),
        (lambda r: r.update(source=[]), r"got source \[\]"),
        (lambda r: r["source"].pop("name"), "expected name, path, bytes and sha256"),
        (lambda r: r["source"].update(path=None), "got path None"),
        (lambda r: r["source"].update(path="street.mp4"), "expected an absolute one"),
        (lambda r: r["source"].update(bytes=1.5), "got 1.5 bytes"),
    ],
)
def test_a_wrong_manifest_is_an_error(
    saved: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(saved, edit)
    with pytest.raises(GranAlignError, match=message) as error:
        VideoIndex.load(saved)
    assert "manifest.json" in str(error.value) or str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_foreign_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        GranAlignError, match="no such folder; name a folder that `granalign index`"
    ):
        VideoIndex.load(tmp_path / "nothing")
    with pytest.raises(GranAlignError, match="expected an index"):
        VideoIndex.load(tmp_path)
    for content in ("[" * 100_000, "[]", '"text"', "{", '{"kind": {}}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(GranAlignError, match=r"manifest\.json"):
            VideoIndex.load(tmp_path)


ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**70, 0.5, -0.0, 1e300, float("inf"), float("nan"), "", "\0"),
    *("\ud800", "../..", "/etc", [], {}, [[]], {"": None}, "x" * 5000, 10**400),
]


def mutated(record: Any, chance: random.Random) -> Any:
    """Replace, remove, duplicate or move one value of the record, at any depth."""
    record = copy.deepcopy(record)
    locations: list[tuple[Any, Any]] = []
    open_values = [record]
    while open_values:
        value = open_values.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        locations += [(value, key) for key in keys]
        open_values += [value[key] for key in keys if isinstance(value[key], dict | list)]
    container, key = chance.choice(locations)
    match chance.randrange(4):
        case 0:
            del container[key]
        case 1:
            container[str(key) + "_"] = container[key]
        case 2:
            container[key] = copy.deepcopy(chance.choice(locations)[0])
        case _:
            container[key] = chance.choice(ODD_VALUES)
    return record


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_manifests_raise_no_other_error(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "street"
    INDEX.save(folder)
    path = folder / "manifest.json"
    whole = path.read_bytes()
    refused = 0
    for _ in range(100):
        if chance.random() < 0.5:
            content = json.dumps(mutated(json.loads(whole), chance)).encode()
        else:
            damaged = bytearray(whole)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            content = bytes(
                damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])]
            )
        path.write_bytes(content)
        try:
            assert isinstance(VideoIndex.load(folder), VideoIndex)
        except GranAlignError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50
    shutil.rmtree(folder)
