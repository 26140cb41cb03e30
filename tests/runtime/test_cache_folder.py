"""The cache folder: usable or not, what lies in it, and what leaves it when it grows."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast.errors import GranAlignError
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.runtime import cache_folder
from granalign_fast.runtime.cache_folder import (
    cache_limit,
    check_cache,
    entries,
    evict,
    mark_used,
    remove,
    usable_cache,
)

LOGGER = "granalign_fast.runtime.cache_folder"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache folder will be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.delenv("GRANALIGN_CACHE_GIB", raising=False)
    monkeypatch.setattr(cache_folder, "_warned", set())
    return tmp_path / "home" / "cache" / "granalign-fast"


def put(path: Path, size: int = 100, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    for one in (path, path.parent):
        os.utime(one, (time.time() - age,) * 2)
    return path


def fill(cache: Path) -> None:
    """One of everything that the package writes, and something that it does not."""
    put(cache / "embeddings-ab.safetensors", 1)
    put(cache / ".embeddings-cd.safetensors.0f0f", 2)
    put(cache / "indexes" / "h1" / "street" / "clips.parquet", 4)
    put(cache / "indexes" / "h1" / "street" / "manifest.json", 8)
    put(cache / "prefixes" / "k.safetensors", 16)
    put(cache / "prefixes" / ".l.safetensors.0f0f", 32)
    put(cache / "0f-fp32-1" / "manifest.json", 64)
    put(cache / "0f-fp32-1" / "model.onnx", 128)
    put(cache / ".0f-int8-1.x7" / "model.onnx", 256)
    put(cache / "tensorrt" / "sm90.timings", 512)
    put(cache / "tensorrt" / "onnxruntime-1" / "ab" / "one.engine", 1024)
    put(cache / "verified" / "ab", 0)
    put(cache / "libraries" / "h2" / "catalogue.json", 2048)
    put(cache / "notes.txt")
    put(cache / "mine" / "notes.txt")


def sums(cache: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for entry in entries(cache):
        files, size = found.get(entry.kind, (0, 0))
        found[entry.kind] = files + entry.files, size + entry.bytes
    return found


def test_everything_has_its_kind(cache: Path) -> None:
    assert entries(cache) == []
    fill(cache)
    assert sums(cache) == {
        "embeddings": (2, 3),
        "indexes": (2, 12),
        "prefixes": (2, 48),
        "exports": (3, 448),
        "engines": (2, 1536),
        "verified": (1, 0),
        "libraries": (1, 2048),
    }
    assert sums(cache).keys() == set(cache_folder.KINDS)


def test_removing_leaves_what_is_not_ours(cache: Path, tmp_path: Path) -> None:
    fill(cache)
    outside = put(tmp_path / "outside" / "manifest.json")
    (cache / "link").symlink_to(outside.parent)
    assert all(remove(entry) for entry in entries(cache))
    assert outside.exists(), "a link is not followed"
    left = sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    assert left == ["mine/notes.txt", "notes.txt"]
    assert all(remove(entry) for entry in [cache_folder.Entry(cache / "gone", "exports", 0, 0, 0)])


def test_what_cannot_be_deleted_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(cache / "embeddings-ab.safetensors")
    (entry,) = entries(cache)

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert not remove(entry)
    assert "embeddings-ab.safetensors: cannot be deleted (Permission denied)" in caplog.text


def test_the_least_recently_used_leaves_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 250 / (1 << 30)
    monkeypatch.setenv("GRANALIGN_CACHE_GIB", f"{gib:.18f}")
    old = put(cache / "embeddings-a.safetensors", age=9000)
    older = put(cache / "indexes" / "h1" / "v" / "manifest.json", age=9500).parent.parent
    os.utime(older, (time.time() - 9500,) * 2)
    oldest = put(cache / "embeddings-b.safetensors", age=9900)
    export = put(cache / "0f-fp32-1" / "manifest.json", 10_000, age=20_000)
    prefix = put(cache / "prefixes" / "k.safetensors", 10_000, age=20_000)
    mark_used(oldest)
    evict(cache)
    assert oldest.exists() and old.exists() and not older.exists()
    assert export.exists() and prefix.exists(), "these have bounds of their own, or none"
    put(cache / "embeddings-c.safetensors", 200, age=0)
    evict(cache)
    assert not old.exists() and not oldest.exists()
    assert (cache / "embeddings-c.safetensors").exists()


def test_an_index_at_work_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts change while it is made, and its folder does not."""
    monkeypatch.setenv("GRANALIGN_CACHE_GIB", "0")
    part = put(cache / "indexes" / "h1" / ".indexing" / "parts" / "v" / "p.safetensors", age=60)
    os.utime(cache / "indexes" / "h1", (0, 0))
    evict(cache)
    assert part.exists()
    for path in (part, *part.parents[:4]):
        os.utime(path, (0, 0))
    evict(cache)
    assert not part.exists()


@pytest.mark.parametrize(("text", "expected"), [("", 2 << 30), ("0.5", 1 << 29), ("0", 0)])
def test_the_bound(cache: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv("GRANALIGN_CACHE_GIB", text)
    assert cache_limit() == expected


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", "2 GiB"])
def test_a_bound_that_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GRANALIGN_CACHE_GIB", text)
    with pytest.raises(GranAlignError, match=f"GRANALIGN_CACHE_GIB: got '{text}', expected GiB"):
        cache_limit()


class Encoder(BagOfWords):
    content_key = "bag"


def test_embeddings_are_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    encoder = CachedEncoder(Encoder(), cache)  # type: ignore[arg-type]
    first = encoder.encode(["a dog"])
    (file,) = cache.iterdir()
    monkeypatch.setenv("GRANALIGN_CACHE_GIB", f"{2.5 * file.stat().st_size / (1 << 30):.18f}")
    os.utime(file, (1, 1))
    encoder.encode(["a cat"])
    np.testing.assert_array_equal(encoder.encode(["a dog"]), first)
    assert file.stat().st_mtime > 1, "used again"
    (other,) = set(cache.iterdir()) - {file}
    os.utime(other, (1, 1))
    encoder.encode(["a bird"])
    assert file.exists() and not other.exists() and len(list(cache.iterdir())) == 2


def test_a_usable_folder_is_made(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert check_cache() == cache and not cache.exists()
    assert usable_cache() == cache and cache.is_dir()
    assert caplog.text == ""


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("a file", "home is not a folder"),
        ("read-only", "home cannot be written"),
        ("no home", "got a user without a home folder"),
        ("full", r"cannot be made \(No space left on device\)"),
    ],
)
def test_a_folder_that_cannot_be_used(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
    message: str,
) -> None:
    home = cache.parents[1]
    if trouble == "a file":
        home.touch()
    elif trouble == "read-only":
        home.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: path != home)
    elif trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
    else:

        def refuse(self: Path, **options: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "mkdir", refuse)
    if trouble != "full":
        with pytest.raises(GranAlignError, match=message):
            check_cache()
    with caplog.at_level(logging.WARNING, LOGGER):
        assert usable_cache() is None
        assert usable_cache() is None
    (record,) = caplog.records
    assert record.getMessage().endswith("; working without a cache")
    caplog.clear()
