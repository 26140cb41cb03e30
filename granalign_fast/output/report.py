"""How results are shown: tables for people, records for ``--json``."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from granalign_fast.doctor import Finding
from granalign_fast.evaluation import Evaluation
from granalign_fast.index import VideoIndex
from granalign_fast.types import Moment, SearchResult

_HEADLINE = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7")


def show(what: RenderableType) -> None:
    """Print a table or a line; what looks like mark-up in somebody's text is shown as it is."""
    Console(highlight=False, markup=False, emoji=False).print(what)


def clock(seconds: float, *, fine: bool = True) -> str:
    """``1:02.0`` for 62 seconds, ``1:00:02.0`` an hour later; without tenths unless `fine`."""
    tenths = round(seconds * 10) if fine else int(seconds + 0.5) * 10
    minutes, rest = divmod(tenths, 600)
    last = f"{rest / 10:04.1f}" if fine else f"{rest // 10:02}"
    if minutes < 60:
        return f"{minutes}:{last}"
    return f"{minutes // 60}:{minutes % 60:02}:{last}"


def peak_caption(index: VideoIndex, result: SearchResult, moment: Moment) -> str:
    """The caption of the moment's clip that fits the query best."""
    clips = np.arange(len(result.saliency)) * index.video.clip_seconds
    inside = (clips >= moment.start) & (clips < moment.end)
    best = int(np.where(inside, result.saliency, -1).argmax())
    return index.video.captions[best]


def search_record(index: VideoIndex, result: SearchResult) -> dict[str, Any]:
    """A search as JSON: moments in seconds, the saliency of every clip, how it came about."""
    return {
        "vid": result.vid,
        "query": result.query,
        "rewrites": None if result.rewrites is None else result.rewrites.to_record(),
        "exists": None if result.exists is None else round(result.exists, 4),
        "clip_seconds": index.video.clip_seconds,
        "moments": [
            {
                "start": moment.start,
                "end": moment.end,
                "score": round(moment.score, 6),
                "caption": peak_caption(index, result, moment),
            }
            for moment in result.moments
        ],
        "saliency": [round(value, 4) for value in result.saliency.tolist()],
        "aware": {str(clip): caption for clip, caption in result.aware.items()},
        "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
    }


def print_moments(index: VideoIndex, result: SearchResult) -> None:
    """A table of moments, best first."""
    table = Table(title=f"{result.query}  ({result.vid})", title_justify="left")
    for name in ("start", "end", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("its best clip")
    for moment in result.moments:
        table.add_row(
            clock(moment.start),
            clock(moment.end),
            f"{moment.score:.3f}",
            peak_caption(index, result, moment),
        )
    show(table)
    if result.exists is not None:
        show(f"shown at all: {result.exists:.0%} likely")


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON: the benchmark's brief keys on top, all tables, seconds, counts."""
    return {
        **evaluation.metrics["brief"],
        "tables": {name: table for name, table in evaluation.metrics.items() if name != "brief"},
        "seconds": {stage: round(value, 4) for stage, value in evaluation.seconds.items()},
        **evaluation.counts,
    }


def print_evaluation(evaluation: Evaluation) -> None:
    """The metrics, and where the time went."""
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
    """The brief table of QVHighlights, or the flat one of the other data sets; percent."""
    brief = metrics.get("brief", metrics)
    table = Table(title="Percent", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(brief, key=lambda name: name not in _HEADLINE):
        style = "bold" if name in _HEADLINE else None
        table.add_row(name, f"{brief[name]:.2f}", style=style)
    show(table)


def print_findings(findings: list[Finding]) -> None:
    """A line each; what is missing comes with the command that brings it."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark = Text("ok", "green") if finding.ok else Text("missing", "red")
        text = finding.found if finding.ok else f"{finding.found}\n  {finding.remedy}"
        table.add_row(mark if finding.ok or finding.needed else "-", finding.what, text)
    show(table)
