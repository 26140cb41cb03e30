"""One bad request among others fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from granalign_fast.errors import GranAlignError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def search_each(
    items: Sequence[_Item], search: Callable[[Sequence[_Item]], Sequence[_Result]]
) -> list[_Result | GranAlignError]:
    """Search requests together; if one fails, search each half by itself.

    An error of a request that was searched alone names no other request.

    Args:
        items: the requests.
        search: returns a result for each.

    Returns:
        For each request, its result or its error.
    """
    if not items:
        return []
    try:
        return [*search(items)]
    except GranAlignError as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return search_each(items[:middle], search) + search_each(items[middle:], search)
