"""Compute the items of a generator in a thread, one item ahead of its consumer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TypeVar

_Item = TypeVar("_Item")


@contextmanager
def prefetch(items: Generator[_Item, None, None]) -> Iterator[Iterator[_Item]]:
    """Yield the same items; a thread computes each one while the caller works on the one before."""

    def consume(pool: ThreadPoolExecutor) -> Iterator[_Item]:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item

    # The thread ends before the items are closed: a generator cannot be closed while it runs.
    with closing(items), ThreadPoolExecutor(1) as pool:
        yield consume(pool)
