"""Kill what uses a library: ``PYTHONPATH=.. python -m helpers.kill_library 100 [SEED]`` in tests.

Processes that add videos, remove videos, rebuild the catalogue and read it are killed with
``kill -9`` at random moments, while another process reads all the time. After each death the
catalogue must hold exactly what the indexes hold, and no removed video. What a reader sees is never
torn: each video has the very rows of its index.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.library.catalogue import open_catalogue, update_catalogue
from granalign_fast.library.pointer import FOLDER, POINTER
from granalign_fast.library.upkeep import remove_videos
from helpers.libraries import contents, expected_contents, write_index

FIRST = 6
"""Videos of the library at the beginning; they stay."""
JOBS = ("add", "remove", "rebuild", "read")


def number_of(vid: str) -> int:
    """The number of a video, of which its captions are made."""
    return int(vid.partition("-")[2])


def clips_of(number: int) -> int:
    return 1 + number * 37 % 90


def add(library: Path) -> None:
    """Add videos of new numbers, and catalogue each."""
    number = time.time_ns() // 1_000_000  # of no video that was removed
    while True:
        number += 1
        write_index(library / f"v-{number}", clips_of(number), seed=number)
        with suppress(GranAlignError):  # another process has the lock
            update_catalogue(library)


def remove(library: Path) -> None:
    """Remove the videos that were added, and write down the ids before."""
    while True:
        vids = [path.name for path in library.glob("v-*") if number_of(path.name) >= FIRST]
        if vids:
            with suppress(GranAlignError):  # another process has removed it, or has the lock
                remove_videos(library, vids[:1])
                with (library.parent / "removed").open("a") as file:
                    file.write(f"{vids[0]}\n")
        time.sleep(0.01)


def rebuild(library: Path) -> None:
    """Build the catalogue anew, again and again."""
    while True:
        with suppress(GranAlignError):
            update_catalogue(library, rebuild=True)


def read(library: Path) -> None:
    """Open the catalogue again and again; end with code 3 if a video has other rows than it should.

    Each video's captions are those that its number gives, so that nothing else needs to be read.
    """
    made: dict[str, tuple[str, ...]] = {}
    while True:
        catalogue = open_catalogue(library)
        for vid, (captions, embeddings, *_) in contents(catalogue).items():
            if vid not in made:
                with tempfile.TemporaryDirectory() as name:
                    number = number_of(vid)
                    index = write_index(Path(name) / vid, clips_of(number), seed=number)
                made[vid] = index.video.captions, index.embeddings.astype("float16").tobytes()
            if made[vid] != (captions, embeddings):
                sys.stderr.write(f"{vid}: torn\n")
                sys.exit(3)


def start(job: str, library: Path) -> subprocess.Popen[bytes]:
    """Start a process, and wait until it begins."""
    line = [sys.executable, "-m", "helpers.kill_library", "--job", job, str(library)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    worker = subprocess.Popen(line, stdout=subprocess.PIPE, env=environment)
    assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
    worker.stdout.close()
    return worker


def check(library: Path) -> None:
    """The catalogue holds what the indexes hold, and nothing is left over."""
    catalogue = open_catalogue(library)
    assert contents(catalogue) == expected_contents(library)
    update_catalogue(library)
    left = {path.name for path in (library / FOLDER).iterdir()} - {POINTER}
    assert left == {segment.folder.name for segment in open_catalogue(library).segments}
    record = library.parent / "removed"
    removed = set(record.read_text().split()) if record.exists() else set()
    assert not removed & contents(catalogue).keys(), "a removed video came back"


def kill(folder: Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Kill processes, and check the library after each death.

    Returns:
        How many of each job were killed.
    """
    library = folder / "library"
    for number in range(FIRST):
        write_index(library / f"v-{number}", clips_of(number), seed=number)
    killed = dict.fromkeys(JOBS, 0)
    reader = start("read", library)
    try:
        for _ in range(kills):
            # The one that is killed works beside another one.
            jobs = rng.sample(JOBS[:3], 2) if rng.random() < 0.75 else ["read", "add"]
            workers = [start(job, library) for job in jobs]
            time.sleep(rng.uniform(0, 0.4))
            for job, worker in zip(jobs, workers, strict=True):
                assert worker.poll() is None, f"{job} ended by itself"
                worker.kill()
                worker.wait()
                killed[job] += 1
            check(library)
            assert reader.poll() is None, "the reader ended by itself"
    finally:
        reader.kill()
        reader.wait()
    return killed


def main(kills: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as name:
        killed = kill(Path(name), kills, random.Random(seed))
    print(f"{sum(killed.values())} killed ({killed}): nothing torn, lost or back again")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--job":
        print("ready", flush=True)
        globals()[sys.argv[2]](Path(sys.argv[3]))
    sys.exit(main(*(int(one) for one in [*sys.argv[1:], "0"][:2])))
