"""Suites, one after another: what they are given, and how their figures are gathered."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.bench.suites import SUITES
from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.models.encoder import cpu_threads
from granalign_fast.runtime.device import Device

from . import machine
from .limits import Limits, Work, Yardstick, measure_limits
from .records import OURS, Breakdown, Record, Report, SuiteRun
from .timing import (
    YARDSTICK,
    Caches,
    Clock,
    CudaClock,
    Draw,
    HostClock,
    Judge,
    Rounds,
    Run,
    Samples,
    WrongAnswerError,
    race,
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured, and how thoroughly.

    Attributes:
        preset: of the retriever.
        models: a folder of exported models; None for random ones.
        random: names of `random_models.SHAPES`, in the place of those that a suite would choose.
        device: ``cpu`` or ``cuda``.
        rounds: of each of a race's two passes, at most.
        seconds: after which a pass starts no more rounds.
        size: of the workloads, 1 being what the figures are published for; a test takes less.
        seed: of all inputs.
    """

    preset: str = "tuned"
    models: Path | None = None
    random: tuple[str, ...] = ()
    device: str = "cpu"
    rounds: int = 12
    seconds: float = 3.0
    size: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 3 or self.seconds < 0 or not 0 < self.size <= 16:
            raise GranAlignError(
                f"rounds, seconds, size: got {self.rounds}, {self.seconds}, {self.size}; expected "
                f"at least 3, at least 0, and above 0 up to 16"
            )

    def scaled(self, count: int, least: int = 1) -> int:
        """A count of things, as large as `size` makes it."""
        return max(round(count * self.size), least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """One that takes part in a race.

    Attributes:
        name: ``ours``, a variant such as ``ours, int8``, or a peer's name.
        run: what it does with the drawn input.
        items: units of work in one run, where that differs from the race's own.
        work: of one run; None where no limit is known.
        peer: whether it is another's code.
        caches: what they hold when its clock starts.
    """

    name: str = OURS
    run: Run
    items: float | None = None
    work: Work | None = None
    peer: bool = False
    caches: Caches = "as they are"

    @property
    def key(self) -> str:
        """Its name, or its name and caches: one runner may take part with several."""
        return self.name if self.caches == "as they are" else f"{self.name}, {self.caches}"


@dataclass
class Bench:
    """What a suite is given: settings, the machine's limits, a folder, and a place for figures."""

    settings: Settings
    limits: Limits
    folder: Path
    report: Report
    suite: str = ""
    say: Say = lambda line: None
    kept: dict[str, Any] = field(default_factory=dict)
    """What suites share, such as models that took long to make."""
    beside: float | None = None
    """Seconds that the yardstick took beside the latest race."""

    @property
    def on_gpu(self) -> bool:
        """Whether arrays go to a GPU."""
        return Device.parse(self.settings.device).kind != "cpu"

    @property
    def clock(self) -> Clock:
        """Of the device's own time."""
        return CudaClock() if self.on_gpu else HostClock()

    @cached_property
    def yardstick(self) -> Yardstick:
        """The fixed work that is timed beside everything."""
        return Yardstick(self.to_device, 1 if self.on_gpu else cpu_threads(None))

    @property
    def run_of(self) -> SuiteRun:
        """The entry of the suite that runs."""
        return self.report.suites[self.suite]

    def to_device(self, array: Any) -> Any:
        """The array where the kernels are to run."""
        if not self.on_gpu:
            return array
        import cupy

        return cupy.asarray(array)

    def to_host(self, array: Any) -> Any:
        """The array where NumPy can read it."""
        return array if isinstance(array, np.ndarray) else array.get()

    def note(self, text: str) -> None:
        """Something that a reader of this suite's figures must know."""
        if text not in self.run_of.notes:
            self.run_of.notes.append(text)

    def constant(self, name: str, value: float) -> None:
        """A number that the cost model is made of."""
        self.run_of.constants[name] = float(value)

    def breakdown(self, name: str, stages: Mapping[str, float]) -> None:
        """Where the seconds of one thing went."""
        self.report.breakdowns.append(Breakdown(self.suite, name, dict(stages)))

    def race(
        self,
        task: str,
        runners: Sequence[Runner],
        draw: Draw,
        judge: Judge,
        *,
        unit: str = "call",
        items: float = 1,
        clock: Clock | None = None,
        parameters: Mapping[str, Any] | None = None,
        rounds: int | None = None,
        seconds: float | None = None,
        record: bool = True,
    ) -> dict[str, Samples]:
        """Time all runners, and keep a record of each unless `record` is false.

        Outputs and samples are by the runners' `key`.
        A peer that fails drops out with a note; an output that is wrong ends the suite.

        Raises:
            WrongAnswerError: an output is not what the judge expects.
        """
        settings = self.settings
        self.say(f"{self.suite}: {task}")
        limited = Rounds(
            most=min(rounds or settings.rounds, settings.rounds),
            seconds=settings.seconds if seconds is None else min(seconds, settings.seconds),
            flush=self._flush,
        )
        runners = self._able(runners, draw)
        found = race(
            {runner.key: runner.run for runner in runners},
            draw,
            judge,
            rounds=limited,
            caches={runner.key: runner.caches for runner in runners},
            clock=clock or self.clock,
            yardstick=self.yardstick,
            seed=settings.seed,
        )
        self.beside = found.pop(YARDSTICK).median
        for runner in runners if record else ():
            held = {} if runner.caches == "as they are" else {"caches": runner.caches}
            self.record(
                found[runner.key],
                task,
                runner=runner,
                unit=unit,
                items=runner.items or items,
                parameters={**(parameters or {}), **held},
            )
        return found

    def _able(self, runners: Sequence[Runner], draw: Draw) -> list[Runner]:
        """Those that do not fail; a run is not lost to somebody else's package."""
        able = []
        for runner in runners:
            try:
                if runner.peer:
                    runner.run(draw(np.random.default_rng(self.settings.seed)))
            except Exception as error:  # whatever a package of another's raises
                self.note(f"{runner.name} is installed but failed: {one_line(error)}")
                continue
            able.append(runner)
        return able

    def record(
        self,
        samples: Samples,
        task: str,
        *,
        runner: Runner | None = None,
        name: str = OURS,
        unit: str = "call",
        items: float = 1,
        work: Work | None = None,
        peer: bool = False,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep what was measured."""
        if runner is not None:
            name, work, peer = runner.name, runner.work, runner.peer
        limit, bound = self.limits.seconds(work) if work else (None, None)
        self.report.records.append(
            Record.of(
                samples,
                suite=self.suite,
                task=task,
                runner=name,
                peer=peer,
                unit=unit,
                items=items,
                limit=limit,
                bound=bound,
                parameters=dict(parameters or {}),
                yardstick=self.beside,
            )
        )

    def _flush(self) -> None:
        """Write more than the largest cache holds."""
        buffer = self.kept.get("flush")
        if buffer is None:
            count = 2 * machine.last_cache_bytes(self.settings.device) // 8
            buffer = self.kept["flush"] = self.to_device(np.zeros(count))
        buffer += 1


def run_suites(
    names: Iterable[str],
    settings: Settings,
    *,
    say: Say = lambda line: None,
    limits: Limits | None = None,
) -> Report:
    """Run suites, and gather everything that they find.

    A suite that fails, because an answer is wrong, a model is missing or a library raises, is
    reported as failed and does not keep the others from running.

    Args:
        names: of `SUITES`; none for all.
        settings: what is measured, and how thoroughly.
        say: is told what begins.
        limits: of the device, where they are known; measured otherwise.

    Raises:
        GranAlignError: there is no such suite, preset or device.
    """
    from granalign_fast.bench.peers.runtimes import absent
    from granalign_fast.config import preset

    chosen = list(dict.fromkeys(names)) or list(SUITES)
    for name in chosen:
        if name not in SUITES:
            raise GranAlignError(f"suite: got {name!r}, expected some of: {', '.join(SUITES)}")
    preset(settings.preset)
    device = Device.parse(settings.device)
    if device.kind != "cpu":
        try:
            import cupy
        except ImportError:
            raise MissingExtraError("measuring on a GPU", "cuda") from None
        cupy.cuda.Device(device.index or 0).use()
    say("the machine's limits")
    before = limits or measure_limits(settings.device, seconds=settings.seconds)
    report = Report(
        machine.facts(settings.device),
        asdict(settings) | {"models": None if settings.models is None else settings.models.name},
        asdict(before),
        absent=absent(),
    )
    report.settings["random"] = list(settings.random)
    with tempfile.TemporaryDirectory(prefix="granalign-bench-") as place:
        bench = Bench(settings, before, Path(place), report, say=say)
        for name in chosen:
            with _measured(bench, name):
                import_module(f"granalign_fast.bench.suites.{name}").run(bench)
    return report


@contextmanager
def _measured(bench: Bench, name: str) -> Iterator[None]:
    """A suite's seconds and memory, and its failure instead of an error."""
    bench.suite = name
    own = bench.report.suites[name] = SuiteRun()
    start, memory = time.perf_counter(), machine.PeakMemory(bench.settings.device)
    try:
        yield
    except WrongAnswerError as error:
        own.failure = str(error)
    except MissingExtraError as error:
        own.notes.append(f"not run: {error}")
    except GranAlignError as error:
        own.failure = str(error)
    except Exception as error:  # whatever a GPU or a library makes of a workload
        own.failure = f"{type(error).__name__}: {one_line(error)}"
    own.seconds = time.perf_counter() - start
    own.host_bytes, own.device_bytes = memory.host_bytes(), memory.device_bytes()
