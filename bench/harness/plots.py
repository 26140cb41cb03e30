"""Plot a report: where the time goes, throughput, scaling, and distance from the limits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.output.plot import CURVE, INK, MOMENT, VARIANT, new_figure, plain, save_figure

from .load_plots import draw_loads
from .records import OURS, Breakdown, Record, Report
from .report import duration

_COLOURS = (
    *("#1f6f8b", "#f2a65a", "#5b8e7d", "#bc4b51", "#8f7ab5", "#c9a227"),
    *("#6c8ead", "#d98880", "#7fb685", "#b0a199", "#46627f", "#e0b1cb"),
)
_WIDE = 9.5
"""Width of a picture in inches; pages show pictures at about half of their pixels."""
_SMALLEST_SHARE, _SMALL = 0.01, "less than 1%"
"""Stages below this share of a bar are drawn as one, under this name."""
_LONGER = 4
"""A bar more than this many times as long as the next shorter one gets another axis."""


def draw_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every picture that the report has figures for, as PNG; return the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
        GranAlignError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GranAlignError(f"{folder}: cannot be made ({error.strerror or error})") from None
    pictures: dict[str, Callable[[Report], Any | None]] = {
        "where-the-time-goes": _stages,
        "throughput": _throughput,
        "scaling": _scaling,
        "limits": _limits,
        "service": draw_loads,
    }
    paths = []
    for name, draw in pictures.items():
        figure = draw(report)
        if figure is not None:
            save_figure(figure, folder / f"{name}.png")
            paths.append(folder / f"{name}.png")
    return paths


def _stages(report: Report) -> Any | None:
    """Draw a stacked bar for each breakdown; bars of one suite and similar length share an axis."""
    suites = list(dict.fromkeys(breakdown.suite for breakdown in report.breakdowns))
    if not suites:
        return None
    groups = [
        (suite, members, _colours_of([b for b in report.breakdowns if b.suite == suite]))
        for suite in suites
        for members in _groups_of_similar_length([b for b in report.breakdowns if b.suite == suite])
    ]
    # An axis with few bars must still be tall enough for its legend.
    heights = [
        max(len(members) + 1.2, 0.36 * len({name for b in members for name in _parts(b)}) + 0.6)
        for _, members, _ in groups
    ]
    figure = new_figure(_WIDE, 0.62 * sum(heights) + 0.8, layout="constrained")
    every = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (suite, members, colours) in zip(every, groups, strict=True):
        _stacked(axes, suite, members, colours)
    figure.suptitle("Where the time goes", x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _whole(breakdown: Breakdown) -> float:
    return sum(breakdown.stages.values())


def _groups_of_similar_length(group: Sequence[Breakdown]) -> list[list[Breakdown]]:
    """Split breakdowns wherever the next longer one is so long that shorter ones become slivers."""
    lengths = sorted(map(_whole, group))
    cuts = [longer for shorter, longer in itertools.pairwise(lengths) if longer > _LONGER * shorter]
    parts: dict[int, list[Breakdown]] = {}
    for breakdown in group:
        parts.setdefault(sum(_whole(breakdown) >= cut for cut in cuts), []).append(breakdown)
    return list(parts.values())


def _colours_of(group: Sequence[Breakdown]) -> dict[str, str]:
    """Return the colour of every stage that is drawn, the same on all axes of a suite."""
    names = dict.fromkeys(name for breakdown in group for name in _parts(breakdown))
    names.pop(_SMALL, None)
    return dict(zip(names, _COLOURS * 2, strict=False)) | {_SMALL: "#d0d5d9"}


def _parts(breakdown: Breakdown) -> dict[str, float]:
    """Return the seconds of the stages that are drawn, small ones summed under `_SMALL`."""
    least = _SMALLEST_SHARE * _whole(breakdown)
    parts = {name: value for name, value in breakdown.stages.items() if value >= least}
    small = sum(value for value in breakdown.stages.values() if value < least)
    return {name: value for name, value in {**parts, _SMALL: small}.items() if value > 0}


def _stacked(axes: Any, suite: str, group: Sequence[Breakdown], colours: Mapping[str, str]) -> None:
    longest = max(map(_whole, group))
    scale, unit = (1.0, "s") if longest >= 1 else (1e3, "ms") if longest >= 1e-3 else (1e6, "µs")
    shown: set[str] = set()
    for row, breakdown in enumerate(group):
        total = 0.0
        for name, value in _parts(breakdown).items():
            label = None if name in shown else name
            shown.add(name)
            axes.barh(
                *(row, value * scale),
                left=total * scale,
                height=0.66,
                color=colours[name],
                label=label,
            )
            total += value
        axes.annotate(
            duration(_whole(breakdown)),
            (total * scale, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.set_yticks(range(len(group)), [b.name for b in group])
    axes.set(ylim=(len(group) - 0.45, -0.55), xlim=(0, longest * scale * 1.16))
    axes.set_xlabel(f"{suite}: {unit}", color=INK, fontsize=9, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    plain(axes)


def _throughput(report: Report) -> Any | None:
    """Draw queries a second, and the time that a query waits, against the number of clients."""
    answers = [r for r in report.records if r.task == "answer queries"]
    waits = sorted(
        (r for r in report.records if r.task == "wait for an answer"), key=lambda r: _clients(r)
    )
    if not answers:
        return None
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = new_figure(_WIDE, 4.2, layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    for runner, colour, label in (
        (OURS, CURVE, "one search a client"),
        (f"{OURS}, one batch", MOMENT, "the same queries in one batch"),
    ):
        selected = sorted((r for r in answers if r.runner == runner), key=_clients)
        if not selected:
            continue
        x = [_clients(record) for record in selected]
        rates.plot(x, [1 / r.each for r in selected], "o-", color=colour, label=label)
        rates.fill_between(
            *(x, [r.items / r.high for r in selected], [r.items / r.low for r in selected]),
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
    rates.set(ylabel="queries a second", ylim=(0, None))
    for name, style in (("median", "-"), ("p90", "--"), ("p99", ":")):
        values = [getattr(record, name) for record in waits]
        latencies.plot(
            [_clients(r) for r in waits], values, style, color=CURVE, marker="o", label=name
        )
    latencies.set(ylabel="time that a query waits", yscale="log")
    latencies.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latencies.yaxis.set_major_formatter(EngFormatter("s"))
    latencies.yaxis.set_minor_formatter("")
    for axes in (rates, latencies):
        axes.set_xscale("log", base=2)
        ticks = sorted({_clients(record) for record in answers})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel("clients at once", color=INK)
        axes.legend(frameon=False, fontsize=9)
        plain(axes)
    figure.suptitle(
        "Throughput: captions alone, the band is the median's 95% interval",
        x=0.01,
        ha="left",
        color=INK,
        fontsize=14,
    )
    return figure


def _clients(record: Record) -> int:
    return int(record.parameters["clients"])


def _scaling(report: Report) -> Any | None:
    """Draw seconds against size on log axes, with the device's limit below."""
    records = [r for r in report.records if r.suite == "scaling" or r.task.startswith("clips: ")]
    named = list(dict.fromkeys(record.task for record in records))
    if not named:
        return None
    from matplotlib.ticker import EngFormatter

    lines = -(-len(named) // 2)
    figure = new_figure(_WIDE, 3.7 * lines + 0.4, layout="constrained")
    every = figure.subplots(lines, 2, squeeze=False).ravel()
    for axes in every[len(named) :]:
        axes.remove()
    for axes, task in zip(every, named, strict=False):
        selected = [record for record in records if record.task == task]
        x = [record.items for record in selected]
        axes.loglog(x, [r.median for r in selected], "o-", color=CURVE, label="measured")
        axes.fill_between(
            *(x, [r.low for r in selected], [r.high for r in selected]),
            color=CURVE,
            alpha=0.2,
            linewidth=0,
        )
        bounded = [r for r in selected if r.limit is not None]
        axes.loglog(
            *([r.items for r in bounded], [r.limit for r in bounded]),
            "--",
            color=MOMENT,
            label="the machine's limit",
        )
        name, _, what = task.partition(": ")
        axes.set_xlabel(name, color=INK)
        axes.set_title(what, color=INK, fontsize=10, loc="left")
        axes.set_ylabel("time", color=INK)
        for axis, unit in ((axes.xaxis, ""), (axes.yaxis, "s")):
            axis.set_major_formatter(EngFormatter(unit, sep=" " if unit else ""))
            axis.set_minor_formatter("")
        axes.grid(which="major", color=VARIANT, alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
        plain(axes)
    figure.suptitle("Scaling", x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _limits(report: Report) -> Any | None:
    """Draw what share of the device's limit each stage reaches."""
    selected = [r for r in report.records if r.reached and r.suite != "scaling"]
    if not selected:
        return None
    figure = new_figure(_WIDE, 0.25 * len(selected) + 1.3, layout="constrained")
    axes = figure.subplots()
    for row, record in enumerate(selected):
        share = 100 * (record.reached or 0.0)
        axes.barh(*(row, share), height=0.68, color=VARIANT if record.peer else CURVE, linewidth=0)
        axes.annotate(  # in a column to the right, clear of bars and the line
            f"{share:.2g}% of {record.bound}",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(range(len(selected)), [_what(record) for record in selected], fontsize=8)
    axes.axvline(100, color=MOMENT, linestyle="--", linewidth=1.2)
    shares = [100 * (r.reached or 1.0) for r in selected]
    axes.set(
        xscale="log",
        xlim=(min(shares) / 1.5, max(160, 1.2 * max(shares))),
        ylim=(len(selected) - 0.4, -0.6),
    )
    axes.xaxis.set_major_formatter("{x:g}%")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("share of the measured limit; pale bars are other software", color=INK)
    plain(axes)
    figure.suptitle("How far from the limit", x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _what(record: Record) -> str:
    """Return the label of a record: its task, the parameters that identify it, its runner."""
    parameters = record.parameters
    model = [str(parameters[name]) for name in ("model", "tower") if name in parameters]
    layers = parameters.get("layers")
    depth = [f"{layers} layer{'s' * (layers != 1)}"] if layers else []
    caches = [parameters["caches"]] if "caches" in parameters else []
    return ", ".join([record.task, *model, *depth, record.runner, *caches])
