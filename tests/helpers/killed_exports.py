"""Exports that are killed at random moments, as a test and as a command.

As a command: ``python -m helpers.killed_exports 30`` in the folder ``tests``.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.models.manifest import exported_models, read_manifest
from helpers.tiny_llm import LLAMA, write_tiny_llm

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)

_CHILD = """
import sys
from granalign_fast import cli
from granalign_fast.export import llm  # noqa: F401
print("ready", flush=True)
sys.argv = ["granalign", "export", "llm", *sys.argv[1:], "--no-check"]
cli.main()
"""
"""An export by the command line; it says when all modules are imported."""


def start(source: Path, out: Path) -> subprocess.Popen[str]:
    """Start an export and return when it begins."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def kill_at_random(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Kill exports to one folder at random moments, then let one go on to its end.

    After each of them the models' folder holds no model, or a whole one.

    Args:
        folder: an empty folder for the source and the exports.
        count: how many exports are killed before their end.
        seed: of the moments and signals.

    Returns:
        How many exports left what: ``nothing``, ``draft``, ``model``.
    """
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    source, models = write_tiny_llm(folder / "source", LLAMA | wide), folder / "models"
    out = models / "llm"
    # One export to its end says how long it takes.
    child, begin = start(source, out), time.monotonic()
    child.communicate()
    assert child.returncode == 0
    seconds = time.monotonic() - begin
    chance, left = random.Random(seed), {"nothing": 0, "draft": 0, "model": 0}
    while left["nothing"] + left["draft"] < count:  # some signals come after the end
        _delete(out)
        before = {path.name for path in models.iterdir()}
        child, number = start(source, out), chance.choice(SIGNALS)
        time.sleep(chance.uniform(0, seconds))
        child.send_signal(number)
        child.communicate()
        names = [path.name for path in models.iterdir()]
        left["model" if "llm" in names else "draft" if names else "nothing"] += 1
        drafts = [name for name in names if name != "llm"]
        assert len(drafts) <= 1, "an export deletes what the one before it left"
        # A draft of the export before stays if this one ends before it has begun.
        own = set(drafts) - before
        assert not own or number == signal.SIGKILL or "llm" in names, (names, number)
        _check(models, whole="llm" in names)
    _delete(out)
    child = start(source, out)
    child.communicate()
    assert child.returncode == 0
    assert [path.name for path in models.iterdir()] == ["llm"]
    _check(models, whole=True)
    return left


def _check(models: Path, *, whole: bool) -> None:
    """Check that a folder holds no model, or a whole one, and that no draft can be opened."""
    if whole:
        assert list(exported_models(models)) == ["llm"]
        assert read_manifest(models / "llm").self_check
        return
    for folder in (models, *models.iterdir()):
        try:
            found: object = exported_models(folder)
        except GranAlignError:
            continue
        raise AssertionError(f"{folder}: holds {found}")
    for draft in models.iterdir():
        # The manifest is the last file: in the instant before the draft gets its name it is whole.
        if (draft / "manifest.json").exists():
            assert read_manifest(draft).self_check


def _delete(folder: Path) -> None:
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(kill_at_random(Path(temporary), *map(int, sys.argv[1:])))
