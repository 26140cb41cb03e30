"""Keep the memory of a process that runs for long from growing by fragments."""

from __future__ import annotations

import ctypes
import gc
import os

_M_ARENA_MAX = -8
"""The parameter of glibc's ``mallopt``: the most arenas, from which threads take memory."""


def use_one_arena() -> bool:
    """Let all threads take memory from one arena of glibc; call it before threads begin.

    glibc gives threads up to eight arenas for each core, and an arena keeps the memory that its
    threads have freed. A service decodes videos, searches and answers on threads of their own, so
    in time every arena holds as much as its largest request took. ``MALLOC_ARENA_MAX`` in the
    environment takes precedence.

    Returns:
        Whether it was set: another C library has no arenas, or none that can be set.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_ARENA_MAX, 1))


def return_freed() -> None:
    """Collect garbage, which may hold files open, and give back memory that was freed.

    glibc keeps what the largest request so far has taken. Both take some milliseconds.
    """
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def keep_for_ever() -> None:
    """Exclude all objects that exist now from garbage collection: models, modules, tables.

    A collection then looks at later objects alone, and takes milliseconds.
    """
    gc.collect()
    gc.freeze()
