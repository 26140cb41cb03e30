"""Claims: how machines that change one place of an object store keep out of each other's way.

An object store has no locks, and pyarrow knows no write that depends on what is there. A claim is
an object below ``.claims`` that lists what its process changes. A process writes its claim, and
then lists those of others: it goes on only if no other one names the same. Of two processes that do
so together, the one that lists last sees the claim of the other, because a list of S3, of servers
like it and of Google's store shows every object that was written before. So never do both go on.

The owner writes a second object again and again. If it does not for `_DEAD` seconds, the process
was killed, and whoever is hindered by its claim deletes it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from granalign_fast.errors import GranAlignError, listed, one_line
from granalign_fast.parsing.json_types import matches
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_JSON_BYTES

from .store import Store

_log = logging.getLogger(__name__)

FOLDER = ".claims"
_ALIVE = ".alive"
"""The end of the name of the object that the owner of a claim writes again and again."""
_RENEW = 10.0
"""Seconds between two writes of it."""
_DEAD = 45.0
"""Seconds without one after which the owner counts as killed."""
_PAUSE = 0.1
"""Seconds between the first two attempts, about; the pause doubles up to `_LONGEST_PAUSE`."""
_LONGEST_PAUSE = 2.0

PATIENCE = 600.0
"""Seconds that a process waits for others which are at work."""


class Claim:
    """A claim that is held.

    Args:
        store: the place that is changed.
        names: of what is changed in it, such as ``catalogue``.
    """

    def __init__(self, store: Store, names: Collection[str]) -> None:
        self.names = set(names)
        self._store = store
        self._owner = os.urandom(8).hex()
        self._ended = threading.Event()
        self._renewing: threading.Thread | None = None
        self._renewed = 0.0
        self._seen: dict[str, tuple[str, float]] = {}
        """The last state of each other claim, and when this process saw it first."""

    def check(self) -> None:
        """Check that the claim still counts; call this before a step that cannot be undone.

        Raises:
            GranAlignError: the process was stopped for so long, or the store could not be written
                for so long, that others count it as killed.
        """
        if time.monotonic() - self._renewed > _DEAD / 2 or self._store.find(self._path) is None:
            raise GranAlignError(
                f"{self._store}: got a claim on {_listed(self.names)} that was not renewed in "
                f"time, so that another machine may be at work there; run the same command again"
            )

    @property
    def _path(self) -> str:
        return f"{FOLDER}/{self._owner}"

    def begin(self, patience: float) -> set[str]:
        """Write the claim, once no other one names the same.

        Args:
            patience: seconds to wait for others.

        Returns:
            What others still claim after that time, and then the claim is not written.
        """
        until = time.monotonic() + patience
        pause = _PAUSE
        while True:
            if not (taken := self._taken()):
                self._write()
                if not (taken := self._taken()):
                    self._renewing = threading.Thread(target=self._renew, daemon=True)
                    self._renewing.start()
                    return set()
                self._remove(self._owner)
            if time.monotonic() > until:
                return taken
            # Two that hinder each other come again at different times.
            time.sleep(random.uniform(0.5, 1.5) * pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def end(self) -> None:
        """Take the claim back."""
        self._ended.set()
        if self._renewing is not None:
            self._renewing.join()
        with suppress(GranAlignError):  # whom it hinders deletes it
            self._remove(self._owner)

    def _write(self) -> None:
        begin = time.monotonic()
        self._store.write(self._path, json.dumps(sorted(self.names)).encode())
        self._store.write(f"{self._path}{_ALIVE}", b"")
        self._renewed = begin

    def _renew(self) -> None:
        while not self._ended.wait(_RENEW):
            begin = time.monotonic()
            try:
                self._store.write(f"{self._path}{_ALIVE}", b"")
                self._renewed = begin
            except GranAlignError as error:
                _log.warning("%s", error)

    def _remove(self, owner: str) -> None:
        self._store.remove([f"{FOLDER}/{owner}{_ALIVE}", f"{FOLDER}/{owner}"])

    def _taken(self) -> set[str]:
        """Return which of the names others claim; claims of processes that were killed go."""
        files = self._store.list(FOLDER)
        taken: set[str] = set()
        for path in files:
            owner = path.rpartition("/")[2]
            if owner == self._owner or owner.endswith(_ALIVE):
                continue
            common = self.names & self._read(path)
            if not common:
                continue
            alive = files.get(f"{path}{_ALIVE}")
            state = f"{files[path].stamp} {alive and alive.stamp}"
            known, since = self._seen.setdefault(owner, (state, time.monotonic()))
            if known != state:
                self._seen[owner] = state, time.monotonic()
            elif time.monotonic() - since > _DEAD:
                _log.info("%s: a process that changed %s was killed", self._store, _listed(common))
                self._remove(owner)
                continue
            taken |= common
        return taken

    def _read(self, path: str) -> set[str]:
        """Return the names of a claim; none if it was taken back meanwhile."""
        try:
            content = self._store.read(path, MOST_JSON_BYTES)
        except GranAlignError:
            if self._store.find(path) is not None:
                raise
            return set()
        try:
            names: list[str] = parse_json(content)
            if not matches(list[str], names):
                raise ValueError("expected a list of names")
        except ValueError as error:
            raise GranAlignError(
                f"{self._store}/{path}: got no claim ({one_line(error)}); delete it"
            ) from None
        return set(names)


@contextmanager
def claimed(store: Store, names: Collection[str], patience: float = PATIENCE) -> Iterator[Claim]:
    """Keep other machines away from something in an object store for the block.

    Args:
        store: the place.
        names: of what is changed in it.
        patience: seconds to wait for others.

    Raises:
        GranAlignError: others are still at work after that time, or the store cannot be written.
    """
    claim = Claim(store, names)
    if taken := claim.begin(patience):
        raise GranAlignError(
            f"{store}: got another machine that changes {_listed(taken)}, expected none; wait "
            f"until it has ended, and run the same command again"
        )
    try:
        yield claim
    finally:
        claim.end()


@contextmanager
def claimed_in_part(store: Store, names: Collection[str]) -> Iterator[set[str]]:
    """Claim what no other machine claims for the block, and yield the names that others have.

    Others count only if they are alive: a process that was killed is waited for, as long as it
    takes to tell.

    Args:
        store: the place.
        names: of what is changed in it.

    Raises:
        GranAlignError: the store cannot be written.
    """
    claim, others = Claim(store, names), set[str]()
    while taken := claim.begin(_DEAD + _LONGEST_PAUSE):
        claim.names -= taken
        others |= taken
    try:
        yield others
    finally:
        claim.end()


def _listed(names: Collection[str]) -> str:
    return listed(sorted(names))
