"""Run every benchmark for a GPU: ``python -m granalign_fast.bench.commands.gpu``.

They run one after another. Each has its own process, time limit and JSON file, so a failure or a
broken state of the GPU does not affect the others. The exit code is 1 if any failed.
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
"""Python's option that keeps the current folder out of the module search path."""


@dataclass(frozen=True, slots=True)
class Job:
    """A benchmark.

    Attributes:
        name: first part of its file's name; the device follows.
        suites: suites of ``granalign bench``; empty for the module `name` of `bench.commands`.
        share: share of the total time that it may take.
        arguments: further arguments of ``granalign bench``.
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
"""All benchmarks, in order. The first compiles all kernels. `search` starts new processes and takes
longest, so it comes last: it gets the time that the others did not use."""
_SMALL = {
    "clip-vit-b32": "clip-mini",
    "llama3-8b": "llama-mini",
    "qwen2.5-vl-7b": "qwen2.5-vl-mini",
}
"""Shapes that replace those of `--random` if the size is below 1, as on a CPU."""


def command(job: Job, device: str, out: Path, size: float) -> list[str]:
    """Return the command line of a benchmark."""
    if not job.suites:
        module = f"granalign_fast.bench.commands.{job.name}"
        words = [sys.executable, _SAFE, "-m", module, "--device", device, "--json", str(out)]
        if job.name == "kernels" and size < 1:
            words += ["--queries", str(max(int(1550 * size), 2)), "--rounds", "3"]
        return words
    words = [sys.executable, _SAFE, "-c", _COMMAND, "bench", *job.suites, "--device", device]
    arguments = [_SMALL.get(word, word) if size < 1 else word for word in job.arguments]
    return [*words, "--size", str(size), *arguments, "--json", str(out)]


def chosen_gpu(device: str) -> tuple[str, dict[str, str]]:
    """Return the name of the device in a job's process, and the environment of that process.

    A job sees only one GPU, so kernels, models and peers cannot use different ones.

    Raises:
        GranAlignError: there is no such device.
    """
    parsed, environment = Device.parse(device), dict(os.environ)
    if parsed.index is not None:
        # Count only the GPUs that this process may use.
        visible = environment.get(_VISIBLE, "")
        names = visible.split(",") if visible else [str(n) for n in range(parsed.index + 1)]
        if parsed.index >= len(names):
            raise GranAlignError(f"device {device!r}: got {_VISIBLE}={visible}, expected more GPUs")
        environment[_VISIBLE] = names[parsed.index]
    return parsed.kind, environment


def run(job: Job, device: str, folder: Path, size: float, limit: float) -> str | None:
    """Run a benchmark; return what went wrong, or None.

    Args:
        job: the benchmark.
        device: ``cuda`` or ``cuda:1``; ``cpu`` for a trial run.
        folder: folder of its file.
        size: factor of the workloads' sizes.
        limit: seconds after which it is ended.
    """
    device, environment = chosen_gpu(device)
    out = folder / f"{job.name}-{device}.json"
    with tempfile.TemporaryDirectory() as temporary:
        # Write to a new file: an earlier run's figures must not pass for this one's.
        new = Path(temporary) / out.name
        arguments = command(job, device, new, size)
        print(f"+ {shlex.join(arguments)}", flush=True)
        try:
            code = subprocess.run(arguments, timeout=limit, check=False, env=environment).returncode
        except subprocess.TimeoutExpired:
            return f"ended after {limit:.0f} s"
        if new.is_file():  # a failed run may also have written its figures so far
            shutil.move(new, out)
        elif not code:
            return "no figures"
    return f"exit code {code}" if code else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all benchmarks, or those named; return 1 if any failed."""
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(description="Run every benchmark for a GPU.")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"{', '.join(names)}; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of JSON")
    parser.add_argument(
        "--seconds", type=float, default=400.0, help="time limit of all jobs together"
    )
    parser.add_argument("--size", type=float, default=1.0, help="factor of the workloads' sizes")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.jobs) - set(names)):
        parser.error(f"got {', '.join(unknown)}, expected some of: {', '.join(names)}")
    try:
        chosen_gpu(options.device)
    except GranAlignError as error:
        parser.error(str(error))
    chosen = [job for job in JOBS if not options.jobs or job.name in options.jobs]
    options.out.mkdir(parents=True, exist_ok=True)
    seconds_left, shares = options.seconds, sum(job.share for job in chosen)
    failures: dict[str, str] = {}
    for job in chosen:
        # Time that earlier jobs did not use goes to later ones.
        limit, shares = seconds_left * job.share / shares, shares - job.share
        start = time.perf_counter()
        failure = run(job, options.device, options.out, options.size, limit)
        seconds_left -= time.perf_counter() - start
        if failure is not None:
            failures[job.name] = failure
    for job in chosen:
        print(f"{job.name:<12}{failures.get(job.name, 'done')}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
