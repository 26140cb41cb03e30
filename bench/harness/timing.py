"""Honest clocks: warm-up, turns, two passes, medians with intervals, and outputs that are judged.

Everything that does the same work runs in the same race: each round draws one input, gives it to
every runner in an order of its own, and times each, once the threads of whoever ran before have
come to rest. The race is run twice over, and how far the two medians of one runner lie apart is the
noise that no interval within one pass shows.
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
"""One runner: the drawn input to an output."""
Draw = Callable[[np.random.Generator], Any]
"""Makes an input; nobody times it."""
Judge = Callable[[Any, Mapping[str, Any]], None]
"""Gets the input and the output of every runner; raises `WrongAnswerError`."""
Caches = Literal["as they are", "warm", "cold"]
"""What the processor's caches hold when a clock starts: what drawing left there; the input, because
the same run has just been made with it; or nothing of use."""

PASSES = 2
YARDSTICK = "yardstick"
"""Under this name `race` returns the times of a fixed piece of work, where it is given one."""
FEWEST_ROUNDS = 3
"""Of each pass, however long they take."""
_WINDOW, _LONGEST_REST = 5e-3, 0.3
"""Seconds. Some kernels count a thread's time only every 4 ms; OpenMP's may spin for 0.2 s."""


class WrongAnswerError(GranAlignError):
    """A runner's output is not what the reference says: its times mean nothing."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of one runner, in the order in which they were taken, for each of the passes.

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
        """All of them."""
        return tuple(second for own in self.passes for second in own)

    def quantile(self, share: float) -> float:
        """Seconds that this share of the samples stay below, interpolated."""
        return float(np.quantile(self.seconds, share))

    @property
    def median(self) -> float:
        """The half of them are faster."""
        return self.quantile(0.5)

    @property
    def again(self) -> float:
        """How far the medians of the passes lie apart, as a share of the lower one."""
        medians = [float(np.median(own)) for own in self.passes]
        # A difference of times may be negative in one of them.
        least = min(medians) if min(medians) > 0 else abs(self.median)
        return (max(medians) - min(medians)) / least if least else 0.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Bounds of the median, in seconds; see `median_interval`."""
        return median_interval(self.seconds, confidence)

    @property
    def noise(self) -> float:
        """The larger of `again` and half the interval's width, as a share of the median."""
        low, high = self.interval()
        return max(self.again, (high - low) / 2 / abs(self.median) if self.median else 0.0)


def median_interval(seconds: tuple[float, ...], confidence: float = 0.95) -> tuple[float, float]:
    """Between two of the samples, so that nothing need be known of how they are distributed.

    The number of samples below the true median is binomial: the interval leaves out as many at
    either end as that allows. Fewer than six samples cannot give 95%: their range is returned.

    >>> median_interval((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0))
    (2.0, 9.0)
    """
    ordered = sorted(seconds)
    count = len(ordered)
    # Of `place` the largest for which as many samples or fewer below the median are too unlikely.
    place, tail = -1, 1 / 2**count
    while 2 * tail <= 1 - confidence:
        place += 1
        tail += math.comb(count, place + 1) / 2**count
    place = max(place, 0)
    return ordered[place], ordered[count - 1 - place]


class Clock(Protocol):
    """Times one call."""

    def time(self, run: Run, given: Any) -> tuple[float, Any]:
        """Seconds of ``run(given)``, and its output."""
        ...


class HostClock:
    """`time.perf_counter_ns`."""

    def time(self, run: Run, given: Any) -> tuple[float, Any]:
        """Seconds of ``run(given)``, and its output."""
        start = time.perf_counter_ns()
        output = run(given)
        return (time.perf_counter_ns() - start) / 1e9, output


class CudaClock:
    """Events on CuPy's current stream: the device's own time.

    The stream is kept busy until the host has queued all of the run, so that what the host takes
    for that is not in it; but for a run that waits for the device, or takes the host over
    `_HEAD_START`.
    """

    def time(self, run: Run, given: Any) -> tuple[float, Any]:
        """Seconds of ``run(given)`` on the device, and its output."""
        import cupy

        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        # A kernel that only looks at the clock: a copy would take the caches from who is timed.
        _waiting()((1,), (1,), (np.int64(_HEAD_START * 1e9),))
        start.record()
        output = run(given)
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end)) / 1e3, output


_HEAD_START = 2e-3
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
def _waiting() -> Any:
    import cupy

    return cupy.RawKernel(_WAIT, "wait")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How long a race goes on.

    Attributes:
        most: rounds of each pass.
        seconds: after which a pass starts no further round, its first `FEWEST_ROUNDS` aside.
        flush: empties the caches; needed for cold ones.
    """

    most: int = 15
    seconds: float = 8.0
    flush: Callable[[], object] | None = None


def settle() -> None:
    """Wait until no other thread of this process computes.

    Thread pools turn in circles for a while after their work is done, ONNX Runtime's by default for
    40 ms: whoever is timed next would have a core less because of who went before.
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
    """Time runners that do the same work, in turn, on inputs that are drawn anew for each round.

    The outputs of the warm-up and of each pass's last round are judged: in the same run, and of
    inputs that no runner has seen before.

    Args:
        runners: by name.
        draw: makes a round's input.
        judge: compares the outputs with a reference.
        rounds: how many.
        caches: what they hold when a runner's clock starts, by its name; as they are for others.
        clock: the host's by default.
        yardstick: always the same work, timed once a round: it tells a machine that has become
            slower from a runner that has.
        seed: of all inputs and orders.

    Raises:
        WrongAnswerError: an output is wrong.
    """
    clock, held = clock or HostClock(), caches or {}
    rng = np.random.default_rng(seed)
    names = list(runners)
    given = draw(rng)
    judge(given, {name: runners[name](given) for name in names})
    timed = names + [YARDSTICK] * (yardstick is not None)
    passes: dict[str, list[tuple[float, ...]]] = {name: [] for name in timed}
    for _ in range(PASSES):
        taken: dict[str, list[float]] = {name: [] for name in timed}
        end = time.perf_counter() + rounds.seconds
        done = 0
        while done < rounds.most and (done < FEWEST_ROUNDS or time.perf_counter() < end):
            given = draw(rng)
            outputs: dict[str, Any] = {}
            if yardstick is not None:
                settle()
                taken[YARDSTICK].append(clock.time(yardstick, None)[0])
            for name in rng.permutation(names).tolist():
                settle()
                if held.get(name) == "warm":
                    runners[name](given)
                elif held.get(name) == "cold" and rounds.flush is not None:
                    rounds.flush()
                seconds, outputs[name] = clock.time(runners[name], given)
                taken[name].append(seconds)
            done += 1
        judge(given, outputs)
        for name in timed:
            passes[name].append(tuple(taken[name]))
    return {name: Samples(tuple(passes[name])) for name in timed}


def difference(longer: Samples, shorter: Samples, count: int) -> Samples:
    """What one of `count` repetitions takes that the longer runs have more than the shorter ones.

    Rounds are paired: both are to be of one race. Noise can make a difference negative.
    """
    return Samples(
        tuple(
            tuple((a - b) / count for a, b in zip(more, fewer, strict=True))
            for more, fewer in zip(longer.passes, shorter.passes, strict=True)
        )
    )


def nothing_to_judge(given: Any, outputs: Mapping[str, Any]) -> None:
    """For work without an output of its own, such as a copy."""


def require(right: bool, complaint: str) -> None:
    """Raise unless an output is right.

    Raises:
        WrongAnswerError: it is not; the message is `complaint`.
    """
    if not right:
        raise WrongAnswerError(f"{complaint}: the times mean nothing")


def event_seconds(run: Callable[[], object], rounds: int, *, warm: bool = False) -> float:
    """The median by CUDA events on the current stream, after three rounds to warm up.

    The L2 cache is cold, or holds what a call just before has left there. Emptying it takes the GPU
    so long that the host has launched everything before the clock starts: what it takes for that
    does not count.
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
