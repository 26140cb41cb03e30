"""Tables for the terminal: metrics, evaluations, and findings of the doctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from granalign_fast.errors import counted
from granalign_fast.evaluation import Difference, Evaluation
from granalign_fast.output.tables import show

from .diagnosis import Finding

_HEADLINE = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7", "R1@0.5", "R1@0.7", "mIoU")


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics with their intervals, what was read, and the time of each stage."""
    for note in evaluation.notes:
        show(note)
    counts = evaluation.counts
    title = f"Percent, {counted(len(evaluation.scored), 'query', 'queries')}"
    if missing := str(evaluation.missing):
        title += f" ({missing})"
    if evaluation.metrics:
        print_metrics(evaluation.metrics, title=title, intervals=evaluation.intervals)
    table = Table(title="Seconds", title_justify="left")
    table.add_column("stage")
    table.add_column("s", justify="right")
    table.add_column("ms a query", justify="right")
    for stage, value in evaluation.seconds.items():
        table.add_row(stage, f"{value:.3f}", f"{1000 * value / counts['queries']:.4f}")
    show(table)
    show(", ".join(f"{value:,} {name}" for name, value in counts.items()))


def print_comparison(differences: Sequence[Difference], other: str) -> None:
    """Print the metrics of two evaluations and their differences, clear ones in bold."""
    table = Table(title=f"Percent, compared with {other}", title_justify="left")
    table.add_column("metric")
    for heading in ("this", "other", "difference", "95% interval"):
        table.add_column(heading, justify="right")
    for one in differences:
        figures = (f"{one.this:.2f}", f"{one.other:.2f}", f"{one.difference:+.2f}")
        bounds = "" if one.interval is None else "{:+.2f} to {:+.2f}".format(*one.interval)
        table.add_row(one.metric, *figures, bounds, style="bold" if one.clear else None)
    show(table)


def print_metrics(
    metrics: dict[str, Any],
    *,
    title: str = "Percent",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Print the brief table of QVHighlights, or the one table of another dataset, in percent.

    Args:
        metrics: as a scorer of `metrics.DATASETS` returns them.
        title: of the table.
        intervals: the 95% intervals of some metrics.
    """
    brief = metrics.get("brief", metrics)
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    if intervals:
        table.add_column("95% interval over videos", justify="right")
    for name in sorted(brief, key=lambda name: name not in _HEADLINE):
        style = "bold" if name in _HEADLINE else None
        cells = [name, f"{brief[name]:.2f}"]
        if intervals:
            cells.append("{:.2f} to {:.2f}".format(*intervals[name]) if name in intervals else "")
        table.add_row(*cells, style=style)
    show(table)


def print_findings(findings: list[Finding]) -> None:
    """Print a line for each finding; a missing one has a second line with its command."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark = Text("ok", "green") if finding.ok else Text("missing", "red")
        text = finding.found if finding.ok else f"{finding.found}\n  {finding.remedy}"
        table.add_row(mark if finding.ok or finding.needed else "-", finding.what, text)
    show(table)
