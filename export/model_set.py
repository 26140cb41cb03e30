"""The export of a whole set of published models into one folder, one model after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.files import read_json
from granalign_fast.models.published import PublishedModel, model_set

from .frame_encoder import export_clip
from .llm import export_llm
from .vlm import export_vlm

_EXPORTS: dict[str, Callable[..., Path]] = {
    "clip": export_clip,
    "llm": export_llm,
    "vlm": export_vlm,
}
_PRECISIONS = ("fp32", "fp16", "int4")


def export_model_set(
    name: str,
    out: str | Path,
    *,
    precision: str = "fp16",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Export every model of a set to `out`, each to the folder of its kind.

    A model that `out` holds already stays as it is, so an interrupted call can be repeated.

    Args:
        name: one of `published.MODEL_SETS`.
        out: a folder to write to; it is created if it does not exist.
        precision: ``"fp16"``, ``"fp32"`` or ``"int4"``; with int4, CLIP is exported in fp32.
        progress: called with the model's kind and the name of each step as it begins.

    Raises:
        GranAlignError: there is no such set or precision, `out` holds another model or one of
            another precision, or a model cannot be fetched or exported.
        MissingExtraError: an extra that the export needs is not installed.
    """
    if precision not in _PRECISIONS:
        raise GranAlignError(f"precision {precision!r}: expected one of {sorted(_PRECISIONS)}")
    models, out = model_set(name), Path(out)
    # Look at all folders first: a wrong one ends the call before any download.
    missing = [model for model in models if not _is_exported(model, out / model.kind, precision)]
    for model in missing:
        _export(model, out / model.kind, precision, progress)
    return out


def _is_exported(model: PublishedModel, out: Path, precision: str) -> bool:
    """Return whether `out` holds this model; raise if it holds another one."""
    if not out.exists():
        return False
    record = read_json(out / "manifest.json")
    for key, expected in (
        ("kind", model.kind),
        ("source", model.source),
        ("precision", _precision(model, precision)),
    ):
        got = record.get(key) if isinstance(record, dict) else None
        if got != expected:
            raise GranAlignError(
                f"{out}: got a model of {key} {got!r}, expected {expected!r}; "
                f"name another folder, or delete this one"
            )
    return True


def _precision(model: PublishedModel, precision: str) -> str:
    """Return a model's precision in a set of this precision: CLIP has no int4."""
    return "fp32" if (model.kind, precision) == ("clip", "int4") else precision


def _export(
    model: PublishedModel, out: Path, precision: str, progress: Callable[[str], None] | None
) -> None:
    """Export one model; for a gated one, an error says how to get access."""
    tell = progress and (lambda step: progress(f"{model.kind}: {step}"))
    try:
        _EXPORTS[model.kind](
            model.source, out, precision=_precision(model, precision), progress=tell
        )
    except GranAlignError as error:
        if not model.gated or isinstance(error, MissingExtraError):
            raise
        raise GranAlignError(
            f"{error} ({model.name} is gated: accept its {model.licence} on the hub and log in, or "
            f"take the set 'open')"
        ) from None
