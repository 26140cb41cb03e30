"""The cache of arrays that are derived from others: its bound, its order, and its threads."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from granalign_fast.search.derived_cache import DerivedArrayCache


def doubled(seen: list[int]) -> Callable[[Any], Any]:
    def derive(array: Any) -> Any:
        seen.append(len(array))
        return array * 2

    return derive


def test_an_entry_lives_as_long_as_its_source() -> None:
    cache, seen = DerivedArrayCache(10_000), []
    one, two = np.arange(5.0), np.arange(7.0)
    for array in (one, two) * 3:
        np.testing.assert_array_equal(cache.get_or_create(array, doubled(seen)), array * 2)
    assert seen == [5, 7] and cache.nbytes == one.nbytes + two.nbytes
    del array, one
    assert len(cache) == 1 and cache.nbytes == two.nbytes
    del cache
    del two  # its callback finds no cache


def test_the_least_recently_used_entry_goes_first() -> None:
    seen: list[int] = []
    cache, derive = DerivedArrayCache(8 * 30), doubled(seen)
    arrays = [np.arange(float(n)) for n in (9, 10, 11, 12)]
    for number in (0, 1, 0, 2, 0, 3, 0, 1):
        cache.get_or_create(arrays[number], derive)
    assert seen == [9, 10, 11, 12, 10]  # when 12 came, 10 and 11 went; when 10 came again, 12
    assert len(cache) == 2 and cache.nbytes == 8 * 19
    large = np.arange(100.0)
    assert (
        len(cache.get_or_create(large, derive)) == 100 and len(cache) == 1
    )  # the last one in any case


def test_threads_share_a_cache() -> None:
    cache = DerivedArrayCache(8 * 100)
    arrays = [np.arange(float(n)) for n in range(1, 40)]

    def use(number: int) -> bool:
        lasting = arrays[number * 7 % 39]
        passing = np.arange(3.0)  # gone when this returns
        return all(
            np.array_equal(cache.get_or_create(source, lambda a: a * 2), source * 2)
            for source in (lasting, passing)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(800)))
    gc.collect()
    assert cache.nbytes == sum(derived.nbytes for _, derived in cache._entries.values()) <= 8 * 100
    arrays.clear()
    assert len(cache) == cache.nbytes == 0
