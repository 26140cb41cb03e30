"""Index and search videos of hours: ``python -m granalign_fast.bench.commands.hours``.

Each video is a sequence of the miniatures' test scenes at one frame a second. ``granalign index``
and ``granalign search`` with the miniatures run in new processes. Of each the table has seconds,
processor time over all cores, and the most memory. ``found`` is the share of the queries whose
first moment has an IoU of 0.5 with a window in which the video shows the query. With ``--given``
no video is written: the index is made of the captions that the miniatures are trained to write, and
captions alone are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from granalign_fast.bench.harness.machine import facts
from granalign_fast.index import CaptionedVideo
from granalign_fast.miniatures import provenance
from granalign_fast.miniatures.language import agnostic_caption
from granalign_fast.miniatures.queries import Query
from granalign_fast.miniatures.videos import CLIP_SECONDS, Script, frames_of, write_script
from granalign_fast.pipeline import open_models, open_retriever

_SIDE = 112
"""Height and width of the videos: those of the scenes, so that nothing is scaled."""


class Used(NamedTuple):
    """The output of a command, and what it took."""

    output: str
    seconds: float
    processor: float
    megabytes: float
    """At most, of the process."""


def scripts_of(hours: float) -> list[tuple[float, Script]]:
    """Return scripts that fill so many hours, each with the second at which it begins."""
    found: list[tuple[float, Script]] = []
    start = 0.0
    while start < 3600 * hours:
        script = write_script(len(found))
        found.append((start, script))
        start += float(np.ceil(script.duration))
    return found


def write_video(path: Path, scripts: Sequence[tuple[float, Script]]) -> float:
    """Write scripts one after another, a frame each second, and return the length in seconds."""
    import av

    with av.open(str(path), "w") as container:
        container.metadata[provenance.TAG] = provenance.MARK
        stream: Any = container.add_stream("libx264", rate=Fraction(1))
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "ultrafast", "threads": "1"}
        for number, (_, script) in enumerate(scripts):
            times = np.arange(np.ceil(script.duration)).tolist()
            for frame in frames_of(script, number, times):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    last, script = scripts[-1]
    return float(last + np.ceil(script.duration))


def asked(
    scripts: Sequence[tuple[float, Script]], count: int
) -> Iterator[tuple[Query, list[tuple[float, float]]]]:
    """Yield queries of scripts across the video, each with all windows that show it."""
    for number in np.linspace(0, len(scripts) - 1, count).astype(int).tolist():
        query = scripts[number][1].queries[0].query
        windows = [
            (start + shot.start, start + shot.end)
            for start, script in scripts
            for shot in script.shots
            if query.spec.holds(shot.scene)
        ]
        yield query, windows


def overlaps(moment: dict[str, float], windows: Sequence[tuple[float, float]]) -> bool:
    """Return whether a moment has an IoU of 0.5 with a window."""
    for start, end in windows:
        shared = min(end, moment["end"]) - max(start, moment["start"])
        if shared / (max(end, moment["end"]) - min(start, moment["start"])) >= 0.5:
            return True
    return False


def run(folder: Path, *line: str) -> Used:
    """Run ``granalign`` in a new process.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    out, errors = folder / "output", folder / "errors"
    begin = time.perf_counter()
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        command = (sys.executable, "-m", "granalign_fast", *line)
        files = [(os.POSIX_SPAWN_DUP2, stdout.fileno(), 1)]
        files += [(os.POSIX_SPAWN_DUP2, stderr.fileno(), 2)]
        pid = os.posix_spawn(sys.executable, command, environment, file_actions=files)
        _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise RuntimeError(f"granalign {' '.join(line)}: {errors.read_text()}")
    processor = usage.ru_utime + usage.ru_stime
    return Used(out.read_text(), seconds, processor, usage.ru_maxrss / 1024)


def measure(folder: Path, hours: float, queries: int, *, given: bool) -> dict[str, Any]:
    """Write, index and search a video of so many hours; return the figures."""
    scripts = scripts_of(hours)
    name = f"{'captions' if given else 'hours'}-{hours:g}"
    options = ["--captions-only"] if given else []
    made: dict[str, Any] = {}
    if given:
        index = _index_captions(scripts, folder / name, name)
    else:
        index, made = _index_video(scripts, folder, name)
    searches, found = [], []
    for query, windows in asked(scripts, queries):
        line = ("search", str(index), query.text, "--models", "miniatures", "--json")
        searches.append(run(folder, *line, *options))
        moments = json.loads(searches[-1].output)["moments"]
        found.append(bool(moments) and overlaps(moments[0], windows))
    last, script = scripts[-1]
    return {
        "hours": (last + script.duration) / 3600,
        **made,
        "index_bytes": sum(path.stat().st_size for path in index.iterdir()),
        "search": _record(searches),
        "found": sum(found) / len(found),
        "queries": len(found),
    }


def _index_video(
    scripts: Sequence[tuple[float, Script]], folder: Path, name: str
) -> tuple[Path, dict[str, Any]]:
    """Write a video and index it; return the index and the figures."""
    video, out = folder / f"{name}.mp4", folder / f"index-{name}"
    begin = time.perf_counter()
    write_video(video, scripts)
    written = time.perf_counter() - begin
    indexed = run(folder, "index", str(video), "--models", "miniatures", "--out", str(out))
    index = next(path for path in out.iterdir() if path.name[0] != ".")
    made = {"video_bytes": video.stat().st_size, "writing_seconds": written}
    return index, made | {"index": _record([indexed])}


def _index_captions(scripts: Sequence[tuple[float, Script]], out: Path, vid: str) -> Path:
    """Make the index of a video from the captions of its scenes."""
    captions = []
    last, script = scripts[-1]
    starts = np.array([start for start, _ in scripts])
    for second in np.arange(CLIP_SECONDS / 2, last + script.duration, CLIP_SECONDS).tolist():
        start, script = scripts[int(np.searchsorted(starts, second, side="right")) - 1]
        captions.append(agnostic_caption(script.shown_scene(second - start)[0]))
    models = open_models("miniatures")
    retriever = open_retriever("tuned", models=models, captions_only=True)
    retriever.index(CaptionedVideo(vid, tuple(captions))).save(out)
    return out


def _record(runs: Sequence[Used]) -> dict[str, float]:
    """Return the medians of several runs."""
    names = ("seconds", "processor", "megabytes")
    return {name: float(median(getattr(one, name) for one in runs)) for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line of JSON for each length."""
    parser = argparse.ArgumentParser(description="Index and search videos of hours.")
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--given", action="store_true", help="captions in place of a video")
    parser.add_argument("--folder", type=Path, help="for videos and indexes, which stay there")
    options = parser.parse_args(arguments)
    print(json.dumps({"cpu": facts("cpu")["cpu"]}), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if options.folder is None else options.folder
        folder.mkdir(exist_ok=True)
        for hours in options.hours:
            figures = measure(folder, hours, options.queries, given=options.given)
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
