"""The report of a run: records, its JSON file, and the comparison of two reports."""

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
from granalign_fast.output.visible import visible
from granalign_fast.parsing.json_types import matches, wrong_field

from .load_figures import LoadFigures
from .timing import Samples

FORMAT_VERSION = 1
OURS = "ours"
"""Name of the runner that the others' times are divided by."""
LEAST_DIFFERENCE = 0.05
"""Smallest change that counts as a difference, as a share: the placement of data in memory alone
changes times by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Times of one runner at one task.

    Attributes:
        suite: name of the suite.
        task: name of the work; runners of one task do the same work.
        runner: ``ours``, a variant such as ``ours, int8``, or a peer's name.
        peer: whether the runner is other people's software.
        unit: name of what is counted in `items`, such as ``query``.
        items: units of work in one sample.
        median: seconds of a sample; `p90` and `p99` are the other quantiles.
        low: lower end of the median's 95% interval, in seconds; `high` is the upper end.
        noise: share by which a median may change without a reason; see `timing.Samples`.
        samples: number of samples.
        limit: seconds that the device needs at its best measured rate; None if no work was counted.
        bound: what sets that limit, ``bytes`` or ``operations``.
        parameters: sizes of the workload.
        yardstick: seconds of the fixed piece of work that was timed in the same race.
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
    def of(cls, samples: Samples, **fields: Any) -> Self:
        """Make a record of samples; `fields` are the attributes that samples do not give."""
        low, high = samples.interval()
        return cls(
            median=samples.median,
            p90=samples.quantile(0.9),
            p99=samples.quantile(0.99),
            low=low,
            high=high,
            noise=samples.noise,
            samples=len(samples.seconds),
            **fields,
        )

    @property
    def key(self) -> str:
        """Identifies the same measurement in two reports."""
        sizes = ", ".join(f"{name} {value}" for name, value in sorted(self.parameters.items()))
        return " / ".join(filter(None, (self.suite, self.task, self.runner, sizes)))

    @property
    def each(self) -> float:
        """Median seconds of one item."""
        return self.median / self.items

    @property
    def reached(self) -> float | None:
        """Limit divided by the median; 1 is as fast as the device can be. None without a limit."""
        return None if self.limit is None or not self.median else self.limit / self.median


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Seconds of the stages of one piece of work, in order."""

    suite: str
    name: str
    stages: dict[str, float]


@dataclass(slots=True)
class SuiteRun:
    """The run of one suite.

    Attributes:
        seconds: duration.
        host_bytes: peak of the process's memory.
        device_bytes: peak of the GPU's memory pool; None without a GPU.
        failure: why the suite stopped, such as a wrong answer; None if it completed.
        notes: what a reader of the figures must know, such as peers that could not take part.
        constants: measured numbers, most of them inputs of the cost estimate.
    """

    seconds: float = 0.0
    host_bytes: int = 0
    device_bytes: int | None = None
    failure: str | None = None
    notes: list[str] = field(default_factory=list)
    constants: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """All results of one ``granalign bench``."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, Any]
    suites: dict[str, SuiteRun] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    breakdowns: list[Breakdown] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that are not installed, and the command that installs each."""
    loads: list[LoadFigures] = field(default_factory=list)
    """The figures of a service under each load."""
    format_version: int = FORMAT_VERSION

    @property
    def failures(self) -> dict[str, str]:
        """Suites that failed, and why."""
        return {name: run.failure for name, run in self.suites.items() if run.failure}

    @property
    def drift(self) -> float:
        """Variation of the machine's speed, as a share.

        It is the ratio of the 95th to the 5th percentile of the yardstick's times, minus 1.
        """
        seconds = sorted({r.yardstick for r in self.records if r.yardstick})
        if not seconds:
            return 0.0
        end = int(0.05 * (len(seconds) - 1))
        return seconds[len(seconds) - 1 - end] / seconds[end] - 1

    @property
    def typical_yardstick(self) -> float | None:
        """Median of the yardstick's seconds over all records; None if none was timed."""
        seconds = sorted(r.yardstick for r in self.records if r.yardstick)
        return seconds[len(seconds) // 2] if seconds else None

    def constant(self, name: str) -> float | None:
        """Return a constant that a suite measured; None if no suite did."""
        return next(
            (run.constants[name] for run in self.suites.values() if name in run.constants), None
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, atomically.

        Raises:
            GranAlignError: the file cannot be written.
        """
        text = json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"
        with replacing(path) as file:
            file.write(text.encode())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a report that `write` wrote.

        Raises:
            GranAlignError: the file is missing, not a report, or has another format version.
        """
        record = _visible(read_json(Path(path)))
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
                    "records": [Record(**fields) for fields in record["records"]],
                    "breakdowns": [Breakdown(**fields) for fields in record["breakdowns"]],
                    "loads": [LoadFigures(**fields) for fields in record.get("loads", ())],
                }
            )
            report._check()
            return report
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise GranAlignError(
                f"{path}: not a report ({error}); measure again with granalign bench --json"
            ) from None

    def _check(self) -> None:
        """Raise if a field that every page shows is missing or of another type, or not finite."""
        for kind, parts in (
            (Report, [self]),
            (SuiteRun, self.suites.values()),
            (Record, self.records),
            (Breakdown, self.breakdowns),
            (LoadFigures, self.loads),
        ):
            if wrong := [name for part in parts if (name := wrong_field(kind, part)) is not None]:
                raise TypeError(f"{wrong[0]} of a {kind.__name__} has another type")
        if not matches(list[float], self.machine["load"]):
            raise TypeError("load of the machine has another type")
        for name in ("cpu", "cores", "memory_bytes", "load", "system", "python", "commit"):
            self.machine[name]
        self.machine["packages"].items()
        numbers = [self.limits["bandwidth"], *self.limits["rates"].values()]
        for record in self.records:
            numbers += [
                record.median,
                record.p90,
                record.p99,
                record.low,
                record.high,
                record.noise,
                record.items,
            ]
        for breakdown in self.breakdowns:
            numbers += breakdown.stages.values()
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("a figure is not finite")


@dataclass(frozen=True, slots=True)
class Change:
    """One measurement in two reports.

    Attributes:
        key: `Record.key` of both records.
        before: seconds in the base; None if the base lacks the measurement.
        after: seconds in the new report; None if that lacks it.
        bound: share by which noise and the machine alone may change the median in that direction.
        verdict: ``slower``, ``faster``, ``same``, ``new`` or ``gone``.
        peer: whether the runner is other people's software.
    """

    key: str
    before: float | None
    after: float | None
    bound: float
    verdict: str
    peer: bool = False

    @property
    def ratio(self) -> float:
        """`after` divided by `before`; 1 if either is missing."""
        return self.after / self.before if self.before and self.after else 1.0

    @property
    def regression(self) -> bool:
        """Whether our code, not a peer's, has become slower."""
        return self.verdict == "slower" and not self.peer


def compare(base: Report, now: Report) -> list[Change]:
    """Compare every measurement of two reports; return the changes, regressions first.

    A median has changed if its ratio exceeds a bound, the sum of two shares:

    - the noise of both records, but at least the typical noise of a record, because a small noise
      may be luck, and at least `LEAST_DIFFERENCE`;
    - half of the machine's drift in the less steady run, which two passes one right after the other
      do not show.

    If the yardstick has changed in the same direction, the bound is multiplied by that change.

    Raises:
        GranAlignError: the reports are of different work, or of different devices.
    """
    _check_same_work(base, now)
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
        if old[key].suite in suites  # a suite that did not run this time is not gone
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
"""Settings that must match for times to be comparable."""


def _check_same_work(base: Report, now: Report) -> None:
    for name in _SAME_WORK:
        got, expected = base.settings.get(name), now.settings.get(name)
        if got != expected:
            raise GranAlignError(
                f"compare: got a base with {name} {got!r}, expected {expected!r} as in this run; "
                f"measure both with the same"
            )


def other_machine(base: Report, now: Report) -> str | None:
    """Return the first difference of two reports' machines; None if there is none."""
    for name in ("cpu", "cores", "gpu"):
        got, expected = (_name(report.machine.get(name)) for report in (base, now))
        if got != expected:
            return f"{name} {got}, now {expected}"
    return None


def _name(device: Any) -> Any:
    return device.get("name") if isinstance(device, dict) else device


def _machine_change(before: Record, after: Record) -> float:
    """Return the ratio of the yardsticks: how many times slower the machine has become."""
    if not before.yardstick or not after.yardstick:
        return 1.0
    return after.yardstick / before.yardstick


def _usual_noise(report: Report) -> float:
    ordered = sorted(record.noise for record in report.records)
    return ordered[len(ordered) // 2] if ordered else 0.0


def tasks(records: list[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Group records by task and sizes, in the order in which they were recorded."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        sizes = tuple(sorted((k, str(v)) for k, v in record.parameters.items()))
        groups.setdefault((record.suite, record.task, sizes), []).append(record)
    for (_, task, _), members in groups.items():
        yield task, members


def ratios_to_ours(members: list[Record]) -> Mapping[str, float]:
    """Return each runner's time per item divided by ours; empty without ours."""
    ours = next((record for record in members if record.runner == OURS), None)
    if ours is None or not ours.each:
        return {}
    return {record.runner: record.each / ours.each for record in members}


def _visible(value: Any) -> Any:
    """Return a JSON value whose texts can be shown; somebody else may have made the report."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key): _visible(inner) for key, inner in value.items()}
    return [_visible(inner) for inner in value] if isinstance(value, list) else value
