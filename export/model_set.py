"""A whole set of published models in one folder: planned, fetched, verified and exported."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export.checks.transformers import compares
from granalign_fast.files import read_json
from granalign_fast.models import hub
from granalign_fast.models.manifest import CLIP, LLM, SENTENCE_ENCODER, VLM
from granalign_fast.models.published import MODEL_SETS, PRECISIONS, model_set, precision_of
from granalign_fast.models.published_records import ModelSet, PublishedModel

from .frame_encoder import export_clip
from .llm import export_llm
from .sentence_encoder import export_sentence_encoder
from .sizes import disk_bytes
from .vlm import export_vlm

_EXPORTS: dict[str, Callable[..., Path]] = {
    SENTENCE_ENCODER: export_sentence_encoder,
    CLIP: export_clip,
    LLM: export_llm,
    VLM: export_vlm,
}

Phase = Callable[[str, str], AbstractContextManager[None]]
"""Called with ``"fetch"`` or ``"export"`` and a line for the user; the work is done inside."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """The work for one model of a set.

    Attributes:
        model: the model.
        out: the folder of its export.
        precision: of its export.
        exported: whether `out` holds it already.
        local: a copy of the source that is used in place of the hub's; None if there is none.
        download: bytes to fetch.
        stated: whether the hub stated these bytes; otherwise they are those of the table.
        problem: why it cannot be fetched; None if it can.
    """

    model: PublishedModel
    out: Path
    precision: str
    exported: bool = False
    local: Path | None = None
    download: int = 0
    stated: bool = True
    problem: str | None = None

    @property
    def disk(self) -> int:
        """Bytes of the export, as `sizes` computes them; 0 if it is there already."""
        return 0 if self.exported else disk_bytes(self.model, self.precision)

    @property
    def pending(self) -> bool:
        """True if there is work that can be done."""
        return not self.exported and self.problem is None


@dataclass(frozen=True, slots=True)
class SetPlan:
    """The work for a set: one `PlannedModel` of each kind.

    `out` is the folder of all exports, `copies` the one in which local copies may lie, and
    `precision` what was asked for, or else the set's own.
    """

    models: ModelSet
    out: Path
    copies: Path
    parts: tuple[PlannedModel, ...]
    precision: str

    def check_space(self) -> None:
        """Raise unless the disks have room for what is fetched and exported.

        Raises:
            GranAlignError: a disk is too small; nothing has been fetched.
        """
        pending = [part for part in self.parts if part.pending]
        fetched = sum(part.download for part in pending)
        written = sum(part.disk for part in pending)
        needs: dict[int, tuple[Path, int]] = {}
        for folder, size in (
            *([(hub.cache_folder(), fetched)] if fetched else []),
            (self.out, written),
        ):
            place = _existing(folder)
            device = place.stat().st_dev
            needs[device] = place, size + needs.get(device, (place, 0))[1]
        for place, size in needs.values():
            free = shutil.disk_usage(place).free
            if free < size:
                raise GranAlignError(
                    f"{place}: got {free / 1e9:.1f} GB of free disk, expected {size / 1e9:.1f} GB "
                    f"for {self.models.name}; make room, or name a folder on another disk (HF_HOME "
                    f"names that of the downloads)"
                )


def plan_model_set(
    name: str,
    out: str | Path,
    *,
    precision: str | None = None,
    sources: str | Path | None = None,
    instead: Sequence[str] = (),
) -> SetPlan:
    """Look at `out`, at local copies and at the hub, and return what is to be done for a set.

    Args:
        name: one of `published.MODEL_SETS`.
        out: the folder of the exports, each in a folder of its kind.
        precision: one of `published.PRECISIONS`; None for that of the set. `precision_of`
            says what each model gets.
        sources: a folder of local copies, each at ``org/name`` below it.
        instead: models that take the place of the set's, as for `published.model_set`.

    Raises:
        GranAlignError: there is no such set, model or precision, or `out` holds another model or
            one of another precision.
        MissingExtraError: huggingface_hub is needed and not installed.
    """
    models, out = model_set(name, instead), Path(out)
    precision = models.precision if precision is None else precision
    if precision not in PRECISIONS:
        raise GranAlignError(f"precision {precision!r}: expected one of {sorted(PRECISIONS)}")
    if out.exists() and not out.is_dir():
        raise GranAlignError(f"{out}: got a file, expected a folder for the exports; name another")
    if sources is not None and not Path(sources).is_dir():
        raise GranAlignError(f"{sources}: no such folder; expected one with ORG/NAME below it")
    # Look at all folders first: a wrong one ends the call before any request.
    parts = []
    for model in models.models:
        folder, of_model = out / model.kind, precision_of(model.kind, precision)
        exported = _is_exported(model, folder, of_model)
        parts.append(PlannedModel(model, folder, of_model, exported))
    copies = out / "sources" if sources is None else Path(sources)
    plan = SetPlan(models, out, copies, tuple(parts), precision)
    return replace(plan, parts=tuple(_located(part, plan, sources is not None) for part in parts))


def _located(part: PlannedModel, plan: SetPlan, with_copies: bool) -> PlannedModel:
    """Find the source of a planned model: a local copy, or what the hub has."""
    model = part.model
    if part.exported:
        return part
    copy = plan.copies / model.name
    if with_copies and copy.is_dir():
        return replace(part, local=copy)
    try:
        found = hub.look_up(model.name, model.revision)
    except hub.HubError as error:
        if error.missing and hub.cached_folder(model.name, model.revision) is not None:
            return part
        problem = _problem(error, model, plan)
        return replace(part, download=model.download, stated=False, problem=problem)
    return replace(part, download=found.missing_bytes())


def _problem(error: GranAlignError, model: PublishedModel, plan: SetPlan) -> str:
    """Return a line that says what is missing and what to do."""
    if isinstance(error, hub.HubError) and error.missing:
        command = ["granalign", "models", "get", plan.models.name, str(plan.out)]
        usual = MODEL_SETS[plan.models.name].models
        for other in plan.models.models:
            command += ["--with", other.name] if other not in usual else []
        if plan.precision != plan.models.precision:
            command += ["--precision", plan.precision]
        return (
            f"{error}: {plan.copies / model.name} ({_gb(model.download)}); then run "
            f"{shlex.join((*command, '--sources', str(plan.copies)))}"
        )
    if model.gated:
        others = [s.name for s in MODEL_SETS.values() if not any(m.gated for m in s.models)]
        return f"{error}; sets without gated models: {', '.join(others)}"
    return str(error)


def get_planned(
    plan: SetPlan, *, check: bool | None = None, phase: Phase | None = None
) -> Iterator[tuple[PlannedModel, str]]:
    """Fetch and export the models of a plan, one after another.

    One that fails costs no other. An export that is there stays, and a download continues at the
    file where it was interrupted, so the whole can be repeated.

    Args:
        plan: from `plan_model_set`.
        check: whether to compare exports with transformers; None to do so if it is installed.
        phase: shows what is being done; None shows nothing.

    Yields:
        Each model, and why it is not there; an empty text if it is.

    Raises:
        GranAlignError: a disk is too small.
        MissingExtraError: an extra that the export needs is not installed.
    """
    compares(check)  # an extra that is missing ends the call before any download
    plan.check_space()
    shown: Phase = (lambda _, text: nullcontext()) if phase is None else phase
    for part in plan.parts:
        problem = part.problem or ""
        if part.pending:
            try:
                _get(part, shown, check)
            except MissingExtraError:
                raise
            except GranAlignError as error:
                problem = _problem(error, part.model, plan)
        yield part, problem


def export_model_set(
    name: str,
    out: str | Path,
    *,
    precision: str | None = None,
    sources: str | Path | None = None,
    check: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Fetch every model of a set and export it to `out`, each to the folder of its kind.

    A model that `out` holds already stays as it is, so an interrupted call can be repeated.

    Args:
        name: one of `published.MODEL_SETS`.
        out: a folder to write to; it is created if it does not exist.
        precision: as for `plan_model_set`.
        sources: as for `plan_model_set`.
        check: as for `get_planned`.
        progress: called with a line when the download or the export of a model begins.

    Raises:
        GranAlignError: as for `plan_model_set`; a disk is too small; or models cannot be fetched
            or exported. The message names them all, after all others were exported.
        MissingExtraError: an extra that the export needs is not installed.
    """

    def phase(_: str, text: str) -> AbstractContextManager[None]:
        if progress is not None:
            progress(text)
        return nullcontext()

    plan = plan_model_set(name, out, precision=precision, sources=sources)
    problems = [problem for _, problem in get_planned(plan, check=check, phase=phase) if problem]
    if problems:
        raise GranAlignError("; ".join(problems))
    return plan.out


def _get(part: PlannedModel, phase: Phase, check: bool | None) -> None:
    """Fetch one model and export it."""
    model = part.model
    source = model.source if part.local is None else str(part.local)
    if part.local is None:
        with phase("fetch", f"{model.kind}: fetching {model.name}, {_gb(part.download)}"):
            hub.fetch(model.name, model.revision)
    with phase("export", f"{model.kind}: exporting {model.name} in {part.precision}"):
        _EXPORTS[model.kind](source, part.out, precision=part.precision, check=check)


def _is_exported(model: PublishedModel, out: Path, precision: str) -> bool:
    """Return whether `out` holds this model; raise if it holds another one.

    The manifest of a model that was exported from a local copy has the name of the copy's folder.
    """
    if not out.exists():
        return False
    record = read_json(out / "manifest.json")
    for key, expected in (
        ("kind", (model.kind,)),
        ("source", (model.source, Path(model.name).name)),
        ("precision", (precision,)),
    ):
        got = record.get(key) if isinstance(record, dict) else None
        if got not in expected:
            raise GranAlignError(
                f"{out}: got a model of {key} {got!r}, expected {expected[0]!r}; "
                f"name another folder, or delete this one"
            )
    return True


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
