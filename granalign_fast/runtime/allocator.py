"""Keep the memory of a process that runs for long from growing by fragments."""

from __future__ import annotations

import ctypes
import gc
import os

_M_ARENA_MAX = -8
"""The parameter of glibc's ``mallopt``: the most arenas, from which threads take memory."""


def use_one_arena() -> bool:
    """Let all threads take memory from one arena of glibc; call it before threads begin.

    Each arena keeps what its threads freed for their own next requests. A service decodes videos,
    searches and answers on threads of their own, so that eight arenas per core grow with the
    largest request that each has ever seen. ``MALLOC_ARENA_MAX`` in the environment goes before.

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
    """Let the garbage collector pass over everything that there is: models, modules, tables.

    What comes later is then collected in milliseconds.
    """
    gc.collect()
    gc.freeze()
