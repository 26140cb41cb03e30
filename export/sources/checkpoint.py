"""Weights of model folders by name, read one tensor at a time: memory never holds all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.models.sources import weights_files

Float32 = npt.NDArray[np.float32]

# safetensors' own NumPy reader lacks bfloat16, the type of most published LLMs.
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Tensors(Protocol):
    """A source of weights by name."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        ...

    def read(self, name: str) -> Float32:
        """Read a tensor as float32."""
        ...


class _Entry(NamedTuple):
    """A tensor's file, safetensors dtype and shape, and the byte that it starts at."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The tensors of a model folder: one ``model.safetensors``, or shards with their index.

    Args:
        folder: the model's folder.
        rename: a function from a name in the files to the name for `read`; None changes none.

    Raises:
        GranAlignError: the folder has no safetensors, or a file is torn.
    """

    files: list[Path]

    def __init__(self, folder: Path, rename: Callable[[str], str] | None = None) -> None:
        self.folder = folder
        self.files = weights_files(folder)
        self._entries: dict[str, _Entry] = {}
        for path in self.files:
            for name, entry in _read_header(path):
                self._entries[rename(name) if rename else name] = entry

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def rooted(self, known: str) -> Self:
        """Remove what a wrapper put before the names of the model's tensors, such as ``bert.``.

        Args:
            known: the name, without a wrapper's, of a tensor that every such model has.

        Raises:
            GranAlignError: several tensors have that name behind different prefixes.
        """
        if known in self:
            return self
        found = sorted(name for name in self._entries if name.endswith(f".{known}"))
        if len(found) > 1:
            raise GranAlignError(
                f"{self.folder}: got {found[0]} and {found[1]}, expected the weights of one model; "
                f"save the model that you want by itself"
            )
        for prefix in (name.removesuffix(known) for name in found):
            entries = self._entries.items()
            self._entries = {name.removeprefix(prefix): entry for name, entry in entries}
        return self

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return self._find(name).shape

    def read(self, name: str) -> Float32:
        """Read a float16, bfloat16, float32 or float64 tensor as float32."""
        path, kind, shape, offset = self._find(name)
        stored = np.memmap(path, _DTYPES[kind], mode="r", offset=offset, shape=shape)
        if kind == "BF16":  # the upper half of a float32
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return np.array(stored, np.float32)

    def _find(self, name: str) -> _Entry:
        """Return a tensor's entry; raise if it is missing or of another type."""
        if name not in self._entries:
            raise GranAlignError(
                f"{self.folder}: no tensor {name!r}, expected it from config.json; "
                f"copy or download the model again"
            )
        entry = self._entries[name]
        if entry.kind not in _DTYPES:
            raise GranAlignError(
                f"{entry.path}: got {name} in {entry.kind}, expected float32, float16 or bfloat16; "
                f"choose another copy of the model"
            )
        return entry


class MemoryTensors:
    """Weights that are in memory already.

    Args:
        arrays: the weights by name.
    """

    def __init__(self, arrays: Mapping[str, Float32]) -> None:
        self._arrays = arrays

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._arrays[name].shape

    def read(self, name: str) -> Float32:
        """Return a tensor."""
        return self._arrays[name]


class JoinedProjections:
    """A checkpoint with one ``qkv_proj`` in the place of three projections: query, key, value.

    One product is faster than three: the products of few key-value heads are too narrow to fill a
    GPU.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __contains__(self, name: str) -> bool:
        return all(part in self._checkpoint for part in self._parts(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        shapes = [self._checkpoint.shape(part) for part in self._parts(name)]
        return sum(shape[0] for shape in shapes), *shapes[0][1:]

    def read(self, name: str) -> Float32:
        """Read a tensor as float32."""
        parts = [self._checkpoint.read(part) for part in self._parts(name)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    @staticmethod
    def _parts(name: str) -> list[str]:
        """Return the names in the checkpoint whose tensors make up this one, from top to bottom."""
        if ".qkv_proj." not in name:
            return [name]
        return [name.replace(".qkv_proj.", f".{part}_proj.") for part in "qkv"]


def _read_header(path: Path) -> Iterator[tuple[str, _Entry]]:
    """Yield the name and the entry of every tensor of a safetensors file."""
    torn = GranAlignError(
        f"{path}: not readable as safetensors, torn or of another kind; copy or download the model "
        f"again"
    )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise torn
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            kind, shape = entry["dtype"], tuple(entry["shape"])
            count = int(np.prod(shape, dtype=np.int64))
            if not 0 <= begin <= end <= size - 8 - length:
                raise torn
            # Tensors of other types matter only when read: old CLIPs have a range of integers.
            if kind in _DTYPES and end - begin != count * np.dtype(_DTYPES[kind]).itemsize:
                raise torn
            yield name, _Entry(path, kind, shape, 8 + length + begin)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise torn from None
