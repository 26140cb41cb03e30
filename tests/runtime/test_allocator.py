"""One arena of glibc for all threads, seen from a new process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import re, sys, threading
from ctypes import CDLL, c_char_p, c_void_p
from granalign_fast.runtime.allocator import use_one_arena

set_here = sys.argv[1] == "set" and use_one_arena()
library = CDLL(None)
library.malloc.restype, library.malloc.argtypes = c_void_p, [c_void_p]

def take():  # each thread wants memory while the others hold theirs
    library.malloc(1000)
    barrier.wait()

barrier = threading.Barrier(4)
threads = [threading.Thread(target=take) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
library.fopen.restype, library.fopen.argtypes = c_void_p, [c_char_p, c_char_p]
library.malloc_info.argtypes = [c_void_p] * 2
library.fclose.argtypes = [c_void_p]
stream = library.fopen(b"/dev/stdout", b"w")
library.malloc_info(None, stream)
library.fclose(stream)
print(f"set={set_here}")
"""

_IS_GLIBC = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")


@pytest.mark.skipif(not _IS_GLIBC, reason="arenas are those of glibc")
def test_threads_share_an_arena() -> None:
    def arenas(*, use: bool, **environment: str) -> tuple[int, bool]:
        env = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
        line = [sys.executable, "-c", _SCRIPT, "set" if use else "leave"]
        done = subprocess.run(
            line, capture_output=True, text=True, check=True, env=env | environment
        )
        return done.stdout.count("<heap nr="), "set=True" in done.stdout

    assert arenas(use=True) == (1, True)
    several, _ = arenas(use=False)
    assert several > 1
    assert arenas(use=True, MALLOC_ARENA_MAX="2") == (2, False)


_FREE_AND_TRIM = """
from ctypes import CDLL, c_void_p
from granalign_fast.bench.harness.process_usage import usage
from granalign_fast.runtime.allocator import return_freed
import os

library = CDLL(None)
library.malloc.restype, library.malloc.argtypes = c_void_p, [c_void_p]
library.free.argtypes = [c_void_p]
library.memset.argtypes = [c_void_p, c_void_p, c_void_p]
blocks = [library.malloc(100_000) for _ in range(1000)]
[library.memset(block, 1, 100_000) for block in blocks]
[library.free(block) for block in blocks[:-1]]  # the last one keeps the end of the heap
before = usage(os.getpid()).resident
return_freed()
print(before - usage(os.getpid()).resident)
"""


@pytest.mark.skipif(not _IS_GLIBC, reason="arenas are those of glibc")
def test_freed_memory_is_given_back() -> None:
    line = [sys.executable, "-c", _FREE_AND_TRIM]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80_000_000
