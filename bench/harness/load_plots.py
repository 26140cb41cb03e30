"""Plot what a service did under load: answers a second, times, and what it refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from granalign_fast.output.plot import CURVE, INK, MOMENT, VARIANT, new_figure, plain

from .load_figures import LoadFigures
from .records import Report

_WIDE = 9.5
_QUANTILES = (("p50", "-"), ("p95", "--"), ("p99", ":"))


def draw_loads(report: Report) -> Any | None:
    """Draw closed loops by their number of clients, and open loops by their share of the capacity.

    The times of an open loop count from when a query was to be sent.
    """
    closed = sorted(
        (load for load in report.loads if load.clients is not None),
        key=lambda one: one.clients or 0,
    )
    opened = sorted(
        (load for load in report.loads if load.share is not None and load.share <= 2),
        key=lambda one: one.share or 0.0,
    )
    if not closed or not opened:
        return None
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(_WIDE, 7.2, layout="constrained")
    (rates, waits), (answers, delays) = figure.subplots(2, 2)
    clients = [load.clients for load in closed]
    rates.plot(clients, [load.rate for load in closed], "o-", color=CURVE)
    _from_nothing(rates, "answers a second")
    _times(waits, clients, closed)
    for axes in (rates, waits):
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(count) for count in clients])
        axes.set_xlabel("clients, each with one search after another", color=INK)
        plain(axes)
    shares = [load.share or 0.0 for load in opened]
    answers.plot(
        *(shares, [load.offered for load in opened]), "--", color=VARIANT, label="queries that came"
    )
    answers.plot(shares, [load.rate for load in opened], "o-", color=CURVE, label="answers")
    refused = [sum(load.others.values()) / load.seconds for load in opened]
    answers.plot(shares, refused, "s-", color=MOMENT, label="refused")
    _from_nothing(answers, "a second")
    answers.legend(frameon=False, fontsize=9)
    _times(delays, shares, opened)
    for axes in (answers, delays):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("queries at random times, share of the capacity", color=INK)
        plain(axes)
    figure.suptitle("The service under load", x=0.01, ha="left", color=INK, fontsize=14)
    return figure


def _from_nothing(axes: Any, label: str) -> None:
    """Let an axis begin at 0, with room above what was drawn."""
    axes.set(ylabel=label, ylim=(0, 1.1 * max(axes.get_ylim()[1], 1e-9)))


def _times(axes: Any, places: Sequence[Any], loads: Sequence[LoadFigures]) -> None:
    """Draw the quantiles of the times of each load."""
    from matplotlib.ticker import EngFormatter, LogLocator

    for name, style in _QUANTILES:
        values = [getattr(load, name) for load in loads]
        axes.plot(places, values, style, color=CURVE, marker="o", label=name)
    axes.set(ylabel="time of an answer", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.yaxis.set_minor_formatter("")
    axes.legend(frameon=False, fontsize=9)
