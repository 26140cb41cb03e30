"""Run suites one after another, and gather their figures.

The only use of `suites` in this package: `run_suites` imports each module by its name.
"""

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
    """Settings of a run: what is measured, and how thoroughly.

    Attributes:
        preset: name of the retriever's preset.
        models: a folder of exported models; None for the miniatures or random models.
        random: names of `random_models.SHAPES`, which replace the models that a suite would choose.
        device: ``cpu`` or ``cuda``.
        rounds: largest number of rounds of each of a race's two passes.
        seconds: time after which a pass starts no more rounds.
        size: factor of the workloads' sizes; figures are published for 1, tests take less.
        seed: seed of all inputs.
        library: that the suite ``service`` serves; None for one that is made.
        queries: a file of the queries that it is asked; None for ones that are made.
        url: of a service that runs, which is measured in the place of one that is started.
        overload_seconds: how long it is asked more than it can do; None for `seconds`.
    """

    preset: str = "tuned"
    models: Path | None = None
    random: tuple[str, ...] = ()
    device: str = "cpu"
    rounds: int = 12
    seconds: float = 3.0
    size: float = 1.0
    seed: int = 0
    library: Path | None = None
    queries: Path | None = None
    url: str | None = None
    overload_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.rounds < 3 or self.seconds < 0 or not 0 < self.size <= 16:
            raise GranAlignError(
                f"rounds, seconds, size: got {self.rounds}, {self.seconds}, {self.size}; expected "
                f"at least 3, at least 0, and above 0 up to 16"
            )

    def scaled(self, count: int, least: int = 1) -> int:
        """Return `count` times `size`, rounded, and at least `least`."""
        return max(round(count * self.size), least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A participant of a race.

    Attributes:
        name: ``ours``, a variant such as ``ours, int8``, or a peer's name.
        run: takes the drawn input, returns an output.
        items: units of work in one run, if that differs from the race's.
        work: bytes and operations of one run; None if they are not counted.
        peer: whether it is other people's software.
        caches: state of the processor's caches when the clock starts.
    """

    name: str = OURS
    run: Run
    items: float | None = None
    work: Work | None = None
    peer: bool = False
    caches: Caches = "as they are"

    @property
    def key(self) -> str:
        """Its name, with the state of the caches if set: identifies a runner in a race."""
        return self.name if self.caches == "as they are" else f"{self.name}, {self.caches}"


@dataclass
class Bench:
    """The context of a suite: settings, limits, a scratch folder, and the report."""

    settings: Settings
    limits: Limits
    folder: Path
    report: Report
    suite: str = ""
    say: Say = lambda line: None
    shared: dict[str, Any] = field(default_factory=dict)
    """Objects that suites share, such as models, which take long to load."""
    latest_yardstick: float | None = None
    """Median seconds of the yardstick in the latest race."""

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return Device.parse(self.settings.device).kind != "cpu"

    @property
    def clock(self) -> Clock:
        """A clock of the device's own time."""
        return CudaClock() if self.on_gpu else HostClock()

    @cached_property
    def yardstick(self) -> Yardstick:
        """The fixed piece of work that is timed in every race."""
        return Yardstick(self.to_device, 1 if self.on_gpu else cpu_threads(None))

    @property
    def run_of(self) -> SuiteRun:
        """The report's entry of the running suite."""
        return self.report.suites[self.suite]

    def to_device(self, array: Any) -> Any:
        """Move an array to the device."""
        if not self.on_gpu:
            return array
        import cupy

        return cupy.asarray(array)

    def to_host(self, array: Any) -> Any:
        """Move an array to the host, as a NumPy array."""
        return array if isinstance(array, np.ndarray) else array.get()

    def note(self, text: str) -> None:
        """Add a note for the reader of this suite's figures, once."""
        if text not in self.run_of.notes:
            self.run_of.notes.append(text)

    def constant(self, name: str, value: float) -> None:
        """Record a constant, such as the cost estimate uses."""
        self.run_of.constants[name] = float(value)

    def breakdown(self, name: str, stages: Mapping[str, float]) -> None:
        """Record how the seconds of one piece of work divide into stages."""
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
        """Time all runners, and record each unless `record` is false.

        A peer that fails drops out with a note; a wrong output ends the suite.

        Args:
            task: name of the work.
            runners: the participants.
            draw: makes a round's input.
            judge: compares the outputs, by the runners' `key`, with a reference.
            unit: name of a unit of work.
            items: units of work in one run.
            clock: measures a run; the device's own clock by default.
            parameters: sizes of the workload, for the record.
            rounds: largest number of rounds of a pass, if less than the settings'.
            seconds: time limit of a pass, if less than the settings'.
            record: whether to add records to the report.

        Returns:
            The samples by the runners' `key`.

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
        runners = self._working(runners, draw)
        samples = race(
            {runner.key: runner.run for runner in runners},
            draw,
            judge,
            rounds=limited,
            caches={runner.key: runner.caches for runner in runners},
            clock=clock or self.clock,
            yardstick=self.yardstick,
            seed=settings.seed,
        )
        self.latest_yardstick = samples.pop(YARDSTICK).median
        for runner in runners if record else ():
            cache_state = {} if runner.caches == "as they are" else {"caches": runner.caches}
            self.record(
                samples[runner.key],
                task,
                runner=runner,
                unit=unit,
                items=runner.items or items,
                parameters={**(parameters or {}), **cache_state},
            )
        return samples

    def _working(self, runners: Sequence[Runner], draw: Draw) -> list[Runner]:
        """Return our runners, and the peers whose first run succeeds.

        A failure of other people's software must not end the run.
        """
        working = []
        for runner in runners:
            try:
                if runner.peer:
                    runner.run(draw(np.random.default_rng(self.settings.seed)))
            except Exception as error:  # other software may raise anything
                self.note(f"{runner.name} is installed but failed: {one_line(error)}")
                continue
            working.append(runner)
        return working

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
        """Add a record of samples to the report; `runner` replaces `name`, `work` and `peer`."""
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
                yardstick=self.latest_yardstick,
            )
        )

    def _flush(self) -> None:
        """Empty the caches: write twice as much as the largest one holds."""
        buffer = self.shared.get("flush")
        if buffer is None:
            count = 2 * machine.last_cache_bytes(self.settings.device) // 8
            buffer = self.shared["flush"] = self.to_device(np.zeros(count))
        buffer += 1


def run_suites(
    names: Iterable[str],
    settings: Settings,
    *,
    say: Say = lambda line: None,
    limits: Limits | None = None,
) -> Report:
    """Run suites, and return the report of all.

    A suite fails if an answer is wrong, a model is missing or a library raises an error. The report
    says so, and the other suites still run.

    Args:
        names: names of `SUITES`; all if empty.
        settings: what is measured, and how thoroughly.
        say: is called with the name of each measurement as it begins.
        limits: the device's limits, if they are known; otherwise they are measured.

    Raises:
        GranAlignError: a suite, preset or device does not exist.
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
    paths = {name: getattr(settings, name) for name in ("models", "library", "queries")}
    report = Report(
        machine.facts(settings.device),
        asdict(settings) | {name: path and path.name for name, path in paths.items()},
        asdict(before),
        absent=absent(),
    )
    report.settings["random"] = list(settings.random)
    with tempfile.TemporaryDirectory(prefix="granalign-bench-") as temporary:
        bench = Bench(settings, before, Path(temporary), report, say=say)
        for name in chosen:
            with _measured(bench, name):
                import_module(f"granalign_fast.bench.suites.{name}").run(bench)
    return report


@contextmanager
def _measured(bench: Bench, name: str) -> Iterator[None]:
    """Record a suite's seconds and memory, and turn an error into its recorded failure."""
    bench.suite = name
    suite_run = bench.report.suites[name] = SuiteRun()
    start, memory = time.perf_counter(), machine.PeakMemory(bench.settings.device)
    try:
        yield
    except WrongAnswerError as error:
        suite_run.failure = str(error)
    except MissingExtraError as error:
        suite_run.notes.append(f"not run: {error}")
    except GranAlignError as error:
        suite_run.failure = str(error)
    except Exception as error:  # a GPU's driver or a library may raise anything
        suite_run.failure = f"{type(error).__name__}: {one_line(error)}"
    suite_run.seconds = time.perf_counter() - start
    suite_run.host_bytes, suite_run.device_bytes = memory.host_bytes(), memory.device_bytes()
