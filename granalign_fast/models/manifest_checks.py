"""Checks of a model's folder that somebody else made: its files, and the numbers of its manifest.

Only files that the manifest lists are opened: their hashes were compared. So no other file may lie
there that a reader would find by its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, short_repr
from granalign_fast.runtime.external_data import external_files

from .image_layout import ImageLayout

_OPENED = (".onnx", ".json", ".jinja", ".txt", ".engine", ".model", ".safetensors", ".bin")
"""Ends of the names that readers of a model's folder look for, ours and optimum's."""
_TEMPLATES = "additional_chat_templates"
"""A folder in which readers look for chat templates."""

_HASH = re.compile("[0-9a-f]{64}")
_MOST: Mapping[str, int] = {
    "dim": 1 << 16,
    "max_tokens": 1 << 17,
    "layers": 1 << 10,
    "kv_heads": 1 << 10,
    "head_dim": 1 << 12,
    "vocabulary": 1 << 24,
    "context": 1 << 24,
    "block": 1 << 16,
    "resample": 5,
    "hidden": 1 << 17,
    "deepstack": 1 << 6,
}
"""The greatest value of each number, some times that of the largest published models. Arrays are
allocated by them."""
_FROM_ZERO = frozenset({"block", "deepstack", "resample"})
_MOST_EDGE = 1 << 12
"""Pixels, or tokens, of an edge of a frame for a model; published ones take up to 1,024 pixels."""
_MOST_IDS = 1 << 10
"""Tokens that end an answer; there are up to five."""


def check_values(record: Mapping[str, Any], path: Path) -> None:
    """Check the numbers and the hashes of a manifest whose values have the right types.

    Raises:
        GranAlignError: one is out of its range; the message names the file.
    """
    for name, most in _MOST.items():
        least = 0 if name in _FROM_ZERO else 1
        if name in record and not least <= record[name] <= most:
            raise _wrong(path, name, record[name], f"an integer from {least} to {most:,}")
    if "image_size" in record and not _is_size(record["image_size"]):
        size = record["image_size"]
        raise _wrong(path, "image_size", size, f"two integers from 1 to {_MOST_EDGE:,}")
    if "layouts" in record:
        _check_layouts(record["layouts"], path)
    ids = record.get("eos_ids", [])
    if len(ids) > _MOST_IDS or not all(0 <= one <= _MOST["vocabulary"] for one in ids):
        raise _wrong(path, "eos_ids", ids, "some numbers of tokens")
    for name in ("resize", "crop"):
        sizes = record.get("preprocessing", {}).get(name)
        if sizes is not None and not _are_edges(sizes):
            raise _wrong(path, name, sizes, f"integers from 1 to {_MOST_EDGE:,}")
    for name, digest in record["files"].items():
        if not _HASH.fullmatch(digest):
            raise _wrong(path, f"hash of {short_repr(name)}", digest, "64 hex digits")


def check_names(folder: Path, files: Collection[str], path: Path) -> None:
    """Check that a manifest lists plain names, and every file that a reader could look for.

    Raises:
        GranAlignError: a name leads out of the folder, or a file is not listed.
    """
    for name in files:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise _wrong(path, "file name", name, "one without folders")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in files or entry.name == path.name or entry.name.startswith("."):
                continue
            if entry.name == _TEMPLATES or entry.name.lower().endswith(_OPENED):
                raise GranAlignError(
                    f"{path}: got {short_repr(entry.name)} in the folder, expected only files that "
                    f"the manifest lists; move it away, or export the model again"
                )


def check_external_data(folder: Path, files: Collection[str], path: Path) -> None:
    """Check that the weights of every listed graph lie in it or in another listed file.

    Raises:
        GranAlignError: a graph names another file, or is damaged.
    """
    for name in files:
        if not name.endswith(".onnx"):
            continue
        try:
            external = external_files(folder / name)
        except ValueError as error:
            raise GranAlignError(
                f"{folder / name}: not an ONNX model ({error}); export the model again"
            ) from None
        if unlisted := sorted(external - set(files)):
            raise GranAlignError(
                f"{folder / name}: got weights in {short_repr(unlisted[0])}, expected a file that "
                f"{path.name} lists; export the model again"
            )


def _check_layouts(layouts: Mapping[str, Any], path: Path) -> None:
    """Check that every layout can be read, with as many axes, and that one is of single frames."""
    axes: set[int] = set()
    for frames, layout in layouts.items():
        try:
            read = ImageLayout.read(layout)
        except (TypeError, ValueError) as error:
            raise _wrong(path, f"layouts of {short_repr(frames)}", layout, str(error)) from None
        if frames != str(read.frames):
            raise _wrong(path, "frames of a layout", read.frames, frames)
        axes.add(read.axes)
    if "1" not in layouts:
        raise _wrong(path, "layouts", sorted(layouts), "one of single frames, '1', among them")
    if len(axes) > 1:
        raise _wrong(path, "axes of layouts", sorted(axes), "the same number in each")


def _is_size(value: Any) -> bool:
    return len(value) == 2 and _are_edges(value)


def _are_edges(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return len(values) <= 2 and all(
        type(edge) is int and 1 <= edge <= _MOST_EDGE for edge in values
    )


def _wrong(path: Path, name: str, value: object, expected: str) -> GranAlignError:
    return GranAlignError(
        f"{path}: got {name} {short_repr(value)}, expected {expected}; export the model again"
    )
