"""Caches: filed by what was read, checked when they are read, and closed to other users."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command import Granalign
from helpers.fakes import BagOfWords
from helpers.tiny_bert import write_tiny_bert
from helpers.tiny_vlm import write_unchecked_vlm
from safetensors.numpy import save

from granalign_fast.errors import GranAlignError
from granalign_fast.files import default_cache, known_sha256, sha256_of
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.models.manifest import SentenceManifest
from granalign_fast.models.prefix_cache import DiskTier, MemoryTier, PrefixCache
from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.pipeline import SentenceEncoder, open_models
from granalign_fast.runtime import cache_folder
from granalign_fast.runtime.cache_folder import check_cache, entries, readable_cache, usable_cache
from granalign_fast.types import FrameSet, frame_hash


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache_folder, "_warned", set())
    return tmp_path / "home" / "granalign-fast"


@pytest.fixture(scope="module")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    SentenceEncoder(write_tiny_bert(folder / "source"), cache_dir=folder / "kept")
    (exported,) = (folder / "kept").iterdir()
    return exported


class Encoder(BagOfWords):
    content_key = "bag"


def test_a_model_that_claims_to_be_another_has_its_own_cache(
    cache: Path, tmp_path: Path, sentence_folder: Path
) -> None:
    # The weights are altered, and the manifest says of itself what the genuine one says.
    copy = tmp_path / "copy"
    shutil.copytree(sentence_folder, copy)
    graph = copy / "model.onnx"
    content = bytearray(graph.read_bytes())
    at = content.rindex(b"\x3c") if b"\x3c" in content else len(content) // 2
    content[at] ^= 1
    graph.write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256_of(graph)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    genuine, other = (OnnxSentenceEncoder(folder) for folder in (sentence_folder, copy))
    assert genuine.fingerprint == other.fingerprint and genuine.content_key != other.content_key
    CachedEncoder(genuine, cache).encode(["a dog"])
    (kept,) = cache.iterdir()
    CachedEncoder(other, cache).encode(["a dog"])
    assert len(list(cache.iterdir())) == 2 and kept.exists()


def test_settings_of_a_model_are_part_of_its_content(sentence_folder: Path) -> None:
    manifest = SentenceManifest.read(sentence_folder)
    changed = {**manifest.__dict__, "prompt": "query: "}
    same = {**manifest.__dict__, "comparison": "of another day"}
    assert SentenceManifest(**changed).content_sha256 != manifest.content_sha256
    assert SentenceManifest(**same).content_sha256 == manifest.content_sha256


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 9), np.float32),
        np.zeros((1, 16), np.float64),
        np.full((1, 16), np.nan, np.float32),
        np.full((1, 16), np.inf, np.float32),
    ],
    ids=["shape", "type", "NaN", "infinity"],
)
def test_kept_embeddings_that_do_not_fit_are_computed_again(cache: Path, wrong: Any) -> None:
    encoder = CachedEncoder(Encoder(), cache)  # type: ignore[arg-type]
    right = encoder.encode(["a dog"])
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(file.stem) == len("embeddings-") + 64
    wrong = wrong[:, :1].repeat(right.shape[1], 1) if wrong.shape[1] == 16 else wrong
    file.write_bytes(save({"embeddings": wrong}))
    np.testing.assert_array_equal(encoder.encode(["a dog"]), right)
    file.unlink()
    file.symlink_to(cache.parent / "elsewhere")
    (cache.parent / "elsewhere").write_bytes(save({"embeddings": right + 1}))
    np.testing.assert_array_equal(encoder.encode(["a dog"]), right)


def test_a_kept_prefix_that_does_not_fit_is_computed_again(tmp_path: Path) -> None:
    model = VisionLanguageModel(write_unchecked_vlm(tmp_path / "vlm"))
    folder = tmp_path / "kept"
    frame = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    frames = FrameSet((frame_hash(frame),), lambda numbers: [frame for _ in numbers])

    def captioner() -> VlmCaptioner:
        return VlmCaptioner(model, cache=PrefixCache([MemoryTier(0), DiskTier(folder, 1 << 22)]))

    captioner().prefill(frames)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(file.stem) == 64
    right = file.read_bytes()
    start = captioner().start_of(frames.form)
    array = captioner().cache.tiers[1].get(captioner()._cache_key(frames.hashes[0], start))
    assert array is not None and captioner()._fits(start.tokens, array)
    hollow = array.copy()
    hollow[0] = np.nan
    for wrong in (array[:, :, :-1], array.astype(np.float64), hollow):
        file.write_bytes(save({"prefix": np.ascontiguousarray(wrong)}))
        captioner().prefill(frames)
        assert file.read_bytes() == right


def test_a_key_is_never_a_path(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "kept", 1 << 20)
    for key in ("../../secret", "/etc/passwd", "a" * 999, "\udc80", ""):
        tier.put(key, np.ones(3, np.float32))
        assert tier.get(key) is not None
    names = [path.name for path in (tmp_path / "kept").iterdir()]
    assert len(names) == 5 and {len(name) for name in names} == {64 + len(".safetensors")}
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_new_cache_is_closed_to_others(cache: Path) -> None:
    before = os.umask(0)
    try:
        for name in (None, "prefixes", "indexes"):
            made = usable_cache(name)
            assert made is not None and stat.S_IMODE(made.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def _of_another(folder: Path) -> None:
    os.chown(folder, 12345, 12345)


UNSAFE: dict[str, tuple[Callable[[Path], None], str]] = {
    "of another user": (_of_another, "got a folder of user 12345"),
    "written by a group": (lambda path: path.chmod(0o770), "run chmod go-w on it"),
    "written by all": (lambda path: path.chmod(0o707), "run chmod go-w on it"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_cache_of_others_is_not_used(
    cache: Path, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = UNSAFE[name]
    if name == "of another user" and os.geteuid():
        # Only root gives files away: let the folder be another's by what the process is.
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        cache.mkdir(parents=True, mode=0o700)
        message = f"got a folder of user {own}"
    else:
        cache.mkdir(parents=True, mode=0o700)
        spoil(cache)
    with pytest.raises(GranAlignError, match=message):
        check_cache()
    assert usable_cache() is None and readable_cache() is None
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "\n" not in record.getMessage()
    assert record.getMessage().endswith("; working without a cache")
    assert not list(cache.iterdir())
    # Nor by an encoder that is given the folder.
    encoder = CachedEncoder(Encoder(), cache)  # type: ignore[arg-type]
    np.testing.assert_array_equal(encoder.encode(["a dog"]), Encoder().encode(["a dog"]))
    assert not list(cache.iterdir())


def test_a_link_in_the_cache_is_not_followed(
    cache: Path, tmp_path: Path, granalign: Granalign
) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").touch()
    cache.mkdir(parents=True, mode=0o700)
    for name in ("indexes", "prefixes", "verified"):
        (cache / name).symlink_to(tmp_path / "films")
        assert usable_cache(name) is None
    assert [entry.path.name for entry in entries(cache)] == ["indexes", "prefixes", "verified"]
    assert granalign("cache", "clear", "--yes")[0] == 0
    assert (tmp_path / "films" / "a.mp4").exists() and not list(cache.iterdir())


def test_an_unwritable_folder_is_a_warning(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True, mode=0o700)
    (cache / "prefixes").touch()  # no folder can be made there, not even by root
    models = open_models("miniatures")
    assert models.cache is not None and len(models.cache.tiers) == 1
    assert "working without a cache" in caplog.text


@pytest.mark.parametrize("value", ["cache", "./cache", "~/cache"])
def test_the_cache_is_named_by_an_absolute_path(
    monkeypatch: pytest.MonkeyPatch, granalign: Granalign, tmp_path: Path, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    with pytest.raises(GranAlignError, match=r"XDG_CACHE_HOME: got '.*', expected a path that"):
        default_cache()
    code, _, err = granalign("cache", "info")
    assert code == 2 and err.count("\n") == 1
    assert usable_cache() is None and not list(tmp_path.iterdir())


@pytest.fixture
def marked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A file that counts as large and is marked; what it is read for again is counted."""
    monkeypatch.setattr("granalign_fast.files._LARGE", 10)
    monkeypatch.setattr("granalign_fast.files._SETTLED", 0)
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    digest = sha256_of(path)
    assert known_sha256(path, digest) == digest
    monkeypatch.setattr("granalign_fast.files.sha256_of", lambda path: "read again")
    assert known_sha256(path, digest) == digest
    return path, digest


def test_a_mark_cannot_be_made_without_the_key(cache: Path, marked: tuple[Path, str]) -> None:
    path, digest = marked
    marks = cache / "verified"
    (mark,) = (file for file in marks.iterdir() if file.name != "key")
    for one in (mark, marks / "key"):
        assert stat.S_IMODE(one.stat().st_mode) == 0o600
    status = path.stat()
    facts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    # All that the maker of a file could know is not the mark's name.
    name = json.dumps([digest, *facts])
    assert mark.name != hashlib.sha256(name.encode()).hexdigest()
    (marks / "key").write_bytes(bytes(32))
    assert known_sha256(path, digest) == "read again"


@pytest.mark.parametrize("what", ["a link", "a folder", "an open folder"])
def test_a_mark_is_a_file_in_a_closed_folder(
    cache: Path, marked: tuple[Path, str], what: str
) -> None:
    path, digest = marked
    (mark,) = (file for file in (cache / "verified").iterdir() if file.name != "key")
    if what == "an open folder":
        (cache / "verified").chmod(0o777)
    else:
        mark.unlink()
        mark.mkdir() if what == "a folder" else mark.symlink_to("/dev/null")
    assert known_sha256(path, digest) == "read again"
