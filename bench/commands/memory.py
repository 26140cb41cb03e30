"""Measure the memory of the set ``laptop``: ``python -m granalign_fast.bench.commands.memory``.

The models have the sizes of the published ones and random weights; the sentence encoder is the
published one. Each language model is exported by a new process, without the comparison with torch.
Another process loads all models, indexes a minute of video and searches it once. A line for each
stage has its seconds, those of the processor, and the memory of the process at its end and at most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from granalign_fast.bench.harness.machine import facts
from granalign_fast.bench.harness.random_models import shape_of, write_source
from granalign_fast.bench.harness.random_siglip import write_siglip2_base
from granalign_fast.errors import GranAlignError
from granalign_fast.export.sizes import set_memory_bytes
from granalign_fast.models.published import model_set

_SHAPES = {"llm": "qwen3-0.6b", "vlm": "smolvlm2-500m"}
_FLOAT16 = 2
"""Bytes of a weight of these sources."""
_QUERY = "a man in a blue shirt is driving a car along the coast"


def write_models(folder: Path, suffix: str = "") -> None:
    """Write the models of ``laptop`` below a folder, but those that are there.

    Args:
        folder: of the exports; the sources below ``sources`` are deleted once they are exported.
        suffix: such as ``@2``, for models of fewer layers.
    """
    from granalign_fast.export.sentence_encoder import export_sentence_encoder
    from granalign_fast.models.sources import resolve_model

    for kind, shape in _SHAPES.items():
        if not (folder / kind).is_dir():
            source = write_source(shape + suffix, folder / "sources" / (shape + suffix))
            _in_process("--export", source, folder / kind)
            (source / "model.safetensors").unlink()
    if not (folder / "clip").is_dir():
        write_siglip2_base(folder / "clip")
    if not (folder / "sentence-encoder").is_dir():
        export_sentence_encoder(resolve_model(None), folder / "sentence-encoder")


def write_video(path: Path, seconds: int) -> None:
    """Write a test picture of 640 x 360.

    Raises:
        GranAlignError: ffmpeg is not installed, or fails.
    """
    picture = f"testsrc2=s=640x360:r=25:d={seconds}"
    line = ("ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", picture, "-pix_fmt", "yuv420p")
    try:
        subprocess.run((*line, str(path)), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise GranAlignError(f"ffmpeg: cannot write the video ({error}); install it") from None


def memory() -> dict[str, int]:
    """Return the memory of this process in bytes: now, of that not in files, and at most so far."""
    names = {"VmRSS": "now", "RssAnon": "anonymous", "VmHWM": "peak"}
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {key: 1024 * int(fields[name].split()[0]) for name, key in names.items()}


@contextmanager
def _stage(name: str, **more: int) -> Iterator[None]:
    """Print a line of JSON at the end of a stage: its seconds, those of the processor, memory."""
    begin, used = time.perf_counter(), time.process_time()
    yield
    seconds = {"seconds": time.perf_counter() - begin, "processor": time.process_time() - used}
    print(json.dumps({"stage": name, **seconds, **memory(), **more}), flush=True)


def export(source: Path, out: Path) -> None:
    """Export a language model in int4 as `granalign models get` does, and print its line.

    ``bound`` is what an export may take: 1.5 GB and three times the largest tensor of the source.
    """
    from granalign_fast.export.llm import export_llm
    from granalign_fast.export.vlm import export_vlm

    bound = int(1.5e9) + 3 * _FLOAT16 * shape_of(source.name).largest
    kinds: dict[str, Callable[..., Path]] = {"llm": export_llm, "vlm": export_vlm}
    with _stage(f"export {source.name}", bound=bound):
        kinds[out.name](source, out, precision="int4", check=False)


def _in_process(*arguments: str | Path, **environment: str) -> None:
    """Run this command in a process of its own.

    Raises:
        GranAlignError: it failed.
    """
    line = (sys.executable, "-P", "-m", "granalign_fast.bench.commands.memory")
    done = subprocess.run((*line, *map(str, arguments)), env=os.environ | environment)
    if done.returncode:
        raise GranAlignError(f"memory: the process ended with {done.returncode}; see above")


def work(models: Path, video: Path, out: Path, clip_seconds: float) -> None:
    """Load all models, index the video and search it; print a line for each stage."""
    from granalign_fast.index import VideoIndex
    from granalign_fast.pipeline import open_models

    with _stage("imports"):
        import granalign_fast.index.builder  # noqa: F401

        folder = open_models(models)
    loads: dict[str, Callable[[], object]] = {
        "load vlm": lambda: folder.captioner,
        "load clip": lambda: folder.frame_encoder,
        "load sentence encoder": lambda: folder.encoder,
        "load llm": lambda: folder.rewriter,
    }
    for name, load in loads.items():
        with _stage(name):
            load()
    with _stage("index"):
        (path,) = folder.index([video], out, clip_seconds=clip_seconds)
    with _stage("search"):
        result = folder.retriever().search(VideoIndex.load(path), _QUERY)
    print(json.dumps({"search": dict(result.seconds)}), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Measure the memory of laptop at true size.")
    parser.add_argument("--folder", type=Path, help="keep the models here (3 GB, and 9 GB of work)")
    parser.add_argument("--seconds", type=int, default=60, help="of the video (60)")
    parser.add_argument("--clip-seconds", type=float, default=2.0, help="of a clip (2)")
    parser.add_argument("--layers", type=int, help="cut language models to so many layers")
    parser.add_argument("--export", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.export:
        export(*options.export)
        return 0
    if options.work:
        models, video, out = options.work
        work(models, video, out, options.clip_seconds)
        return 0
    print(facts("cpu")["cpu"], flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        models = options.folder or scratch / "models"
        write_models(models, f"@{options.layers}" if options.layers else "")
        write_video(scratch / "video.mp4", options.seconds)
        # A cache of its own, so that no earlier run has computed anything.
        paths = (models, scratch / "video.mp4", scratch / "index")
        more = ("--clip-seconds", str(options.clip_seconds))
        _in_process("--work", *paths, *more, XDG_CACHE_HOME=str(scratch / "cache"))
    print(f"computed for laptop: {set_memory_bytes(model_set('laptop')) / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
