"""The cache of arrays that are derived from others: its bound, its order, and its threads."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from granalign_fast.search.ranker import Kept


def doubled(seen: list[int]) -> Callable[[Any], Any]:
    def make(array: Any) -> Any:
        seen.append(len(array))
        return array * 2

    return make


def test_what_was_made_is_kept_while_its_array_is_there() -> None:
    kept, seen = Kept(10_000), []
    one, two = np.arange(5.0), np.arange(7.0)
    for array in (one, two) * 3:
        np.testing.assert_array_equal(kept.of(array, doubled(seen)), array * 2)
    assert seen == [5, 7] and kept.bytes == one.nbytes + two.nbytes
    del array, one
    assert len(kept) == 1 and kept.bytes == two.nbytes
    del kept
    del two  # nobody left to tell


def test_room_is_made_by_what_was_not_used_for_longest() -> None:
    seen: list[int] = []
    kept, make = Kept(8 * 30), doubled(seen)
    arrays = [np.arange(float(n)) for n in (9, 10, 11, 12)]
    for number in (0, 1, 0, 2, 0, 3, 0, 1):
        kept.of(arrays[number], make)
    assert seen == [9, 10, 11, 12, 10]  # when 12 came, 10 and 11 went; when 10 came again, 12
    assert len(kept) == 2 and kept.bytes == 8 * 19
    large = np.arange(100.0)
    assert len(kept.of(large, make)) == 100 and len(kept) == 1  # the last one in any case


def test_threads_share_what_is_kept() -> None:
    kept = Kept(8 * 100)
    arrays = [np.arange(float(n)) for n in range(1, 40)]

    def use(number: int) -> bool:
        given = arrays[number * 7 % 39]
        passing = np.arange(3.0)  # gone when this returns
        return all(
            np.array_equal(kept.of(own, lambda a: a * 2), own * 2) for own in (given, passing)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(800)))
    gc.collect()
    assert kept.bytes == sum(made.nbytes for _, made in kept._kept.values()) <= 8 * 100
    arrays.clear()
    assert len(kept) == kept.bytes == 0
