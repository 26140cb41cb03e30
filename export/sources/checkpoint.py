"""Weights of model folders by name, read one tensor at a time: memory never holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError
from granalign_fast.models.sources import weights_files
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_MODEL_HEADER
from granalign_fast.parsing.tensors import check_header
from granalign_fast.reading import open_file

Float32 = npt.NDArray[np.float32]

# safetensors' own NumPy reader lacks bfloat16, the type of most published LLMs.
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

_EXPONENT = {"F64": 0x7FF << 52, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""Bits of the exponent: all of them are set in NaN and infinity, and in nothing else."""

SLICE_BYTES = 1 << 25
"""Bytes of float32 in a slice of a tensor: an export holds slices, not whole tensors."""

Observer = Callable[[str, int], None]
"""Called with a tensor's name and the bytes that were read of it."""


class Tensors(Protocol):
    """A source of weights by name."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        ...

    def read(self, name: str) -> Float32:
        """Read a tensor as float32."""
        ...

    def slices(self, name: str) -> Iterator[Float32]:
        """Read a tensor as float32 in slices of rows, from the first to the last."""
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
        self.observe: Observer = lambda name, count: None
        """Replaced by who wants to know how far the reading is."""
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

    @property
    def names(self) -> list[str]:
        """Names of all tensors that can be read."""
        return [name for name, entry in self._entries.items() if entry.kind in _DTYPES]

    def stored_bytes(self, name: str) -> int:
        """Return the bytes of a tensor in its file."""
        entry = self._find(name)
        return int(np.prod(entry.shape, dtype=np.int64)) * np.dtype(_DTYPES[entry.kind]).itemsize

    def read(self, name: str) -> Float32:
        """Read a float16, bfloat16, float32 or float64 tensor as float32.

        Raises:
            GranAlignError: there is no such tensor, or it holds NaN or infinity.
        """
        shape = self.shape(name)
        whole = np.empty(shape, np.float32)
        rows, start = whole.reshape(shape or (1,)), 0
        for part in self.slices(name):
            rows[start : start + len(part)] = part
            start += len(part)
        return whole

    def slices(self, name: str) -> Iterator[Float32]:
        """Read a tensor as float32 in slices of rows, each of `SLICE_BYTES` at most.

        A row that is larger is a slice of its own; a scalar is one row.

        Raises:
            GranAlignError: there is no such tensor, or it holds NaN or infinity.
        """
        path, kind, shape, offset = self._find(name)
        rows = shape or (1,)
        step = max(1, SLICE_BYTES // max(1, 4 * int(np.prod(rows[1:], dtype=np.int64))))
        width = np.dtype(_DTYPES[kind]).itemsize * int(np.prod(rows[1:], dtype=np.int64))
        for start in range(0, rows[0], step):
            count = min(step, rows[0] - start)
            # A map of these rows alone: its pages leave memory with it.
            place = offset + start * width
            with open_file(path) as file:
                stored = np.memmap(file, _DTYPES[kind], "r", place, (count, *rows[1:]))
            bits = stored.view(f"<u{stored.itemsize}")
            if ((bits & _EXPONENT[kind]) == _EXPONENT[kind]).any():
                raise GranAlignError(
                    f"{path}: tensor {name} holds NaN or infinity; get intact weights"
                )
            if kind == "BF16":  # the upper half of a float32
                wide = stored.astype(np.uint32)
                wide <<= 16
                part = wide.view(np.float32)
            else:
                part = np.array(stored, np.float32)
            self.observe(name, count * width)
            yield part

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

    def slices(self, name: str) -> Iterator[Float32]:
        """Return a tensor as one slice."""
        yield self._arrays[name]


class JoinedProjections:
    """A checkpoint with one ``qkv_proj`` in the place of three projections: query, key, value.

    One product is faster than three: the products of few key-value heads are too narrow to fill a
    GPU.
    """

    def __init__(self, checkpoint: Tensors) -> None:
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

    def slices(self, name: str) -> Iterator[Float32]:
        """Read a tensor as float32 in slices of rows."""
        for part in self._parts(name):
            yield from self._checkpoint.slices(part)

    @staticmethod
    def _parts(name: str) -> list[str]:
        """Return the names in the checkpoint whose tensors make up this one, from top to bottom."""
        if ".qkv_proj." not in name:
            return [name]
        return [name.replace(".qkv_proj.", f".{part}_proj.") for part in "qkv"]


def _read_header(path: Path) -> Iterator[tuple[str, _Entry]]:
    """Yield the name and the entry of every tensor of a safetensors file."""
    torn = GranAlignError(
        f"{path}: not readable as safetensors: torn, or of another kind; copy or download the "
        f"model again"
    )
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            check_header(length, size, MOST_MODEL_HEADER)
            header = parse_json(file.read(length))
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
    except GranAlignError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise torn from None
