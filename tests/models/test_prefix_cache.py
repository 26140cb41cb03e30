"""The prefix cache: tiers, capacities, counters, and damaged or half-written files."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.models.prefix_cache import DiskTier, MemoryTier, PrefixCache, _is_finite

Array = np.ndarray[Any, Any]
KIB = 1024


class OnDevice(np.ndarray[Any, Any]):
    """A stand-in for an array of a GPU: `get` copies it to the host, as CuPy's does."""

    def get(self) -> Array:
        return np.array(self)


def to_device(array: Array) -> Array:
    return array.view(OnDevice)


def to_host(array: Array) -> Array:
    return array.get() if isinstance(array, OnDevice) else array


def array_of(number: int, size: int = KIB) -> Array:
    return np.full((2, 1, size // 8, 1), number, np.float32)


def file_of(folder: Path, key: str) -> Path:
    """The file of a key: its name is a hash, whatever the key."""
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def three_tiers(folder: Path, device: int = 2, host: int = 2, disk: int = 99) -> PrefixCache:
    """Return a cache whose capacities are given in arrays; a file is larger than its array."""
    return PrefixCache(
        [
            MemoryTier(device * KIB, name="device", move=to_device),
            MemoryTier(host * KIB, move=to_host),
            DiskTier(folder, disk * (KIB + 100)),
        ]
    )


def test_evicted_arrays_move_to_the_next_tier(tmp_path: Path) -> None:
    cache = three_tiers(tmp_path)
    for number in range(6):
        cache.put(str(number), array_of(number))
    assert cache.nbytes["device"] == cache.nbytes["host"] == 2 * KIB
    assert cache.counts.evictions == {"device": 4, "host": 2, "disk": 0}
    expected = {"5": "device", "3": "host", "0": "disk"}
    for key, tier in expected.items():
        before = dict(cache.counts.hits)
        array = cache.get(key)
        assert array is not None
        np.testing.assert_array_equal(array, array_of(int(key)))
        assert {name for name in before if cache.counts.hits[name] > before[name]} == {tier}
    assert cache.get("7") is None
    assert cache.counts.misses == 1


def test_an_array_found_in_a_lower_tier_returns_to_the_first(tmp_path: Path) -> None:
    cache = three_tiers(tmp_path)
    for number in range(6):
        cache.put(str(number), array_of(number))
    for _ in range(2):
        cache.get("0")
    assert cache.counts.hits == {"device": 1, "host": 0, "disk": 1}
    assert cache.nbytes["device"] == cache.nbytes["host"] == 2 * KIB


def test_the_least_recently_used_is_evicted_first() -> None:
    cache = PrefixCache([MemoryTier(3 * KIB)])
    for key in "abc":
        cache.put(key, array_of(0))
    cache.get("a")
    cache.put("d", array_of(0))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]


@pytest.mark.parametrize("limit", [0, 1, KIB - 1])
def test_an_array_above_the_capacity_evicts_nothing(tmp_path: Path, limit: int) -> None:
    cache = PrefixCache([MemoryTier(limit), DiskTier(tmp_path, limit)])
    cache.put("a", array_of(1))
    assert cache.get("a") is None
    assert cache.nbytes == {"host": 0, "disk": 0}
    assert cache.counts.evictions == {"host": 0, "disk": 0}


def test_putting_again_counts_once(tmp_path: Path) -> None:
    cache = PrefixCache([MemoryTier(4 * KIB), DiskTier(tmp_path, 9 * KIB)])
    for _ in range(3):
        cache.put("a", array_of(1))
    assert cache.nbytes["host"] == KIB
    assert len(list(tmp_path.iterdir())) == 1


def test_a_later_process_reads_the_disk_tier(tmp_path: Path) -> None:
    three_tiers(tmp_path).put("a", array_of(3))
    later = three_tiers(tmp_path)
    array = later.get("a")
    assert array is not None
    np.testing.assert_array_equal(array, array_of(3))
    assert later.counts.hits["disk"] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_disk_keeps_every_bit(tmp_path: Path, dtype: type) -> None:
    array = np.random.default_rng(0).standard_normal((6, 2, 5, 8)).astype(dtype)
    DiskTier(tmp_path, 10 * KIB).put("a", array)
    read = DiskTier(tmp_path, 10 * KIB).get("a")
    assert read is not None and read.dtype == dtype and read.shape == array.shape
    np.testing.assert_array_equal(read, array)


def test_a_smaller_capacity_evicts_the_oldest_files(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 99 * KIB)
    for age, key in enumerate("cba"):
        tier.put(key, array_of(0))
        os.utime(file_of(tmp_path, key), (1000 + age, 1000 + age))
    smaller = DiskTier(tmp_path, 2 * (KIB + 100))
    assert set(tmp_path.iterdir()) == {file_of(tmp_path, key) for key in "ab"}
    assert smaller.nbytes <= smaller.limit


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    "spoil",
    [cut, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_text("x")],
)
def test_a_damaged_file_is_a_miss_and_is_removed(
    tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    DiskTier(tmp_path, 9 * KIB).put("a", array_of(1))
    cache = PrefixCache([MemoryTier(9 * KIB), DiskTier(tmp_path, 9 * KIB)])
    spoil(file_of(tmp_path, "a"))
    assert cache.get("a") is None
    assert cache.counts.misses == 1 and not list(tmp_path.iterdir())
    cache.put("a", array_of(2))
    assert DiskTier(tmp_path, 9 * KIB).get("a") is not None


def test_a_file_that_another_process_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "ab":
        DiskTier(tmp_path, 9 * KIB).put(key, array_of(1))
    glob = Path.glob

    def racing(self: Path, pattern: str) -> list[Path]:
        paths = list(glob(self, pattern))
        file_of(tmp_path, "a").unlink(missing_ok=True)
        return paths

    monkeypatch.setattr(Path, "glob", racing)
    tier = DiskTier(tmp_path, 9 * KIB)
    assert tier.get("a") is None and tier.get("b") is not None


def test_old_half_written_files_are_removed(tmp_path: Path) -> None:
    names = (".old.safetensors.0123abcd", ".new.safetensors.0123abcd", "notes.txt")
    for name in names:
        (tmp_path / name).write_bytes(bytes(KIB))
    for name in names[::2]:
        os.utime(tmp_path / name, (1000, 1000))
    assert DiskTier(tmp_path, KIB).nbytes == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".new.safetensors.0123abcd",
        names[2],
    ]


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("broken", "remaining"), [("utime", {"b"}), ("unlink", {"a", "b"}), ("replace", set())]
)
def test_a_disk_that_refuses_operations_raises_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, remaining: set[str]
) -> None:
    DiskTier(tmp_path, 9 * KIB).put("a", array_of(1))
    monkeypatch.setattr(os, broken, refuse)
    cache = PrefixCache([MemoryTier(0), DiskTier(tmp_path, 2 * KIB)])  # one array fits
    assert cache.get("a") is not None
    cache.put("b", array_of(2))
    assert (cache.get("b") is None) == (broken == "replace")
    assert set(tmp_path.iterdir()) == {file_of(tmp_path, key) for key in remaining}
    assert DiskTier(tmp_path, 0).nbytes == 0


def test_bytes_in_use_are_those_of_the_files(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 5 * KIB)
    random = np.random.default_rng(1)
    for key in random.integers(9, size=60).tolist():
        if random.random() < 0.2:
            tier.discard(str(key))
        else:
            tier.put(str(key), array_of(key, 8 * int(random.integers(1, 200))))
        assert tier.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir()) <= tier.limit
    assert DiskTier(tmp_path, 5 * KIB).nbytes == tier.nbytes > 0


def test_threads_may_share_a_cache(tmp_path: Path) -> None:
    cache = three_tiers(tmp_path)
    wrong = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for key in random.integers(9, size=60).tolist():
            array = cache.get(str(key))
            if array is None:
                cache.put(str(key), array_of(key))
            elif not (np.asarray(array) == key).all():
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(cache.counts.hits.values()) + cache.counts.misses == 240


def test_bad_limits_and_folders(tmp_path: Path) -> None:
    for limit in (-1, 1.5, None):
        with pytest.raises(GranAlignError, match="limit of the host tier: got"):
            MemoryTier(limit)  # type: ignore[arg-type]
    with pytest.raises(GranAlignError, match="tiers: got none"):
        PrefixCache([])
    (tmp_path / "file").write_text("x")
    with pytest.raises(GranAlignError, match="file: got a link or a file, expected a folder"):
        DiskTier(tmp_path / "file", 1)


def test_numbers_that_are_not_finite_are_found() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for one in every[::7]:
        assert _is_finite(np.array([1, one], np.float16)) == bool(np.isfinite(one))
    # Also the last one of many.
    many = np.zeros(200_001, np.float16)
    assert _is_finite(many)
    many[-1] = -np.inf
    assert not _is_finite(many) and not _is_finite(many.astype(np.float32))
