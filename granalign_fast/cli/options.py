"""What several commands share: their options, and what people see while they wait."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from granalign_fast.errors import GranAlignError, MissingExtraError

if TYPE_CHECKING:
    from granalign_fast.pipeline import ModelFolder, MomentRetriever

Preset = Annotated[
    str,
    typer.Option(help="tuned (the default), paper: the text to the letter, or recognition."),
]
Models = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="A folder of exported models (clip, llm, vlm), or: miniatures."
    ),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="A sentence-transformers folder, one that `export` wrote, or org/name@revision on "
        "the hub. Default: all-MiniLM-L6-v2.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or int8. Default: an exported folder's own, else fp32."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
PrefixGib = Annotated[
    float,
    typer.Option(min=0, help="GiB on disk for what the vision-language model makes of frames."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
NewFolder = Annotated[Path, typer.Argument(help="A folder to write; it must not exist.")]
InputFile = Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines, plain or .gz.")]


_MOST_GIB = 1 << 20
MINIATURES = "miniatures"
"""What `--models` may name in the place of a folder: the small models of the package itself."""


def check_target(option: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Refuse a file that could not be written, or of an unknown kind, before any work."""
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        listed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise GranAlignError(f"{option} {path}: expected a name that ends in {listed}")
    if not path.resolve().parent.is_dir():
        raise GranAlignError(f"{option} {path}: its folder is not there; make it first")
    if path.is_dir():
        raise GranAlignError(f"{option} {path}: got a folder, expected the name of a file")


def check_extra(package: str, what: str, extra: str) -> None:
    """Refuse before any work what needs an extra that is not installed."""
    if find_spec(package) is None:
        raise MissingExtraError(what, extra)


def print_json(value: Any) -> None:
    """One line on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")


def short(path: Path) -> str:
    """Relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return min(str(path), relative, key=len)


def models_folder(name: Path) -> Path:
    """The folder that ``--models`` names, or that of the package's own."""
    if str(name) == MINIATURES and not name.exists():
        from granalign_fast.miniatures import MODELS

        return MODELS
    return name


def open_models(folder: Path, device: str, prefix_gib: float) -> ModelFolder:
    """The models, with what they made of frames kept in memory and in the cache folder."""
    from granalign_fast.files import default_cache
    from granalign_fast.models.prefix_cache import DiskTier, MemoryTier, PrefixCache
    from granalign_fast.pipeline import ModelFolder

    if not 0 <= prefix_gib <= _MOST_GIB:
        raise GranAlignError(f"--prefix-gib: got {prefix_gib}, expected 0 to {_MOST_GIB} GiB")
    kept = PrefixCache(
        [MemoryTier(1 << 30), DiskTier(default_cache() / "prefixes", int(prefix_gib * (1 << 30)))]
    )
    return ModelFolder(models_folder(folder), device=device, cache=kept)


def open_retriever(
    preset: str,
    encoder: str | None,
    precision: str | None,
    device: str,
    *,
    models: ModelFolder | None = None,
    top: int | None = None,
    cache: bool = False,
) -> MomentRetriever:
    """A retriever of these options."""
    from dataclasses import replace

    from granalign_fast.config import preset as find

    config = find(preset)
    if top is not None:
        config = replace(config, top=top)
    from granalign_fast.files import default_cache
    from granalign_fast.models.embedding_cache import CachedEncoder
    from granalign_fast.pipeline import MomentRetriever, SentenceEncoder

    if models is not None and encoder is None and precision is None:
        model = models.encoder
    else:
        model = SentenceEncoder(encoder, precision=precision, device=device)
    own = CachedEncoder(model, default_cache()) if cache else model
    if models is not None:
        return models.retriever(config, encoder=own)
    return MomentRetriever(own, config, device=device)
