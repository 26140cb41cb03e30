"""Every benchmark for a GPU, one after another: ``python -m granalign_fast.bench.commands.gpu``.

Each is a process of its own with a time limit, and writes a JSON file of its own: what fails, or
breaks the GPU's state, keeps no other from running or writing. The exit code says whether any did.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.runtime.device import Device

_COMMAND = "from granalign_fast.cli import main; main()"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SAFE = "-P"
"""Python looks for modules where it is told, not in the current folder."""


@dataclass(frozen=True, slots=True)
class Job:
    """A benchmark.

    Attributes:
        name: of its file, before the device's.
        suites: of ``granalign bench``; none for what has a command of its own, a module of `bench`
            of this name.
        share: of the time that it may take.
        arguments: more of them.
    """

    name: str
    suites: tuple[str, ...]
    share: float
    arguments: tuple[str, ...] = ()


JOBS = (
    Job("kernels", (), 0.2),
    Job("clip", ("shapes",), 0.1, ("--seconds", "1", "--random", "clip-vit-b32")),
    Job("llm", ("shapes",), 0.15, ("--seconds", "1", "--random", "llama3-8b")),
    Job("vlm", ("shapes",), 0.2, ("--seconds", "1", "--random", "qwen2.5-vl-7b")),
    Job("encoders", ("encoders",), 0.1, ("--seconds", "1")),
    Job("index", ("index",), 0.08, ("--seconds", "1", "--rounds", "5")),
    Job("generation", ("generation",), 0.1, ("--seconds", "1", "--rounds", "5")),
    Job("timeline", (), 0.05),
    Job("search", ("search",), 0.07, ("--seconds", "1", "--rounds", "3")),
)
"""The first compiles all kernels. The one that starts new processes, and so takes longest, comes
last: it gets the time that others have left. Where the size is below 1, as on a CPU, the small
shapes take the place of those that `--random` names."""
_SMALL = {
    "clip-vit-b32": "clip-mini",
    "llama3-8b": "llama-mini",
    "qwen2.5-vl-7b": "qwen2.5-vl-mini",
}


def command(job: Job, device: str, out: Path, size: float) -> list[str]:
    """What runs a benchmark."""
    if not job.suites:
        module = f"granalign_fast.bench.{job.name}"
        found = [sys.executable, _SAFE, "-m", module, "--device", device, "--json", str(out)]
        if job.name == "kernels" and size < 1:
            found += ["--queries", str(max(int(1550 * size), 2)), "--rounds", "3"]
        return found
    found = [sys.executable, _SAFE, "-c", _COMMAND, "bench", *job.suites, "--device", device]
    arguments = [_SMALL.get(word, word) if size < 1 else word for word in job.arguments]
    return [*found, "--size", str(size), *arguments, "--json", str(out)]


def chosen_gpu(device: str) -> tuple[str, dict[str, str]]:
    """The device as a job is to call it, and its environment.

    A job sees one GPU alone: kernels, models and peers then cannot come to different ones.

    Raises:
        GranAlignError: that is no device.
    """
    found, environment = Device.parse(device), dict(os.environ)
    if found.index is not None:
        # Of those that this process may use, if that is not all of them.
        visible = environment.get(_VISIBLE, "")
        names = visible.split(",") if visible else [str(n) for n in range(found.index + 1)]
        if found.index >= len(names):
            raise GranAlignError(f"device {device!r}: got {_VISIBLE}={visible}, expected more GPUs")
        environment[_VISIBLE] = names[found.index]
    return found.kind, environment


def run(job: Job, device: str, folder: Path, size: float, limit: float) -> str | None:
    """Run a benchmark; what went wrong, or None.

    Args:
        job: the benchmark.
        device: ``cuda`` or ``cuda:1``, or ``cpu`` to try this out.
        folder: of its file.
        size: of the workloads.
        limit: seconds after which it is ended.
    """
    device, environment = chosen_gpu(device)
    out = folder / f"{job.name}-{device}.json"
    with tempfile.TemporaryDirectory() as place:
        new = Path(place) / out.name  # an earlier run's figures would pass for this one's
        asked = command(job, device, new, size)
        print(f"+ {shlex.join(asked)}", flush=True)
        try:
            code = subprocess.run(asked, timeout=limit, check=False, env=environment).returncode
        except subprocess.TimeoutExpired:
            return f"ended after {limit:.0f} s"
        if new.is_file():  # one that failed says in it where
            shutil.move(new, out)
        elif not code:
            return "no figures"
    return f"exit code {code}" if code else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all; 1 if any of them failed."""
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(description="Run every benchmark for a GPU.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(names)}; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of JSON")
    parser.add_argument("--seconds", type=float, default=400.0, help="for all of them")
    parser.add_argument("--size", type=float, default=1.0, help="of the workloads")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.jobs) - set(names)):
        parser.error(f"got {', '.join(unknown)}, expected some of: {', '.join(names)}")
    try:
        chosen_gpu(options.device)
    except GranAlignError as error:
        parser.error(str(error))
    chosen = [job for job in JOBS if not options.jobs or job.name in options.jobs]
    options.out.mkdir(parents=True, exist_ok=True)
    left, shares = options.seconds, sum(job.share for job in chosen)
    failures: dict[str, str] = {}
    for job in chosen:
        # What others did not need is there for those that follow.
        limit, shares = left * job.share / shares, shares - job.share
        start = time.perf_counter()
        failure = run(job, options.device, options.out, options.size, limit)
        left -= time.perf_counter() - start
        if failure is not None:
            failures[job.name] = failure
    for job in chosen:
        print(f"{job.name:<12}{failures.get(job.name, 'done')}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
