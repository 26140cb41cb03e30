"""A reader with its valid files, and changed copies of them."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from granalign_fast.errors import GranAlignError

from .files import mutated
from .values import OUTSIDE


@dataclass(frozen=True)
class Case:
    """A reader and its files.

    Attributes:
        share: how often it takes part, in proportion to others.
        write: writes valid files into an empty folder.
        read: reads the files of a folder, as the package does for a user.
        repair: called after a change: it corrects the hashes that would hide the change.
        files: patterns of the files that are changed.
        kept: patterns of files that stay as they are.
        alone: whether one file is read at a time, without the others.
    """

    share: int
    write: Callable[[Path], None]
    read: Callable[[Path], object]
    repair: Callable[[Path], None] | None = None
    files: tuple[str, ...] = ("**/*",)
    kept: tuple[str, ...] = ()
    alone: bool = False

    def targets(self, folder: Path) -> list[Path]:
        """Return the files that are changed, sorted."""
        found = {path for pattern in self.files for path in folder.glob(pattern) if path.is_file()}
        kept = {path for pattern in self.kept for path in folder.glob(pattern)}
        return sorted(found - kept)


def make(case: Case, seeds: Path, folder: Path, number: int, outside: Path) -> None:
    """Write changed copies of a case's files; the number chooses every change.

    Args:
        case: the reader.
        seeds: its valid files.
        folder: where the copies go; it must not exist.
        number: of the file, which makes the same changes each time.
        outside: the folder that nothing may open.
    """
    rng = random.Random(number)
    if case.alone:
        folder.mkdir()
        shutil.copy(rng.choice(case.targets(seeds)), folder)
    else:
        shutil.copytree(seeds, folder)
    targets = case.targets(folder)
    for path in rng.sample(targets, min(len(targets), rng.choice((1, 1, 1, 2)))):
        other = rng.choice(targets).read_bytes()
        data = mutated(rng, path.name, path.read_bytes(), other)
        path.write_bytes(data.replace(OUTSIDE.encode(), str(outside).encode()))
    if case.repair is not None and rng.random() < 0.9:
        case.repair(folder)


def all_of(*calls: Callable[[], object]) -> object:
    """Make all calls, and raise the last error of ours at the end."""
    results, failed = [], None
    for call in calls:
        try:
            results.append(call())
        except GranAlignError as error:
            failed = str(error)  # the error itself would keep what its call has read
    if failed is not None:
        raise GranAlignError(failed)
    return results


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def repair_manifest(folder: Path) -> None:
    """Write the hashes of the files into the manifest, if it still has a place for them."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        hashes = {n: sha256(folder / n) for n in manifest["files"] if (folder / n).is_file()}
        if not hashes.items() <= manifest["files"].items():  # a catalogue knows other manifests
            manifest["files"] |= hashes
            path.write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        pass
