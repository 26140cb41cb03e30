"""Tables for the terminal: metrics, evaluations, and findings of the doctor."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from granalign_fast.evaluation import Evaluation
from granalign_fast.output.tables import show

from .diagnosis import Finding

_HEADLINE = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7")


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON: the benchmark's brief keys, all tables, seconds and counts."""
    return {
        **evaluation.metrics["brief"],
        "tables": {name: table for name, table in evaluation.metrics.items() if name != "brief"},
        "seconds": {stage: round(value, 4) for stage, value in evaluation.seconds.items()},
        **evaluation.counts,
    }


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the metrics and the time of each stage."""
    print_metrics(evaluation.metrics)
    table = Table(title="Seconds", title_justify="left")
    table.add_column("stage")
    table.add_column("s", justify="right")
    table.add_column("ms a query", justify="right")
    queries = evaluation.counts["queries"]
    for stage, value in evaluation.seconds.items():
        table.add_row(stage, f"{value:.3f}", f"{1000 * value / queries:.4f}")
    show(table)
    show(", ".join(f"{value:,} {name}" for name, value in evaluation.counts.items()))


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print the brief table of QVHighlights, or the one table of another data set, in percent."""
    brief = metrics.get("brief", metrics)
    table = Table(title="Percent", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(brief, key=lambda name: name not in _HEADLINE):
        style = "bold" if name in _HEADLINE else None
        table.add_row(name, f"{brief[name]:.2f}", style=style)
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
