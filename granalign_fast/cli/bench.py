"""``granalign bench``: how fast each stage is on this machine, and how far from its limits."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from granalign_fast.bench.suites import SUITES
from granalign_fast.output.visible import visible

from .options import Device, Models, Preset, check_extra, check_target
from .progress import Throttle
from .verbosity import is_quiet

if TYPE_CHECKING:
    from granalign_fast.bench.harness.records import Report
    from granalign_fast.bench.harness.runner import Settings


def bench(
    suites: Annotated[
        list[str] | None,
        typer.Argument(help=f"{', '.join(SUITES)}. Default: all."),
    ] = None,
    preset: Preset = "tuned",
    models: Models = None,
    random: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Models with random weights instead of real ones, such as "
            "llama3-8b,qwen2.5-vl-7b.",
        ),
    ] = None,
    device: Device = "cpu",
    rounds: Annotated[int, typer.Option(min=3, help="Most rounds of each pass.")] = 12,
    seconds: Annotated[
        float, typer.Option(min=0, help="A pass starts no further round after this time.")
    ] = 3.0,
    size: Annotated[float, typer.Option(help="Scale of the work; 0.1 for a quick look.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of all inputs.")] = 0,
    library: Annotated[
        Path | None,
        typer.Option(metavar="LIB", help="service: the library. Default: one that is made."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="service: JSON Lines with the key query."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="service: measure one that runs, such as http://host:8000.")
    ] = None,
    overload: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="service: how long it is asked ten times what it can do. Default: --seconds.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write everything as JSON.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw pictures.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a page with the pictures.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="BASE.json",
            help="Exit 1 if our code is slower than in this run.",
        ),
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN.json", help="Measure nothing; show an earlier run."),
    ] = None,
) -> None:
    """Measure this machine. Each output is compared with a reference in the same run.

    Exit code 1: an answer was wrong, a suite failed, or `--compare` found our own code slower.
    """
    from granalign_fast.bench.harness.records import Report, compare, other_machine
    from granalign_fast.bench.harness.report import print_changes, print_report, write_markdown
    from granalign_fast.bench.harness.runner import Settings

    for option, path in (("--json", out), ("--markdown", markdown)):
        check_target(option, path, inputs=(base, known))
    if plots is not None:
        check_extra("matplotlib", "drawing", "plot")
    earlier = None if base is None else Report.read(base)
    if known is not None:
        report = Report.read(known)
    else:
        settings = Settings(
            preset=preset,
            models=_folder(models),
            random=tuple(random.split(",")) if random else (),
            device=device,
            rounds=rounds,
            seconds=seconds,
            size=size,
            seed=seed,
            library=library,
            queries=queries,
            url=url,
            overload_seconds=overload,
        )
        report = _measure(suites or [], settings)
    print_report(report)
    if out is not None:
        report.write(out)
    pictures: list[Path] = []
    if plots is not None:
        from granalign_fast.bench.harness.plots import draw_report

        pictures = draw_report(report, plots)
    if markdown is not None:
        folder = markdown.resolve().parent
        write_markdown(report, markdown, [os.path.relpath(path, folder) for path in pictures])
    slower = False
    if earlier is not None:
        changes = compare(earlier, report)
        print_changes(changes)
        if differs := other_machine(earlier, report):
            typer.echo(visible(f"{base} was measured on another machine: {differs}"), err=True)
        slower = any(change.regression for change in changes)
    if report.failures or slower:
        raise typer.Exit(1)


def _measure(suites: list[str], settings: Settings) -> Report:
    """Run the suites; write each step to stderr in a terminal, and one now and then elsewhere."""
    from granalign_fast.bench.harness.runner import run_suites

    throttle, in_terminal = Throttle(), sys.stderr.isatty()

    def say(line: str) -> None:
        if not is_quiet() and (in_terminal or throttle.due()):
            typer.echo(line, err=True)

    return run_suites(suites, settings, say=say)


def _folder(models: Path | None) -> Path | None:
    """Return the folder that ``--models`` names, checked before anything is measured."""
    if models is None:
        return None
    from granalign_fast.models.manifest import exported_models
    from granalign_fast.pipeline import models_folder

    folder = models_folder(models)
    exported_models(folder)
    return folder
