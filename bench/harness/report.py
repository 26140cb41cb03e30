"""Show a report to people: tables in the terminal, and a page of Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from granalign_fast.files import replacing

from .cost import costs
from .load_figures import COLUMNS as LOAD_COLUMNS
from .records import Change, Record, Report, ratios_to_ours, tasks

_FILE_WIDTH = 150
"""Characters of a line where the output is a file, which has no width of its own."""
_COLUMNS = (
    *("task", "who", "each", "p90", "p99", "noise", "machine", "times ours", "of the limit"),
)


def duration(seconds: float | None) -> str:
    """Format a duration with three digits in the unit that fits, such as ``1.23 ms``."""
    if seconds is None:
        return ""
    rounded = float(f"{seconds:.3g}")  # 999.9 microseconds are a millisecond
    for least, unit, length in _UNITS:
        if abs(rounded) >= least:
            return f"{_three_digits(seconds / length)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


_UNITS = (
    *((2 * 86400.0 * 365, "years", 86400.0 * 365), (2 * 86400.0, "days", 86400.0)),
    *(
        (2 * 3600.0, "h", 3600.0),
        (2 * 60.0, "min", 60.0),
        (1.0, "s", 1.0),
        (1e-3, "ms", 1e-3),
        (1e-6, "µs", 1e-6),
    ),
)


def size(count: float | None) -> str:
    """Format a number of bytes in decimal units, such as ``1.2 GB``."""
    if count is None:
        return ""
    for power, unit in ((5, "PB"), (4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if float(f"{count:.3g}") >= 1000**power:
            return f"{_three_digits(count / 1000**power)} {unit}"
    return f"{count:.0f} B"


def _three_digits(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}"


def rows(report: Report, suite: str) -> Iterable[tuple[str, ...]]:
    """Yield the cells under `_COLUMNS` of each record of a suite, grouped by task."""
    typical = report.typical_yardstick
    for task, members in tasks([record for record in report.records if record.suite == suite]):
        ratios = ratios_to_ours(members)
        for row, record in enumerate(members):
            ratio = ratios.get(record.runner, 1.0)
            yield (
                "" if row else _named(task, record),
                record.runner + (" *" if record.peer else ""),
                f"{duration(record.each)} {_article(record.unit)} {record.unit}",
                duration(record.p90 / record.items),
                duration(record.p99 / record.items),
                f"±{record.noise:.0%} of {record.samples}",
                f"{record.yardstick / typical:.2f}x" if record.yardstick and typical else "",
                "" if len(members) == 1 or record.runner == "ours" else f"{ratio:.2f}x",
                "" if record.reached is None else f"{record.reached:.1%} ({record.bound})",
            )


def _named(task: str, record: Record) -> str:
    sizes = ", ".join(
        f"{value} {_singular(name) if value == 1 else name}"
        for name, value in record.parameters.items()
    )
    return f"{task} ({sizes})" if sizes else task


def _singular(name: str) -> str:
    return f"{name[:-3]}y" if name.endswith("ies") else name.removesuffix("s")


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def machine_lines(report: Report) -> list[str]:
    """Return lines about the machine and its limits."""
    machine, limits = report.machine, report.limits
    gpu = machine.get("gpu")
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    rates = ", ".join(
        f"{kind} {rate / 1e12:.2f} TFLOP/s" if kind != "int8" else f"int8 {rate / 1e12:.2f} TOP/s"
        for kind, rate in limits["rates"].items()
    )
    load = ", ".join(map(str, machine["load"]))
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {size(machine['memory_bytes'])}; "
        f"load before: {load}",
        *([f"{gpu['name']}, {size(gpu['memory_bytes'])}, driver {gpu['driver']}"] if gpu else []),
        f"{machine['system']}, Python {machine['python']}, {packages}; commit {machine['commit']}",
        f"measured limits: {limits['bandwidth'] / 1e9:.1f} GB/s copied, {rates}",
        f"the time of a fixed piece of work varied by {report.drift:.0%} during the run, because "
        f"the machine was faster or slower at times; --compare adds half of that to ±",
    ]


def print_report(report: Report) -> None:
    """Print every suite's table, notes and failure; then absent peers and estimated costs."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_FILE_WIDTH)
    for line in machine_lines(report):
        console.print(escape(line))
    for name, suite_run in report.suites.items():
        title = f"{escape(name)}: {_suite_line(report, name)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in _COLUMNS:
            justify: Any = "left" if column in ("task", "who") else "right"
            table.add_column(column, justify=justify, overflow="fold")
        for row in rows(report, name):
            table.add_row(*map(escape, row))
        if table.rows:
            console.print(table)
        elif not suite_run.failure:
            console.print(f"{escape(name)}: nothing was measured")
        for note in suite_run.notes:
            console.print(f"  {escape(note)}")
        if suite_run.failure:
            console.print(f"  [red]{escape(name)} failed: {escape(suite_run.failure)}[/]")
    loads = list(load_rows(report))
    if loads:
        table = Table(title=_LOADS, title_justify="left", box=SIMPLE_HEAD)
        for column in LOAD_COLUMNS:
            table.add_column(column, justify="left" if column == "load" else "right")
        for row in loads:
            table.add_row(*map(escape, row))
        console.print(table)
        for line in bar_lines(report):
            console.print(f"  {escape(line)}")
    console.print("* other software, in the same run")
    for peer, remedy in report.absent.items():
        console.print(f"  not installed: {escape(peer)}; {escape(remedy)}")
    title = "Estimated cost of a library on such machines"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in _COST_COLUMNS:
        table.add_column(column, justify="right")
    for library in cost_rows(report):
        table.add_row(*library)
    if table.rows:
        console.print(table)


def _suite_line(report: Report, name: str) -> str:
    suite_run = report.suites[name]
    device = f", {size(suite_run.device_bytes)} of the device's" if suite_run.device_bytes else ""
    return f"{suite_run.seconds:.0f} s, at most {size(suite_run.host_bytes)} of memory{device}"


_LOADS = "The service under load; times in milliseconds, from when a query was to be sent"


def load_rows(report: Report) -> Iterable[tuple[str, ...]]:
    """Yield the cells under `LOAD_COLUMNS` of each load of the service."""
    return (load.cells() for load in report.loads)


def bar_lines(report: Report) -> Iterable[str]:
    """Yield the constants of the suite ``service``, a line for each."""
    suite_run = report.suites.get("service")
    for name, value in ({} if suite_run is None else suite_run.constants).items():
        yield f"{name.removeprefix('service: ')}: {value:.3g}"


_COST_COLUMNS = (
    *("hours", "queries/s", "index in", "index", "in memory", "kept prefixes", "one query"),
    "machines for the queries",
)


def cost_rows(report: Report) -> Iterable[tuple[str, ...]]:
    """Yield the cells under `_COST_COLUMNS` of each library."""
    for one in costs(report):
        machines = ""
        if one.machines is not None:
            machines = f"{one.machines:,.0f}" if one.machines >= 10 else f"{one.machines:.2g}"
        yield (
            f"{one.hours:,.0f}",
            f"{one.queries:g}",
            duration(one.index_seconds),
            size(one.index_bytes),
            size(one.memory_bytes),
            size(one.prefix_bytes),
            duration(one.query_seconds),
            machines,
        )


_COLOURS = {"slower": "yellow", "gone": "yellow", "faster": "green"}


def print_changes(changes: Sequence[Change]) -> None:
    """Print each measurement that has changed, regressions first, and count the others."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for change in changes:
        if change.verdict == "same":
            continue
        before, after = duration(change.before) or "-", duration(change.after) or "-"
        colour = "red" if change.regression else _COLOURS.get(change.verdict, "default")
        ratio = f", {change.ratio:.2f}x, noise up to {change.bound:.0%}" if change.bound else ""
        text = f"{escape(change.key)}: {before} -> {after}{ratio}"
        console.print(f"[{colour}]{change.verdict:>6}[/]  {text}")
    same = sum(change.verdict == "same" for change in changes)
    console.print(f"{same} of {len(changes)} measurements as in the base, within the noise")


def write_markdown(report: Report, path: str | os.PathLike[str], plots: Sequence[str] = ()) -> None:
    """Write the whole report as a page of Markdown.

    Args:
        report: the report of a run.
        path: where to write the page.
        plots: pictures to show, by their paths relative to the page.

    Raises:
        GranAlignError: the page cannot be written.
    """
    with replacing(Path(path)) as file:
        file.write(("\n".join(markdown(report, plots)) + "\n").encode())


def markdown(report: Report, plots: Sequence[str] = ()) -> list[str]:
    """Return the lines of the page."""
    lines = [
        "# Measurements",
        "",
        "Generated by `granalign bench --markdown` from a JSON report: measure again, do not edit.",
        "Times are medians over new inputs; ± is the noise: the larger of half the median's 95%",
        "interval and the difference between two passes, one right after the other. The runners of",
        "a task took turns, and outputs were compared with a reference in the same run. \\* is",
        "other software. Machine: the time of a fixed piece of work just then, divided by its",
        "usual time; of two tasks, the one with the greater number met a slower machine. Of the",
        "limit: the share of the machine's best measured rate that a stage reaches, and whether",
        "bytes or operations set that limit.",
        "",
        *(f"- {_without_tags(line)}" for line in machine_lines(report)),
    ]
    for picture in plots:
        lines += ["", f"![{Path(picture).stem.replace('-', ' ')}]({picture})"]
    for name, suite_run in report.suites.items():
        lines += ["", f"## {_without_tags(name)}", "", f"{_suite_line(report, name)}.", ""]
        table = list(rows(report, name))
        if table:
            lines += _table(_COLUMNS, table)
        lines += [
            line
            for note in map(_without_tags, suite_run.notes)
            for line in ("", f"{note[:1].upper()}{note[1:]}.")
        ]
        if suite_run.failure:
            lines += ["", f"**Failed:** {_without_tags(suite_run.failure)}"]
        if name == "service" and report.loads:
            lines += ["", f"{_LOADS}.", "", *_table(LOAD_COLUMNS, load_rows(report)), ""]
            lines += [f"- {_without_tags(line)}" for line in bar_lines(report)]
    if report.absent:
        absent = (f"{peer} (`{remedy}`)" for peer, remedy in report.absent.items())
        lines += ["", "## Peers that were not installed", "", ", ".join(absent) + "."]
    library = list(cost_rows(report))
    if library:
        lines += [
            "",
            "## Estimated cost of a library on such machines",
            "",
            "Computed from the constants measured above. A clip lasts two seconds; every query is "
            "about the whole library, and no model looks at frames for it.",
            "",
            *_table(_COST_COLUMNS, library),
        ]
    return lines


def _without_tags(text: str) -> str:
    """Return a text for Markdown in which no tag of HTML begins."""
    return text.replace("<", "&lt;")


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    cells = [
        [_without_tags(cell).replace("|", "\\|").replace("*", "\\*") for cell in line]
        for line in lines
    ]
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(line)} |" for line in cells),
    ]
