"""Where models come from, and the manifest that an exported folder carries."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.files import known_sha256, read_json, replacing

FORMAT_VERSION = 1
"""Of exported folders: rises whenever the same weights would give other embeddings."""
CLIP_FORMAT_VERSION = 2
"""Of CLIP's folders, whose image tower takes bytes from here on."""

SENTENCE_ENCODER = "sentence-encoder"
CLIP = "clip"


def fingerprint(source_sha256: str, precision: str, version: int = FORMAT_VERSION) -> str:
    """Names the embeddings of a model: its weights and settings, the precision and the format."""
    return f"{source_sha256[:16]}-{precision}-v{version}"


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
class FrameEncoderManifest(Manifest):
    """The manifest of an exported CLIP or SigLIP; `preprocessing` is a `clip.Preprocessing`."""

    format_version: int = CLIP_FORMAT_VERSION
    kind: str = CLIP
    dim: int
    max_tokens: int
    preprocessing: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LlmManifest(Manifest):
    """The manifest of an exported language model; `source_sha256` covers its tokenizer too."""

    kind: str = "llm"
    architecture: str
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    eos_ids: list[int]

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Of keys and values."""
        return np.dtype(np.float16 if self.precision == "fp16" else np.float32)


@dataclass(frozen=True, kw_only=True)
class VlmManifest(LlmManifest):
    """The manifest of an exported vision-language model.

    Attributes:
        image_size: height and width in pixels, to which every frame is resized.
        image_grid: rows and columns of the tokens that a frame becomes.
        image_token: the id that stands for a frame in a prompt.
        resample: Pillow's number of the filter that resizes frames.
        hidden: values of a token's embedding.
    """

    kind: str = "vlm"
    image_size: list[int]
    image_grid: list[int]
    image_token: int
    resample: int
    hidden: int

    @property
    def image_tokens(self) -> int:
        """Tokens of one frame."""
        rows, columns = self.image_grid
        return rows * columns


LLM, VLM = "llm", "vlm"


KINDS = (SENTENCE_ENCODER, CLIP, LLM, VLM)
"""What a manifest may say, in the order in which a query meets them."""


def exported_models(folder: str | Path) -> dict[str, Path]:
    """The exported models below a folder, by kind; each in a folder of its own, whatever its name.

    Raises:
        GranAlignError: there is no such folder, no model in it, or two of one kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GranAlignError(f"{folder}: no such folder; expected one of exported models")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/manifest.json")):
        record = read_json(path)
        kind = record.get("kind") if isinstance(record, dict) else None
        if kind not in KINDS:
            continue
        if kind in found:
            raise GranAlignError(
                f"{folder}: got two models of kind {kind!r}, {found[kind].name} and "
                f"{path.parent.name}, expected one; move the other away"
            )
        found[kind] = path.parent
    if not found:
        raise GranAlignError(
            f"{folder}: got no exported model, expected folders that `granalign export` wrote"
        )
    return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported model of any kind, every file read and checked again.

    Raises:
        GranAlignError: it is no exported model, or a file of it was altered.
    """
    record = read_json(folder / "manifest.json")
    kind = record.get("kind") if isinstance(record, dict) else None
    classes: tuple[type[Manifest], ...] = (
        SentenceManifest,
        FrameEncoderManifest,
        LlmManifest,
        VlmManifest,
    )
    for manifest in classes:
        if manifest.kind == kind:
            return manifest.read(folder, again=True)
    raise GranAlignError(
        f"{folder / 'manifest.json'}: got kind {kind!r}, expected one of: {', '.join(KINDS)}; "
        f"export the model again"
    )
