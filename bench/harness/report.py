"""A report for people: tables in the terminal, and a page of Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from granalign_fast.files import replacing

from .cost import costs
from .records import Change, Record, Report, beside_ours, tasks

_FILE_WIDTH = 150
_COLUMNS = (
    *("task", "who", "each", "p90", "p99", "noise", "machine", "beside ours", "of the limit"),
)


def duration(seconds: float | None) -> str:
    """``1.23 ms``: three digits, in the unit that fits."""
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
    """``1.2 GB``, of a thousand each."""
    if count is None:
        return ""
    for power, unit in ((5, "PB"), (4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if float(f"{count:.3g}") >= 1000**power:
            return f"{_three_digits(count / 1000**power)} {unit}"
    return f"{count:.0f} B"


def _three_digits(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}"


def rows(report: Report, suite: str) -> Iterable[tuple[str, ...]]:
    """`_COLUMNS` of each record of a suite, runners of a task one below another."""
    typical = report.typical_yardstick
    for task, members in tasks([record for record in report.records if record.suite == suite]):
        ratios = beside_ours(members)
        for place, record in enumerate(members):
            ratio = ratios.get(record.runner, 1.0)
            yield (
                "" if place else _named(task, record),
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
    """What the figures were measured on, a line each."""
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
        f"a fixed piece of work, timed beside everything, varied by {report.drift:.0%}: by so much "
        f"the machine itself was faster or slower at times; --compare adds half of that to ±",
    ]


def print_report(report: Report) -> None:
    """Every suite as a table, then what went wrong, what was not there, and what it would cost."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no width of its own
        console = Console(highlight=False, width=_FILE_WIDTH)
    for line in machine_lines(report):
        console.print(escape(line))
    for name, own in report.suites.items():
        title = f"{name}: {_suite_line(report, name)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in _COLUMNS:
            justify: Any = "left" if column in ("task", "who") else "right"
            table.add_column(column, justify=justify, overflow="fold")
        for row in rows(report, name):
            table.add_row(*map(escape, row))
        if table.rows:
            console.print(table)
        elif not own.failure:
            console.print(f"{name}: nothing was measured")
        for note in own.notes:
            console.print(f"  {escape(note)}")
        if own.failure:
            console.print(f"  [red]{name} failed: {escape(own.failure)}[/]")
    console.print("* another's code, in the same run")
    for peer, remedy in report.absent.items():
        console.print(f"  not installed: {escape(peer)}; {escape(remedy)}")
    title = "A library on such machines, on paper"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in _COST_COLUMNS:
        table.add_column(column, justify="right")
    for library in cost_rows(report):
        table.add_row(*library)
    if table.rows:
        console.print(table)


def _suite_line(report: Report, name: str) -> str:
    own = report.suites[name]
    device = f", {size(own.device_bytes)} of the device's" if own.device_bytes else ""
    return f"{own.seconds:.0f} s, at most {size(own.host_bytes)} of memory{device}"


_COST_COLUMNS = (
    *("hours", "queries/s", "index in", "index", "in memory", "kept prefixes", "one query"),
    "machines for the queries",
)


def cost_rows(report: Report) -> Iterable[tuple[str, ...]]:
    """`_COST_COLUMNS` of each library."""
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
    """What differs from the base, regressions first; what does not is counted."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for change in changes:
        if change.verdict == "same":
            continue
        before, after = duration(change.before) or "-", duration(change.after) or "-"
        colour = "red" if change.regression else _COLOURS.get(change.verdict, "default")
        ratio = f", {change.ratio:.2f}x, by noise up to {change.bound:.0%}" if change.bound else ""
        text = f"{escape(change.key)}: {before} -> {after}{ratio}"
        console.print(f"[{colour}]{change.verdict:>6}[/]  {text}")
    same = sum(change.verdict == "same" for change in changes)
    console.print(f"{same} of {len(changes)} measurements as in the base, within the noise")


def write_markdown(report: Report, path: str | os.PathLike[str], plots: Sequence[str] = ()) -> None:
    """The whole report as a page.

    Args:
        report: of a run.
        path: of the page.
        plots: pictures to show, as the page refers to them.

    Raises:
        GranAlignError: the page cannot be written.
    """
    with replacing(Path(path)) as file:
        file.write(("\n".join(markdown(report, plots)) + "\n").encode())


def markdown(report: Report, plots: Sequence[str] = ()) -> list[str]:
    """The lines of the page."""
    lines = [
        "# Measurements",
        "",
        "Generated by `granalign bench --markdown` from the JSON beside it: measure, do not edit.",
        "Times are medians over fresh inputs; ± is the noise, the larger of the median's 95%",
        "interval and of how far two passes, one right after the other, lie apart. Everything",
        "beside each other took turns, and outputs were compared with a reference in the same run.",
        "\\* is another's code. Machine: how many times as long as usual a fixed piece of work",
        "took just then; of two tasks the one with the greater number met a slower machine. Of the",
        "limit: the share of the machine's own measured best that a stage reaches, and whether",
        "bytes or operations set that limit.",
        "",
        *(f"- {line}" for line in machine_lines(report)),
    ]
    for picture in plots:
        lines += ["", f"![{Path(picture).stem.replace('-', ' ')}]({picture})"]
    for name, own in report.suites.items():
        lines += ["", f"## {name}", "", f"{_suite_line(report, name)}.", ""]
        table = list(rows(report, name))
        if table:
            lines += _table(_COLUMNS, table)
        lines += [line for note in own.notes for line in ("", f"{note[0].upper()}{note[1:]}.")]
        if own.failure:
            lines += ["", f"**Failed:** {own.failure}"]
    if report.absent:
        absent = (f"{peer} (`{remedy}`)" for peer, remedy in report.absent.items())
        lines += ["", "## Peers that were not installed", "", ", ".join(absent) + "."]
    library = list(cost_rows(report))
    if library:
        lines += [
            "",
            "## A library on such machines, on paper",
            "",
            "From the constants measured above: a clip every two seconds, every query about the "
            "whole library, no frame looked at for it.",
            "",
            *_table(_COST_COLUMNS, library),
        ]
    return lines


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in line] for line in lines]
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(line)} |" for line in cells),
    ]
