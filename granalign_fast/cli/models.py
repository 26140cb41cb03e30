"""``granalign models``: sets of published models, and getting one onto this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.output.visible import visible

from .export import Check, ended_by_signals, report_export
from .options import Json, print_json
from .progress import status
from .verbosity import is_quiet, with_verbosity

if TYPE_CHECKING:
    from rich.table import Table

    from granalign_fast.export.model_set import PlannedModel, SetPlan
    from granalign_fast.models.published_records import ModelSet, PublishedModel

_ALTERNATIVE = "fp16"
"""Precision in which the list shows models that are in no set."""

models_app = typer.Typer(no_args_is_help=True, help="Show and get sets of published models.")


@models_app.command("list")
@with_verbosity
def models_list(as_json: Json = False) -> None:
    """Show the sets: machine, size on disk, memory, licences, gates and languages.

    Models that can take the place of a set's, by `granalign models get SET --with NAME`, follow.

    Sizes and memory are computed from the numbers of the models, not measured.
    """
    from granalign_fast.models.published import ALTERNATIVES, MODEL_SETS

    records = [set_record(models) for models in MODEL_SETS.values()]
    others = [model_record(model, _ALTERNATIVE) for model in ALTERNATIVES.values()]
    if as_json:
        print_json({"sets": records, "alternatives": others})
        return
    from rich.table import Table

    from granalign_fast.output.tables import show

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    table.add_column("precision", no_wrap=True)
    for name in ("fetch", "disk", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            f"{record['name']}: {record['machine']}", record["precision"], *_sizes(record)
        )
        _add_models(table, record["models"])
    table.add_row("in place of a set's model: --with NAME")
    _add_models(table, others)
    show(table)
    typer.echo(
        "in GB of 10^9 bytes, computed, not measured; memory is of all models at once, with the "
        "default batches\n* the licence is from memory: read the model's card"
    )


def _add_models(table: Table, records: list[dict[str, Any]]) -> None:
    """Add two rows for each model: its sizes, then its licence and languages."""
    for model in records:
        table.add_row(f"  {model['name']}", model["precision"], *_sizes(model))
        licence = model["licence"] + " *" * (not model["licence_verified"])
        gated = ", gated" * model["gated"]
        table.add_row(f"    {licence}{gated}; {_spoken(model['languages'])}")


def set_record(models: ModelSet) -> dict[str, Any]:
    """Return a set as JSON; bytes are those that `export.sizes` computes."""
    from granalign_fast.export.sizes import set_memory_bytes
    from granalign_fast.models.published import precision_of

    records = [
        model_record(model, precision_of(model.kind, models.precision)) for model in models.models
    ]
    return {
        "name": models.name,
        "machine": models.machine,
        "precision": models.precision,
        "download_bytes": sum(record["download_bytes"] for record in records),
        "disk_bytes": sum(record["disk_bytes"] for record in records),
        "memory_bytes": set_memory_bytes(models),
        "models": records,
    }


def model_record(model: PublishedModel, precision: str) -> dict[str, Any]:
    """Return a model in a precision as JSON; bytes are those that `export.sizes` computes."""
    from granalign_fast.export.sizes import disk_bytes, memory_bytes

    return {
        "kind": model.kind,
        "name": model.name,
        "revision": model.revision,
        "precision": precision,
        "parameters": model.parameters,
        "download_bytes": model.download,
        "disk_bytes": disk_bytes(model, precision),
        "memory_bytes": memory_bytes(model, precision),
        "licence": model.licence,
        "licence_verified": model.verified,
        "gated": model.gated,
        "languages": model.languages,
        "read_in": model.read_in,
    }


def _sizes(record: dict[str, Any]) -> Iterator[str]:
    return (f"{record[f'{name}_bytes'] / 1e9:.1f}" for name in ("download", "disk", "memory"))


def _spoken(languages: str) -> str:
    """Return the languages as a part of a line: ``"English"``, ``"119 languages"``."""
    return languages if languages[0].isupper() else f"{languages} languages"


@models_app.command("get")
@with_verbosity
def models_get(
    name: Annotated[str, typer.Argument(metavar="SET", help="As `granalign models list` shows.")],
    out: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder; models that it already has stay.")
    ] = Path("models"),
    precision: Annotated[
        str | None, typer.Option(help="fp16, fp32 or int4. Default: that of the set.")
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder with copies of models, each at ORG/NAME below it; they are used in "
            "place of the hub's.",
        ),
    ] = None,
    instead: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME",
            help="A model of `granalign models list` in place of the set's of its kind; can be "
            "repeated.",
        ),
    ] = None,
    check: Check = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Fetch the models of a set, verify and export them. Can be repeated after an interruption."""
    from granalign_fast.export.model_set import plan_model_set

    with status(f"looking for the models of {name}"):
        plan = plan_model_set(
            name, out, precision=precision, sources=sources, instead=instead or ()
        )
    pending = [part for part in plan.parts if part.pending]
    if not is_quiet() or (pending and not yes):
        _announce(plan)
    if pending:
        plan.check_space()
        if not yes:
            _ask(plan)
    with ended_by_signals():
        failed = _get(plan, check)
    if failed:
        raise typer.Exit(1)


def _get(plan: SetPlan, check: bool | None) -> bool:
    """Fetch and export what a plan names, and report it; return whether a model failed."""
    from granalign_fast.export.model_set import get_planned

    failed = False
    for part, problem in get_planned(plan, check=check, phase=_phase):
        if problem:
            failed = True
            typer.echo(visible(f"granalign: {problem}"), err=True)
        elif part.exported:
            typer.echo(f"kept: {visible(str(part.out))}")
        else:
            report_export(part.out)
    return failed


def _announce(plan: SetPlan) -> None:
    """Say on stderr what will be done, model by model."""
    for part in plan.parts:
        typer.echo(visible(f"{part.model.kind}: {part.model.source}: {_what(part)}"), err=True)
    pending = [part for part in plan.parts if part.pending]
    fetched, written = (
        sum(getattr(part, name) for part in pending) / 1e9 for name in ("download", "disk")
    )
    line = f"to fetch {fetched:.1f} GB, to write {written:.1f} GB to {plan.out}"
    typer.echo(visible(line), err=True)


def _what(part: PlannedModel) -> str:
    if part.exported:
        return f"is there ({part.out})"
    if part.local is not None:
        return f"copy in {part.local}"
    if part.problem:
        return f"cannot be fetched; {part.download / 1e9:.1f} GB, by the table"
    if not part.download:
        return "is in the cache of the hub"
    licence = f"{part.model.licence}{', gated' * part.model.gated}"
    return f"fetch {part.download / 1e9:.1f} GB, {licence}"


def _ask(plan: SetPlan) -> None:
    """Ask whether to go on.

    Raises:
        GranAlignError: there is no terminal to ask on.
        typer.Abort: the answer is no.
    """
    if not sys.stdin.isatty():
        raise GranAlignError(
            f"models get {plan.models.name}: got no terminal to ask on, expected --yes"
        )
    typer.confirm("Go on?", abort=True, err=True)


@contextmanager
def _phase(kind: str, text: str) -> Iterator[None]:
    """Show a download or an export; a download has bars of its own in a terminal."""
    if kind == "fetch" and is_quiet():
        from granalign_fast.models.hub import without_bars

        with without_bars():
            yield
    elif kind == "fetch" and sys.stderr.isatty():
        typer.echo(visible(text), err=True)
        yield
    else:
        with status(text):
            yield
