"""What a run of the suites leaves behind: records, JSON, and two of them compared."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json, replacing

from .timing import Samples

FORMAT_VERSION = 1
OURS = "ours"
"""The runner that ratios are taken to."""
LEAST_DIFFERENCE = 0.05
"""Shares below this are never called a difference: the placement of memory alone makes as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The time of one runner at one task.

    Attributes:
        suite: that it belongs to.
        task: what was done; runners of one task do the same work.
        runner: who did it; ``ours``, ``ours, int8`` or a peer's name.
        peer: whether it is another's code.
        unit: of which `items` were done in one sample, such as ``query``.
        median: seconds of a sample; `p90`, `p99` and the 95% interval `low` to `high` likewise.
        noise: share by which a median may change without a reason; see `timing.Samples`.
        samples: how many there were.
        limit: seconds that the device needs at its measured best; None where that has no meaning.
        bound: what that limit comes from, ``bytes`` or ``operations``.
        parameters: sizes of the workload.
        yardstick: seconds that a fixed piece of work took beside it.
    """

    suite: str
    task: str
    runner: str = OURS
    peer: bool = False
    unit: str = "call"
    items: float = 1
    median: float
    p90: float
    p99: float
    low: float
    high: float
    noise: float
    samples: int
    limit: float | None = None
    bound: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    yardstick: float | None = None

    @classmethod
    def of(cls, samples: Samples, **known: Any) -> Self:
        """Of the samples, and what is known of them."""
        low, high = samples.interval()
        return cls(
            median=samples.median,
            p90=samples.quantile(0.9),
            p99=samples.quantile(0.99),
            low=low,
            high=high,
            noise=samples.noise,
            samples=len(samples.seconds),
            **known,
        )

    @property
    def key(self) -> str:
        """Names the same measurement in two reports."""
        sizes = ", ".join(f"{name} {value}" for name, value in sorted(self.parameters.items()))
        return " / ".join(filter(None, (self.suite, self.task, self.runner, sizes)))

    @property
    def each(self) -> float:
        """Seconds of one item."""
        return self.median / self.items

    @property
    def reached(self) -> float | None:
        """The share of the limit that was reached; 1 is as fast as the device can be."""
        return None if self.limit is None or not self.median else self.limit / self.median


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The seconds of the stages that one thing consists of, in order."""

    suite: str
    name: str
    stages: dict[str, float]


@dataclass(slots=True)
class SuiteRun:
    """How one suite went.

    Attributes:
        seconds: that it took.
        host_bytes: of memory at its peak.
        device_bytes: of the GPU's, if there is one.
        failure: why it stopped, such as a wrong answer; None where all is well.
        notes: what a reader of the figures must know, such as peers that could not take part.
        constants: measured numbers that the cost model is made of.
    """

    seconds: float = 0.0
    host_bytes: int = 0
    device_bytes: int | None = None
    failure: str | None = None
    notes: list[str] = field(default_factory=list)
    constants: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """Everything that one ``granalign bench`` found."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, Any]
    suites: dict[str, SuiteRun] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    breakdowns: list[Breakdown] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that are not installed, and what brings them."""
    format_version: int = FORMAT_VERSION

    @property
    def failures(self) -> dict[str, str]:
        """Suites that stopped, and why."""
        return {name: run.failure for name, run in self.suites.items() if run.failure}

    @property
    def drift(self) -> float:
        """How far the yardstick varied in nine tenths of the run, as a share."""
        seconds = sorted({r.yardstick for r in self.records if r.yardstick})
        if not seconds:
            return 0.0
        end = int(0.05 * (len(seconds) - 1))
        return seconds[len(seconds) - 1 - end] / seconds[end] - 1

    @property
    def typical_yardstick(self) -> float | None:
        """Seconds of the yardstick beside the median record; None where there was none."""
        seconds = sorted(r.yardstick for r in self.records if r.yardstick)
        return seconds[len(seconds) // 2] if seconds else None

    def constant(self, name: str) -> float | None:
        """A number that a suite measured for the cost model; None where none did."""
        return next(
            (run.constants[name] for run in self.suites.values() if name in run.constants), None
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """As JSON, whole or not at all.

        Raises:
            GranAlignError: the file cannot be written.
        """
        text = json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"
        with replacing(path) as file:
            file.write(text.encode())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """What `write` wrote.

        Raises:
            GranAlignError: the file is missing, no report, or of another format version.
        """
        record = read_json(Path(path))
        got = record.get("format_version") if isinstance(record, dict) else None
        if got != FORMAT_VERSION:
            raise GranAlignError(
                f"{path}: got format version {got!r}, expected {FORMAT_VERSION}; measure again "
                f"with granalign bench --json"
            )
        try:
            report = cls(
                **record
                | {
                    "suites": {name: SuiteRun(**run) for name, run in record["suites"].items()},
                    "records": [Record(**own) for own in record["records"]],
                    "breakdowns": [Breakdown(**own) for own in record["breakdowns"]],
                }
            )
            report._check()
            return report
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise GranAlignError(
                f"{path}: not a report ({error}); measure again with granalign bench --json"
            ) from None

    def _check(self) -> None:
        """Raise where what every page shows is not there, or no number."""
        for name in ("cpu", "cores", "memory_bytes", "load", "system", "python", "commit"):
            self.machine[name]
        self.machine["packages"].items()
        numbers = [self.limits["bandwidth"], *self.limits["rates"].values()]
        for own in self.records:
            numbers += [own.median, own.p90, own.p99, own.low, own.high, own.noise, own.items]
        for breakdown in self.breakdowns:
            numbers += breakdown.stages.values()
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a figure is not finite")


@dataclass(frozen=True, slots=True)
class Change:
    """One measurement in two reports.

    Attributes:
        key: of the records.
        before: seconds in the base; None where it is not there.
        after: seconds now; None where it is gone.
        bound: the share of change in that direction that noise and the machine alone may make.
        verdict: ``slower``, ``faster``, ``same``, ``new`` or ``gone``.
        peer: whether it is of another's code.
    """

    key: str
    before: float | None
    after: float | None
    bound: float
    verdict: str
    peer: bool = False

    @property
    def ratio(self) -> float:
        """Now to before; 1 where one is not there."""
        return self.after / self.before if self.before and self.after else 1.0

    @property
    def regression(self) -> bool:
        """Whether our own code has become slower."""
        return self.verdict == "slower" and not self.peer


def compare(base: Report, now: Report) -> list[Change]:
    """Every measurement of either report, regressions first.

    A median has changed when the ratio is beyond what noise may make: that of both records, at
    least that of a typical one, because a small noise may be luck, and never below
    `LEAST_DIFFERENCE`; and half of what the machine itself has varied by in the less steady of the
    runs, which passes right after each other do not show. Where the yardstick beside them has
    changed in the same direction, the median may by as much again.

    Raises:
        GranAlignError: the reports are of other work, or of other devices.
    """
    _check_alike(base, now)
    old = {record.key: record for record in base.records}
    new = {record.key: record for record in now.records}
    suites = set(now.suites)
    typical = max(_usual_noise(base), _usual_noise(now), LEAST_DIFFERENCE)
    wander = max(base.drift, now.drift) / 2
    changes = [
        Change(key, None, new[key].median, 0.0, "new", new[key].peer)
        for key in new.keys() - old.keys()
    ]
    changes += [
        Change(key, old[key].median, None, 0.0, "gone", old[key].peer)
        for key in old.keys() - new.keys()
        if old[key].suite in suites  # not those of suites that did not run
    ]
    for key in old.keys() & new.keys():
        before, after = old[key], new[key]
        grown = after.median > before.median
        noise = max(before.noise + after.noise, typical) + wander
        machine = _machine_change(before, after)
        bound = (1 + noise) * max(machine if grown else 1 / machine, 1.0) - 1
        pair = sorted((before.median, after.median))
        verdict = ("slower" if grown else "faster") if pair[1] > pair[0] * (1 + bound) else "same"
        changes.append(Change(key, before.median, after.median, bound, verdict, after.peer))
    order = {"slower": 0, "gone": 1, "new": 2, "faster": 3, "same": 4}
    return sorted(changes, key=lambda change: (order[change.verdict], change.peer, change.key))


_SAME_WORK = ("preset", "models", "random", "device", "size")
"""Settings without which times are of something else."""


def _check_alike(base: Report, now: Report) -> None:
    for name in _SAME_WORK:
        got, expected = base.settings.get(name), now.settings.get(name)
        if got != expected:
            raise GranAlignError(
                f"compare: got a base with {name} {got!r}, expected {expected!r} as in this run; "
                f"measure both with the same"
            )


def other_machine(base: Report, now: Report) -> str | None:
    """What the machines of two reports differ in; None for the same."""
    for name in ("cpu", "cores", "gpu"):
        got, expected = (_name(report.machine.get(name)) for report in (base, now))
        if got != expected:
            return f"{name} {got}, now {expected}"
    return None


def _name(device: Any) -> Any:
    return device.get("name") if isinstance(device, dict) else device


def _machine_change(before: Record, after: Record) -> float:
    """How many times slower the machine itself was."""
    if not before.yardstick or not after.yardstick:
        return 1.0
    return after.yardstick / before.yardstick


def _usual_noise(report: Report) -> float:
    ordered = sorted(record.noise for record in report.records)
    return ordered[len(ordered) // 2] if ordered else 0.0


def tasks(records: list[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Records of one task and size side by side, in the order in which they were made."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        sizes = tuple(sorted((k, str(v)) for k, v in record.parameters.items()))
        groups.setdefault((record.suite, record.task, sizes), []).append(record)
    for (_, task, _), members in groups.items():
        yield task, members


def beside_ours(members: list[Record]) -> Mapping[str, float]:
    """How many times our time each runner of a task takes, per item, by runner."""
    ours = next((record for record in members if record.runner == OURS), None)
    if ours is None or not ours.each:
        return {}
    return {record.runner: record.each / ours.each for record in members}
