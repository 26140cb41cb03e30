"""The manifest of an exported model's folder: its kind, its source, its files and their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

import numpy as np

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.files import known_sha256, read_json, replacing
from granalign_fast.parsing.json_types import matches
from granalign_fast.reading import checked_file

from .image_layout import ImageLayout, still_image
from .manifest_checks import check_external_data, check_names, check_values

FORMAT_VERSION = 1
"""Version of exported folders. It rises whenever the same weights would give other embeddings."""

CLIP_FORMAT_VERSION = 2
"""Version of CLIP's and SigLIP's folders. Since version 2 the image tower takes bytes."""

SENTENCE_ENCODER, CLIP, LLM, VLM = "sentence-encoder", "clip", "llm", "vlm"

KINDS = (SENTENCE_ENCODER, CLIP, LLM, VLM)
"""Every value of a manifest's `kind`, in the order in which a query runs the models."""

VIDEO_INDEX = "video-index"
"""The kind in the manifest of an index, which may lie beside models."""

_HASH_DIGITS = 16
"""Hex digits of the source's SHA-256 at the start of a fingerprint."""


def same_weights(one: str, other: str) -> bool:
    """Return whether two models have the same weights and settings, in whatever precision.

    Args:
        one: a fingerprint, or the `source_sha256` of a manifest.
        other: likewise.
    """
    return one[:_HASH_DIGITS] == other[:_HASH_DIGITS]


def fingerprint(source_sha256: str, precision: str, version: int = FORMAT_VERSION) -> str:
    """Return the name of a model's results, from its weights and settings, precision and format."""
    return f"{source_sha256[:_HASH_DIGITS]}-{precision}-v{version}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The fields of ``manifest.json`` that exported folders of every kind have.

    Attributes:
        format_version: see `FORMAT_VERSION`.
        kind: one of `KINDS`.
        source: the source model's name.
        weights_sha256: hash of the source's ``model.safetensors`` alone.
        source_sha256: hash of the source's weights and of all settings that change its results, so
            that it identifies the results.
        files: SHA-256 of every other file in the folder, by name.
        precision: such as ``"fp32"``.
        tools: versions of the packages that wrote the folder.
        validation: measured differences from the source: those of the comparison with
            transformers, or without it those of `self_check`.
        comparison: what the export was compared with, in words.
        self_check: measured differences from the source in NumPy and float64.
    """

    format_version: int = FORMAT_VERSION
    kind: str = ""  # set by each subclass
    source: str
    weights_sha256: str
    source_sha256: str
    files: dict[str, str]
    precision: str
    tools: dict[str, str]
    validation: dict[str, float]
    comparison: str = ""
    self_check: dict[str, float] = field(default_factory=dict)

    @classmethod
    def _current(cls, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with the keys of this version."""
        return record

    @property
    def content_sha256(self) -> str:
        """Hash of all that shapes the model's results: the digests of its files, and its settings.

        `read` has compared the digests with the files. `source_sha256` is only what the folder says
        of itself: two folders can say the same and hold other weights.
        """
        left_out = {"source", "tools", "validation", "comparison", "self_check"}
        record = {name: value for name, value in asdict(self).items() if name not in left_out}
        if record.get("query_prompt", "") is None:
            del record["query_prompt"]  # as in folders of versions without it
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all: the last step of an export.

        A folder without it is no model, so an unfinished export can never be loaded.
        """
        with replacing(folder / "manifest.json") as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path, *, again: bool = False) -> Self:
        """Read the manifest and check the hash of every file that it lists.

        Args:
            folder: of the exported model.
            again: hash large files again that `known_sha256` has already verified.

        Raises:
            GranAlignError: there is no manifest, its kind or format version is another, keys are
                missing or unknown, a value has the wrong type, or a file was altered.
        """
        path = folder / "manifest.json"
        remedy = f"name a folder that `granalign export {cls.kind}` wrote"
        if not path.is_file():
            raise GranAlignError(f"{folder}: no manifest.json; {remedy}")
        # The kind and the format version decide which keys are expected, so they come first.
        record = read_json(path, inside=folder)
        kind = record.get("kind") if isinstance(record, dict) else None
        if kind != cls.kind:
            raise GranAlignError(f"{path}: got kind {kind!r}, expected {cls.kind!r}; {remedy}")
        if record.get("format_version") != cls.format_version:
            raise GranAlignError(
                f"{path}: got format version {record.get('format_version')!r}, expected "
                f"{cls.format_version}; export the model again"
            )
        # The keys and the types of their values.
        record = cls._current(record)
        expected = {entry.name for entry in fields(cls)}
        needed = {entry.name for entry in fields(cls) if entry.name not in _ADDED}
        if wrong := (needed - set(record)) | (set(record) - expected):
            raise GranAlignError(
                f"{path}: keys {sorted(wrong)} are missing or unknown; export the model again"
            )
        types = get_type_hints(cls)
        for entry in fields(cls):
            if entry.name in record and not matches(types[entry.name], record[entry.name]):
                raise GranAlignError(
                    f"{path}: got {entry.name} {record[entry.name]!r:.80}, expected {entry.type}; "
                    f"export the model again"
                )
        check_values(record, path)
        # Earlier versions left such a folder when they were killed as they compared.
        if not record["validation"]:
            raise GranAlignError(
                f"{path}: got an export that was not checked to its end, expected measured errors "
                f"in it; delete the folder and export the model again"
            )
        # The files and their hashes.
        manifest = cls(**record)
        if not manifest.files:
            raise GranAlignError(
                f"{path}: got no files, expected those of the model; export it again"
            )
        check_names(folder, manifest.files, path)
        for name, digest in manifest.files.items():
            file = checked_file(folder / name, inside=folder)
            got = known_sha256(file, digest, again=again)
            if got != digest:
                what = "altered weights" if name.endswith(".onnx") else "altered file"
                raise GranAlignError(
                    f"{folder / name}: {what}, got SHA-256 {got}, expected {digest}; "
                    f"delete the folder and export the model again"
                )
        check_external_data(folder, manifest.files, path)
        return manifest


_ADDED = {"block", "comparison", "self_check", "prompt", "query_prompt", "deepstack"}
"""Keys that folders of earlier versions lack."""


@dataclass(frozen=True, kw_only=True)
class SentenceManifest(Manifest):
    """The manifest of an exported sentence encoder.

    Attributes:
        dim: values of an embedding.
        max_tokens: longer texts are cut off here.
        pooling: ``"mean"``, ``"cls"`` or ``"last"``.
        normalise: whether the graph scales embeddings to unit length.
        prompt: put before every text but queries.
        query_prompt: put before a query; None for `prompt`.
    """

    kind: str = SENTENCE_ENCODER
    dim: int
    max_tokens: int
    pooling: str
    normalise: bool
    prompt: str = ""
    query_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class FrameEncoderManifest(Manifest):
    """The manifest of an exported CLIP or SigLIP.

    Attributes:
        dim: values of an embedding.
        max_tokens: longer texts are cut off here.
        preprocessing: the fields of a `frame_encoder.Preprocessing`.
    """

    format_version: int = CLIP_FORMAT_VERSION
    kind: str = CLIP
    dim: int
    max_tokens: int
    preprocessing: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LlmManifest(Manifest):
    """The manifest of an exported language model; `source_sha256` covers its tokenizer too.

    Attributes:
        architecture: such as ``"LlamaForCausalLM"``.
        layers: with a KV cache each.
        kv_heads: heads of keys and values.
        head_dim: values of a head.
        vocabulary: number of tokens.
        context: the greatest number of tokens of a prompt and its answer.
        eos_ids: tokens that end an answer.
        block: columns of a weight that share a scale; 0 where nothing is rounded, and in int4
            exports of earlier versions, whose blocks have 32.
    """

    kind: str = LLM
    architecture: str
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    eos_ids: list[int]
    block: int = 0

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Type of keys and values."""
        return np.dtype(np.float16 if self.precision == "fp16" else np.float32)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.cache_dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class VlmManifest(LlmManifest):
    """The manifest of an exported vision-language model.

    Attributes:
        image_size: height and width in pixels of what the tower sees: a frame, or one of its tiles.
        layouts: how a prompt holds a clip, by the number of the clip's frames: what
            `ImageLayout.record` returned. Every model takes single frames, ``"1"``.
        resample: Pillow's number of the filter that resizes frames.
        hidden: values of a token's embedding.
        deepstack: how many of the decoder's first layers are followed by a sum with features of the
            vision tower.
    """

    kind: str = VLM
    image_size: list[int]
    layouts: dict[str, dict[str, Any]]
    resample: int
    hidden: int
    deepstack: int = 0

    @classmethod
    def _current(cls, record: dict[str, Any]) -> dict[str, Any]:
        # Earlier versions exported Qwen2.5-VL alone, and wrote the grid of its frames.
        keys = {"image_grid", "image_token"}
        if "layouts" in record or not isinstance(record.get("image_grid"), list):
            return record
        kept = {key: value for key, value in record.items() if key not in keys}
        layout = still_image(record.get("image_token"), record["image_grid"])
        return kept | {"layouts": {"1": layout.record()}}

    def layout(self, frames: int = 1) -> ImageLayout:
        """Return how a prompt holds a clip of so many frames.

        Raises:
            GranAlignError: the export takes no clips of that many frames.
        """
        if str(frames) not in self.layouts:
            raise GranAlignError(
                f"frames: got clips of {frames}, expected one of: {', '.join(self.layouts)}, as "
                "this export takes; choose one of these (--frames-per-clip, or another preset), or "
                f"a model whose export takes clips of {frames} frames"
            )
        return ImageLayout.read(self.layouts[str(frames)])

    @property
    def position_axes(self) -> int:
        """Numbers of a token's position: 3 where it is a time, a row and a column, else 1."""
        return self.layout().axes

    @property
    def image_token(self) -> int:
        """The id of the visual tokens of a single frame."""
        return self.layout().runs[0].token

    @property
    def image_tokens(self) -> int:
        """Visual tokens of a single frame."""
        return self.layout().visual_tokens


def exported_models(folder: str | Path) -> dict[str, Path]:
    """Return the folders of the exported models below a folder, by kind.

    Each model has a folder of its own, whatever its name; hidden folders are drafts.

    Raises:
        GranAlignError: there is no such folder, no model in it, two of one kind, or a manifest
            that is of no model and of no index.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "got a file" if folder.exists() else "no such folder"
        raise GranAlignError(f"{folder}: {what}; expected a folder of exported models")
    folders: dict[str, Path] = {}
    for path in sorted(folder.glob("*/manifest.json")):
        if path.parent.name.startswith("."):
            continue
        record = read_json(path)
        kind = record.get("kind") if isinstance(record, dict) else None
        if kind == VIDEO_INDEX:
            continue
        if kind not in KINDS:
            # To go on without it would search otherwise than was asked.
            raise GranAlignError(
                f"{path}: got kind {short_repr(kind)}, expected one of: {', '.join(KINDS)}; export "
                f"the model again, or move its folder away"
            )
        if kind in folders:
            raise GranAlignError(
                f"{folder}: got two models of kind {kind!r}, {folders[kind].name} and "
                f"{path.parent.name}, expected one; move the other away"
            )
        folders[kind] = path.parent
    if not folders:
        if (folder / "manifest.json").is_file():
            raise GranAlignError(
                f"{folder}: got no exported model in it but a manifest, expected the folder that "
                f"holds the models; name {folder.absolute().parent}"
            )
        raise GranAlignError(
            f"{folder}: got no exported model, expected folders that `granalign export` wrote"
        )
    return folders


def model_sources(folders: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """Return the source's name and its SHA-256 of exported models, by kind; nothing is loaded.

    Args:
        folders: of the models, as `exported_models` returns them.
    """
    manifests = {kind: read_json(folder / "manifest.json") for kind, folder in folders.items()}
    return {
        kind: (str(manifest.get("source")), str(manifest.get("source_sha256")))
        for kind, manifest in manifests.items()
    }


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an exported model of any kind, and hash every file again.

    Raises:
        GranAlignError: the folder holds no exported model, or one of its files was altered.
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
