"""Pictures of a report: where the time goes, throughput, growth, and the limits drawn in."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.output.plot import CURVE, INK, MOMENT, VARIANT, new_figure, plain, save_figure

from .records import OURS, Breakdown, Record, Report
from .report import duration

_COLOURS = (
    *("#1f6f8b", "#f2a65a", "#5b8e7d", "#bc4b51", "#8f7ab5", "#c9a227"),
    *("#6c8ead", "#d98880", "#7fb685", "#b0a199", "#46627f", "#e0b1cb"),
)
_WIDE = 9.5
"""Inches; a page shows the pictures at about half of their pixels."""
_SMALLEST_SHARE, _SMALL = 0.01, "less than 1%"
"""Of a bar: smaller stages are drawn as one, under this name."""
_LONGER = 4
"""Bars of one axis are no more than so many times as long as the next shorter one."""


def draw_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every picture that the report has figures for, as PNG.

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
    }
    drawn = []
    for name, draw in pictures.items():
        figure = draw(report)
        if figure is not None:
            save_figure(figure, folder / f"{name}.png")
            drawn.append(folder / f"{name}.png")
    return drawn


def _stages(report: Report) -> Any | None:
    """A stacked bar for each breakdown, those of a suite of about one length over one axis."""
    suites = list(dict.fromkeys(breakdown.suite for breakdown in report.breakdowns))
    if not suites:
        return None
    groups = [
        (suite, own, _colours_of([b for b in report.breakdowns if b.suite == suite]))
        for suite in suites
        for own in _alike([b for b in report.breakdowns if b.suite == suite])
    ]
    # A legend needs its room beside few bars as well.
    heights = [
        max(len(own) + 1.2, 0.36 * len({name for b in own for name in _parts(b)}) + 0.6)
        for _, own, _ in groups
    ]
    figure = new_figure(_WIDE, 0.62 * sum(heights) + 0.8, layout="constrained")
    every = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (suite, own, colours) in zip(every, groups, strict=True):
        _stacked(axes, suite, own, colours)
    figure.suptitle("Where the time goes", x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _whole(breakdown: Breakdown) -> float:
    return sum(breakdown.stages.values())


def _alike(group: Sequence[Breakdown]) -> list[list[Breakdown]]:
    """Apart wherever the next longer one is so much longer that it would make slivers of others."""
    lengths = sorted(map(_whole, group))
    cuts = [longer for shorter, longer in itertools.pairwise(lengths) if longer > _LONGER * shorter]
    parts: dict[int, list[Breakdown]] = {}
    for breakdown in group:
        parts.setdefault(sum(_whole(breakdown) >= cut for cut in cuts), []).append(breakdown)
    return list(parts.values())


def _colours_of(group: Sequence[Breakdown]) -> dict[str, str]:
    """Of every stage that is drawn, the same on all of a suite's axes."""
    names = dict.fromkeys(name for breakdown in group for name in _parts(breakdown))
    names.pop(_SMALL, None)
    return dict(zip(names, _COLOURS * 2, strict=False)) | {_SMALL: "#d0d5d9"}


def _parts(breakdown: Breakdown) -> dict[str, float]:
    """What is drawn of it."""
    least = _SMALLEST_SHARE * _whole(breakdown)
    parts = {name: value for name, value in breakdown.stages.items() if value >= least}
    small = sum(value for value in breakdown.stages.values() if value < least)
    return {name: value for name, value in {**parts, _SMALL: small}.items() if value > 0}


def _stacked(axes: Any, suite: str, group: Sequence[Breakdown], colours: Mapping[str, str]) -> None:
    longest = max(map(_whole, group))
    scale, unit = (1.0, "s") if longest >= 1 else (1e3, "ms") if longest >= 1e-3 else (1e6, "µs")
    shown: set[str] = set()
    for place, breakdown in enumerate(group):
        left = 0.0
        for name, value in _parts(breakdown).items():
            label = None if name in shown else name
            shown.add(name)
            axes.barh(
                *(place, value * scale),
                left=left * scale,
                height=0.66,
                color=colours[name],
                label=label,
            )
            left += value
        axes.annotate(
            duration(_whole(breakdown)),
            (left * scale, place),
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
    """Queries a second against clients, and how long a query waits."""
    answers = [r for r in report.records if r.task == "answer queries"]
    waits = sorted(
        (r for r in report.records if r.task == "wait for an answer"), key=lambda r: _clients(r)
    )
    if not answers:
        return None
    from matplotlib.ticker import EngFormatter, LogLocator

    figure = new_figure(_WIDE, 4.2, layout="constrained")
    left, right = figure.subplots(1, 2)
    for runner, colour, label in (
        (OURS, CURVE, "one search a client"),
        (f"{OURS}, one batch", MOMENT, "the same queries in one batch"),
    ):
        own = sorted((r for r in answers if r.runner == runner), key=_clients)
        if not own:
            continue
        x = [_clients(record) for record in own]
        left.plot(x, [1 / r.each for r in own], "o-", color=colour, label=label)
        left.fill_between(
            *(x, [r.items / r.high for r in own], [r.items / r.low for r in own]),
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
    left.set(ylabel="queries a second", ylim=(0, None))
    for name, style in (("median", "-"), ("p90", "--"), ("p99", ":")):
        values = [getattr(record, name) for record in waits]
        right.plot([_clients(r) for r in waits], values, style, color=CURVE, marker="o", label=name)
    right.set(ylabel="time that a query waits", yscale="log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(EngFormatter("s"))
    right.yaxis.set_minor_formatter("")
    for axes in (left, right):
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
    """Seconds against size on log axes, the device's limit below."""
    records = [r for r in report.records if r.suite == "scaling"]
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
        own = [record for record in records if record.task == task]
        x = [record.items for record in own]
        axes.loglog(x, [r.median for r in own], "o-", color=CURVE, label="measured")
        axes.fill_between(
            *(x, [r.low for r in own], [r.high for r in own]),
            color=CURVE,
            alpha=0.2,
            linewidth=0,
        )
        bounded = [r for r in own if r.limit is not None]
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
    figure.suptitle("Growth", x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _limits(report: Report) -> Any | None:
    """How near each stage comes to the device's own best."""
    own = [r for r in report.records if r.reached and r.suite != "scaling"]
    if not own:
        return None
    figure = new_figure(_WIDE, 0.25 * len(own) + 1.3, layout="constrained")
    axes = figure.subplots()
    for place, record in enumerate(own):
        share = 100 * (record.reached or 0.0)
        axes.barh(
            *(place, share), height=0.68, color=VARIANT if record.peer else CURVE, linewidth=0
        )
        axes.annotate(  # in a column of their own, where neither bar nor line is
            f"{share:.2g}% of {record.bound}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(range(len(own)), [_what(record) for record in own], fontsize=8)
    axes.axvline(100, color=MOMENT, linestyle="--", linewidth=1.2)
    shares = [100 * (r.reached or 1.0) for r in own]
    axes.set(
        xscale="log",
        xlim=(min(shares) / 1.5, max(160, 1.2 * max(shares))),
        ylim=(len(own) - 0.4, -0.6),
    )
    axes.xaxis.set_major_formatter("{x:g}%")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("of the measured limit; pale bars are others' code", color=INK)
    plain(axes)
    figure.suptitle("How far from the limit", x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _what(record: Record) -> str:
    """The task, what tells it from others of its name, and who did it."""
    own = record.parameters
    model = [str(own[name]) for name in ("model", "tower") if name in own]
    layers = own.get("layers")
    depth = [f"{layers} layer{'s' * (layers != 1)}"] if layers else []
    caches = [own["caches"]] if "caches" in own else []
    return ", ".join([record.task, *model, *depth, record.runner, *caches])
