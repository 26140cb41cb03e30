"""Time runners fairly: warm-up, turns, two passes, medians with intervals, judged outputs.

All runners of one task take part in one race. Each round draws one input, passes it to every runner
in a random order, and times each run after the threads of the previous runner have become idle.
A race has two passes. The difference between a runner's two medians shows noise that no interval
within one pass shows.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from granalign_fast.errors import GranAlignError

Run = Callable[[Any], Any]
"""A runner: takes the drawn input, returns an output."""
Draw = Callable[[np.random.Generator], Any]
"""Makes an input; it is not timed."""
Judge = Callable[[Any, Mapping[str, Any]], None]
"""Takes the input and the outputs by runner; raises `WrongAnswerError` for a wrong output."""
Caches = Literal["as they are", "warm", "cold"]
"""Contents of the processor's caches when the clock starts: what `Draw` left there; the input,
because the same run has just used it; or nothing of use."""

PASSES = 2
YARDSTICK = "yardstick"
"""The key under which `race` returns the times of its yardstick, a fixed piece of work."""
FEWEST_ROUNDS = 3
"""Rounds of each pass that always run, however long they take."""
_WINDOW, _LONGEST_REST = 5e-3, 0.3
"""Seconds that `settle` watches the threads for, and seconds after which it gives up. Some
Linux kernels count a thread's time only every 4 ms; OpenMP's threads may spin for 0.2 s."""


class WrongAnswerError(GranAlignError):
    """A runner's output differs from the reference, so its times mean nothing."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of one runner for each pass, in the order in which they were measured.

    Raises:
        GranAlignError: a pass has no sample.
    """

    passes: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.passes or not all(self.passes):
            raise GranAlignError(
                f"samples: got {[len(p) for p in self.passes]} in the passes, expected one or more"
            )

    @property
    def seconds(self) -> tuple[float, ...]:
        """The samples of all passes."""
        return tuple(second for one_pass in self.passes for second in one_pass)

    def quantile(self, share: float) -> float:
        """Return the seconds below which this share of the samples lies, interpolated."""
        return float(np.quantile(self.seconds, share))

    @property
    def median(self) -> float:
        """The median of all samples, in seconds."""
        return self.quantile(0.5)

    @property
    def pass_difference(self) -> float:
        """Difference between the medians of the passes, as a share of the lower one."""
        medians = [float(np.median(one_pass)) for one_pass in self.passes]
        # Samples of `difference` may have a negative median in one pass.
        least = min(medians) if min(medians) > 0 else abs(self.median)
        return (max(medians) - min(medians)) / least if least else 0.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the bounds of the median, in seconds; see `median_interval`."""
        return median_interval(self.seconds, confidence)

    @property
    def noise(self) -> float:
        """Noise as a share of the median: the larger of `pass_difference` and half the interval."""
        low, high = self.interval()
        return max(
            self.pass_difference, (high - low) / 2 / abs(self.median) if self.median else 0.0
        )


def median_interval(seconds: tuple[float, ...], confidence: float = 0.95) -> tuple[float, float]:
    """Return a confidence interval of the median, which assumes nothing about the distribution.

    Its ends are two of the samples. The number of samples below the true median is binomial: the
    interval leaves out as many samples at either end as that allows. Fewer than six samples cannot
    give 95%, so their range is returned.

    >>> median_interval((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0))
    (2.0, 9.0)
    """
    ordered = sorted(seconds)
    count = len(ordered)
    # Find the largest `index` for which at most `index` samples below the median are too unlikely.
    index, tail = -1, 1 / 2**count
    while 2 * tail <= 1 - confidence:
        index += 1
        tail += math.comb(count, index + 1) / 2**count
    index = max(index, 0)
    return ordered[index], ordered[count - 1 - index]


class Clock(Protocol):
    """Times one call."""

    def time(self, run: Run, inputs: Any) -> tuple[float, Any]:
        """Return the seconds of ``run(inputs)``, and its output."""
        ...


class HostClock:
    """Times a call with the host's clock, `time.perf_counter_ns`."""

    def time(self, run: Run, inputs: Any) -> tuple[float, Any]:
        """Return the seconds of ``run(inputs)``, and its output."""
        start = time.perf_counter_ns()
        output = run(inputs)
        return (time.perf_counter_ns() - start) / 1e9, output


class CudaClock:
    """Times a call by events on CuPy's current stream: the device's own time.

    A kernel keeps the stream busy for `_HEAD_START` seconds while the host queues the run, so that
    the host's time is not counted. It is counted where a run waits for the device, or where the
    host needs longer than that.
    """

    def time(self, run: Run, inputs: Any) -> tuple[float, Any]:
        """Return the seconds of ``run(inputs)`` on the device, and its output."""
        import cupy

        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        # This kernel only reads the clock: a copy would evict the timed run's data from the caches.
        _wait_kernel()((1,), (1,), (np.int64(_HEAD_START * 1e9),))
        start.record()
        output = run(inputs)
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end)) / 1e3, output


_HEAD_START = 2e-3
"""Seconds that the device is kept busy: more than the host needs to queue a run of kernels."""
_WAIT = r"""
extern "C" __global__ void wait(long long nanoseconds) {
  long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
}
"""


@functools.cache
def _wait_kernel() -> Any:
    import cupy

    return cupy.RawKernel(_WAIT, "wait")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Length of a race.

    Attributes:
        most: largest number of rounds of each pass.
        seconds: time after which a pass starts no further round, except its first
            `FEWEST_ROUNDS`.
        flush: empties the caches; needed for cold ones.
    """

    most: int = 15
    seconds: float = 8.0
    flush: Callable[[], object] | None = None


def settle() -> None:
    """Wait until no other thread of this process computes.

    Threads of a pool busy-wait for a while after their work is done, ONNX Runtime's by default for
    40 ms. They would take cores from the next runner.
    """
    end = time.perf_counter() + _LONGEST_REST
    busy = True
    while busy and time.perf_counter() < end:
        start, others = time.perf_counter(), time.process_time() - time.thread_time()
        while time.perf_counter() - start < _WINDOW:
            pass  # a sleep would leave the core slow to wake
        busy = time.process_time() - time.thread_time() - others > 0.1 * _WINDOW


def race(
    runners: Mapping[str, Run],
    draw: Draw,
    judge: Judge,
    *,
    rounds: Rounds,
    caches: Mapping[str, Caches] | None = None,
    clock: Clock | None = None,
    yardstick: Run | None = None,
    seed: int = 0,
) -> dict[str, Samples]:
    """Time runners that do the same work, in turn, on a new input for each round.

    The outputs of the warm-up and of each pass's last round are judged. So the judge sees outputs
    of the timed run, for inputs that no runner has seen before.

    Args:
        runners: the runners by name.
        draw: makes a round's input.
        judge: compares the outputs with a reference.
        rounds: number of rounds, time limit, and how to empty the caches.
        caches: state of the caches when a runner's clock starts, by the runner's name; other
            runners find the caches as they are.
        clock: measures a run; the host's clock by default.
        yardstick: a fixed piece of work, timed once a round. It tells a slower machine from a
            slower runner.
        seed: seed of all inputs and orders.

    Returns:
        The samples by runner, and those of the yardstick under `YARDSTICK`.

    Raises:
        WrongAnswerError: an output is wrong.
    """
    clock, caches_of = clock or HostClock(), caches or {}
    rng = np.random.default_rng(seed)
    names = list(runners)
    inputs = draw(rng)
    # Warm up: compilation, allocations and lazy loading happen here. The outputs are judged.
    judge(inputs, {name: runners[name](inputs) for name in names})
    timed = names + [YARDSTICK] * (yardstick is not None)
    passes: dict[str, list[tuple[float, ...]]] = {name: [] for name in timed}
    for _ in range(PASSES):
        seconds_of: dict[str, list[float]] = {name: [] for name in timed}
        end = time.perf_counter() + rounds.seconds
        done = 0
        while done < rounds.most and (done < FEWEST_ROUNDS or time.perf_counter() < end):
            inputs = draw(rng)
            outputs: dict[str, Any] = {}
            if yardstick is not None:
                settle()
                seconds_of[YARDSTICK].append(clock.time(yardstick, None)[0])
            # A new order each round, so that no runner always follows the same other one.
            for name in rng.permutation(names).tolist():
                settle()
                if caches_of.get(name) == "warm":
                    runners[name](inputs)
                elif caches_of.get(name) == "cold" and rounds.flush is not None:
                    rounds.flush()
                seconds, outputs[name] = clock.time(runners[name], inputs)
                seconds_of[name].append(seconds)
            done += 1
        judge(inputs, outputs)
        for name in timed:
            passes[name].append(tuple(seconds_of[name]))
    return {name: Samples(tuple(passes[name])) for name in timed}


def difference(longer: Samples, shorter: Samples, count: int) -> Samples:
    """Return the time of one repetition, where `longer` does `count` more than `shorter`.

    Rounds are paired, so both samples must come from one race. Noise can make a difference
    negative.
    """
    return Samples(
        tuple(
            tuple((a - b) / count for a, b in zip(longer_pass, fewer, strict=True))
            for longer_pass, fewer in zip(longer.passes, shorter.passes, strict=True)
        )
    )


def accept_any(inputs: Any, outputs: Mapping[str, Any]) -> None:
    """Accept any output: a judge for work that has no output to check, such as a copy."""


def require(right: bool, complaint: str) -> None:
    """Raise unless an output is right.

    Raises:
        WrongAnswerError: `right` is false; the message is `complaint`.
    """
    if not right:
        raise WrongAnswerError(f"{complaint}: the times mean nothing")


def event_seconds(run: Callable[[], object], rounds: int, *, warm: bool = False) -> float:
    """Return the median seconds by CUDA events on the current stream, after three warm-up rounds.

    The L2 cache is emptied before each run. With `warm`, one untimed run follows that, so the cache
    holds what this run left there. Emptying the cache takes the GPU so long that the host has
    launched the whole run before the clock starts: the host's time does not count.
    """
    import cupy

    flush = cupy.empty(1 << 28, cupy.uint8)  # several times the L2 cache
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    times: list[float] = []
    for _ in range(3 + rounds):
        for _ in range(8):
            flush.fill(0)
        if warm:
            run()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return float(np.median(times[3:]))
