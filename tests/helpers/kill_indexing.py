"""Kill indexing at random moments: ``cd tests && python -m helpers.kill_indexing 50 20 [SEED]``.

A process that indexes 20 videos is killed with ``kill -9`` at a random moment, and the next one
resumes its work, until 50 have been killed. Every folder that is finished on the way, and the last
one, must hold the very bytes that an undisturbed run writes, file by file.

Every second folder begins with indexes of frames alone, to which the processes add captions.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from granalign_fast.index import VideoIndex
from granalign_fast.index.builder import index_videos
from helpers.index_worker import FINGERPRINTS, ROWS, stand_ins, tree, write_video


def index(videos: Path, out: Path) -> None:
    index_videos(sorted(videos.iterdir()), out, stand_ins(), rows=ROWS)


def index_frames(videos: Path, out: Path) -> None:
    """Index the videos without captions, where a run is to add them."""
    models = stand_ins(captioner=None, encoder=None, fingerprints={"clip": FINGERPRINTS["clip"]})
    index_videos(sorted(videos.iterdir()), out, models, rows=ROWS)


def start(videos: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start a process that indexes, and wait until it begins."""
    line = [sys.executable, "-m", "helpers.kill_indexing", "--index", str(videos), str(out)]
    worker = subprocess.Popen(line, stdout=subprocess.PIPE)
    assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
    worker.stdout.close()
    return worker


def main(kills: int, files: int, seed: int) -> int:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = folder / "videos"
        videos.mkdir()
        for number in range(files):
            write_video(videos / f"video {number:02}.mp4", rng.randint(1, 7), number)
        worker = start(videos, folder / "clean")
        begin = time.perf_counter()
        assert worker.wait() == 0
        seconds = time.perf_counter() - begin
        clean = tree(folder / "clean")
        out, killed, finished, resumed = folder / "0", 0, 0, 0
        index_frames(videos, out)
        while killed < kills:
            resumed += (out / ".indexing").exists()
            worker = start(videos, out)
            try:
                code = worker.wait(rng.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                worker.kill()
                killed += worker.wait() < 0
                # What is in its place is whole, whenever the process died.
                for finished_index in out.glob("video*"):
                    VideoIndex.load(finished_index)
                continue
            assert code == 0 and tree(out) == clean, f"{out.name}: other bytes"
            finished += 1
            out = folder / str(finished)
            if finished % 2 == 0:
                index_frames(videos, out)
        assert start(videos, out).wait() == 0
        assert tree(out) == clean, "other bytes"
    print(
        f"{killed} killed, {resumed} resumed, {finished + 1} folders of {files} indexes finished "
        f"with the same {len(clean)} files; an undisturbed run takes {seconds:.1f} s"
    )
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--index":
        print("ready", flush=True)
        index(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit(0)
    sys.exit(main(*(int(one) for one in [*sys.argv[1:], "0"][:3])))
