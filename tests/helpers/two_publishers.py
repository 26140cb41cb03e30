"""Processes that change one library in an object store: one of several machines.

``python -m helpers.two_publishers JOB ADDRESS NUMBER ROUNDS`` in tests. The bucket is the folder
that ``BUCKETS`` names, or that of the server to which the environment points.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from granalign_fast.library.jobs.output import put_index
from granalign_fast.library.remote import publish_catalogue, remove_remote, tag_remote
from granalign_fast.storage import Address, Store, store
from helpers.buckets import connect
from helpers.libraries import write_index


def publish(address: Address, number: int, rounds: int) -> None:
    """Add an index and publish the catalogue, again and again."""
    for turn in range(rounds):
        vid = f"v-{number}-{turn}"
        with tempfile.TemporaryDirectory() as name:
            index = write_index(Path(name) / vid, 3 + 5 * turn, seed=100 * number + turn)
        put_index(Store(address), index)
        publish_catalogue(address)


def tag(address: Address, number: int, rounds: int) -> None:
    """Give tags to the same videos, one after another."""
    for turn in range(rounds):
        tag_remote(address, ["shared"], [f"tag-{number}-{turn}"])


def remove(address: Address, number: int, rounds: int) -> None:
    """Remove videos of its own."""
    for turn in range(rounds):
        remove_remote(address, [f"old-{number}-{turn}"])


def start(
    job: str, place: str, number: int, rounds: int, cache: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process that is a machine of its own: it has its own cache."""
    words = [sys.executable, "-m", "helpers.two_publishers", job, place, str(number), str(rounds)]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(words, env=os.environ | own | environment, stderr=subprocess.PIPE)


def run_all(
    jobs: list[tuple[str, int]],
    place: str,
    rounds: int,
    caches: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run jobs at the same time, and wait; each must end well."""
    processes = [
        start(job, place, number, rounds, caches / str(number), environment or {})
        for job, number in jobs
    ]
    for (job, number), process in zip(jobs, processes, strict=True):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, (job, number, err.decode())


def main(job: str, place: str, number: str, rounds: str) -> None:
    folder = os.environ.get("BUCKETS")
    if folder is not None:
        store._connect = partial(connect, Path(folder))
    address = Address.find(place)
    assert address is not None
    jobs: dict[str, Any] = {"publish": publish, "tag": tag, "remove": remove}
    jobs[job](address, int(number), int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
