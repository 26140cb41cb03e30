"""Change JSON values at random, by what they are: keys, lists, numbers and texts."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

OUTSIDE = "@outside@"
"""Stands for the folder that nothing may open; `cases` puts its path there."""

NESTED = "@nested@"
"""Stands for a value that is nested more deeply than a parser's stack."""

MANY = "@many@"
"""Stands for a list of very many empty lists, which take twenty times the memory of their text."""

PATHS = (
    f"{OUTSIDE}/secret.mp4",
    f"{OUTSIDE}/secret.json",
    f"{OUTSIDE}/secret.onnx",
    "../../outside/secret.mp4",
    "../../outside/secret.onnx",
    "../../outside/secret.json",
    "..",
    ".",
    "/",
    "/dev/zero",
    "/dev/stdin",
    "a\0b",
)
TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "\ud800",
    "\u202e",
    "\x1b[2J",
    "=1+1",
    "é" * 300,
    "x" * 100_000,
    "," * 20_000,
    "-" * 20_000,
    "{{ 10**9 * 'a' }}",
    "nan",
    "1e999",
    *PATHS,
)
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    0.5,
    1e-320,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    255,
    65_536,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
    10**400,
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, NESTED, MANY)

Place = tuple[Any, Any]
"""A container, and the key or the number of a value in it."""


def changed(rng: random.Random, value: Any, times: int | None = None) -> Any:
    """Return a changed copy of a JSON value."""
    holder = [copy.deepcopy(value)]
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(holder))
        container, key = rng.choice(places)
        rng.choice(_CHANGES)(rng, container, key, places)
        if not holder:
            holder = [None]
    return holder[0]


def dumped(value: Any) -> str:
    """Return the JSON of a value that `changed` returned."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):  # a list that holds itself
        text = json.dumps(None)
    text = text.replace(f'"{NESTED}"', "[" * 100_000 + "]" * 100_000)
    return text.replace(f'"{MANY}"', "[" + "[]," * 700_000 + "[]]")


def _places(container: Any) -> Iterator[Place]:
    """Yield the place of every value, from the outside in; of a long list some alone."""
    pairs: Any = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in list(pairs)[:200]:
        yield container, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _replace(rng: random.Random, container: Any, key: Any, places: list[Place]) -> None:
    container[key] = copy.deepcopy(rng.choice(rng.choice((TEXTS, NUMBERS, OTHERS, PATHS))))


def _disturb(rng: random.Random, container: Any, key: Any, places: list[Place]) -> None:
    """Change a value a little, or into one of its own kind."""
    value = container[key]
    if isinstance(value, bool) or value is None:
        container[key] = not value
    elif isinstance(value, int | float):
        steps = (value + 1, value - 1, -value, value * 2, value * 1000, str(value), *NUMBERS)
        container[key] = rng.choice(steps)
    elif isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        container[key] = rng.choice(
            (value[:cut], value[cut:], value * 2, value[:cut] + rng.choice(TEXTS) + value[cut:])
        )
    elif isinstance(value, list):
        container[key] = rng.choice(
            (value[::-1], value * 2, value[:1], value[1:], [value], value * 2000)
        )
    else:
        value[rng.choice(("", "a", "0", "kind", "$ref", "\ud800"))] = rng.choice(NUMBERS)


def _delete(rng: random.Random, container: Any, key: Any, places: list[Place]) -> None:
    del container[key]


def _move(rng: random.Random, container: Any, key: Any, places: list[Place]) -> None:
    """Put a copy of another value here."""
    other, name = rng.choice(places)
    try:
        container[key] = copy.deepcopy(other[name])
    except (KeyError, IndexError):  # deleted since
        container[key] = None


def _rename(rng: random.Random, container: Any, key: Any, places: list[Place]) -> None:
    if isinstance(container, dict):
        container[rng.choice(TEXTS[:11])] = container.pop(key)
    else:
        container.append(copy.deepcopy(container[key]))


_CHANGES: tuple[Callable[[random.Random, Any, Any, list[Place]], None], ...] = (
    _replace,
    _replace,
    _disturb,
    _disturb,
    _delete,
    _move,
    _rename,
)
