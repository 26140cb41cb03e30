"""The stamp of a TensorRT engine: a JSON file that records how and for which machine it was built.

An engine is only opened if its stamp fits the engine, the graph and this machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json, replacing, sha256_of

from .own_mark import is_own_mark, make_mark
from .shapes import Bounds, Profile
from .tensorrt_library import Machine

ENGINE_FOLDER = "tensorrt"
"""Subfolder of an exported folder that holds its engines."""

ENGINE_FORMAT = 2
"""Version of the format. It is raised whenever older engines have to be built again."""


def engine_path(graph: Path) -> Path:
    """Return the path of a graph's engine, whether or not the file exists."""
    return graph.parent / ENGINE_FOLDER / f"{graph.stem}.engine"


@dataclass(frozen=True, kw_only=True)
class EngineStamp:
    """The contents of ``<engine>.json``.

    An engine is a TensorRT plan, which is machine code. It is therefore only opened if this user
    built it, and its stamp fits the plan, the graph that it replaces and this machine. The hashes
    guard against damage and mix-ups, and the mark against engines that somebody else made.

    Attributes:
        format_version: `ENGINE_FORMAT`.
        engine_sha256: SHA-256 of the plan.
        sources: SHA-256 of the graph and of its external data, by file name.
        machine: the machine that the engine was built for. TensorRT's hardware compatibility mode
            is off, because it costs speed: another GPU needs another engine.
        precision: ``"fp32"`` or ``"fp16"``, that of the graph.
        flags: names of the flags of the builder and of the network.
        profiles: bounds of every input, one profile for each batch size, ascending.
        validation: figures of the comparison with the graph on ONNX Runtime's CPU, by name.
        mark: of all other fields, by this user's key; `write` sets it.
    """

    format_version: int = ENGINE_FORMAT
    engine_sha256: str
    sources: dict[str, str]
    machine: Machine
    precision: str
    flags: list[str]
    profiles: list[Profile]
    validation: dict[str, float]
    mark: str = ""

    def write(self, engine: Path) -> None:
        """Write the stamp of an engine, with its mark; the file appears whole or not at all.

        Raises:
            GranAlignError: the stamp or this user's key cannot be written.
        """
        record = asdict(self) | {"mark": make_mark(self._content())}
        with replacing(_stamp_path(engine)) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())

    def _content(self) -> bytes:
        """Return what the mark stands for: all fields but itself."""
        record = asdict(self)
        del record["mark"]
        return json.dumps(record, sort_keys=True).encode()

    @classmethod
    def read(cls, engine: Path) -> EngineStamp:
        """Read the stamp of an engine.

        Raises:
            GranAlignError: it is missing, of another format version, or not a stamp.
        """
        path = _stamp_path(engine)
        if not path.is_file():
            raise GranAlignError(f"{engine}: got no {path.name} in its folder; {_remedy(engine)}")
        record = read_json(path)
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != ENGINE_FORMAT:
            raise GranAlignError(
                f"{path}: got format version {version!r}, expected {ENGINE_FORMAT}; "
                f"{_remedy(engine)}"
            )
        try:
            if wrong := set(record) ^ {field.name for field in fields(cls)}:
                raise KeyError(f"keys {sorted(wrong)}")
            record["machine"] = Machine(**record["machine"])
            record["profiles"] = [
                {name: _bounds(value) for name, value in profile.items()}
                for profile in record["profiles"]
            ]
            if not record["profiles"]:
                raise KeyError("no profile")
            return cls(**record)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GranAlignError(
                f"{path}: not an engine's stamp ({error}); {_remedy(engine)}"
            ) from None

    def check(self, engine: Path, folder: Path, machine: Machine) -> None:
        """Check that the stamp fits the engine, the graph in `folder`, and `machine`.

        Raises:
            GranAlignError: this user has not built the engine, or something differs; the message
                lists all differences.
        """
        if not is_own_mark(str(self.mark), self._content()):
            raise GranAlignError(
                f"{engine}: got an engine that somebody else built, expected one of this user; "
                f"{_remedy(engine)}"
            )
        wrong = [f"an engine of {text}" for text in machine.differences(self.machine)]
        for path, expected in [(engine, self.engine_sha256)] + [
            (folder / name, digest) for name, digest in self.sources.items()
        ]:
            got = sha256_of(path)
            if got != expected:
                wrong.append(f"{path.name} with SHA-256 {got[:16]}..., expected {expected[:16]}...")
        if wrong:
            raise GranAlignError(f"{engine}: got {'; got '.join(wrong)}; {_remedy(engine)}")


def _stamp_path(engine: Path) -> Path:
    """Return the path of an engine's stamp."""
    return engine.with_suffix(".engine.json")


def _remedy(engine: Path) -> str:
    """Return the end of every message: how to replace the engine."""
    folder = engine.parent.parent
    return (
        f"run granalign export tensorrt {folder} to build it here, or delete {engine.parent} to "
        f"run the graph by ONNX Runtime"
    )


def _bounds(value: dict[str, list[int]]) -> Bounds:
    """Read the bounds of one input; raise ValueError or TypeError if they are none."""
    shapes = {name: tuple(int(size) for size in shape) for name, shape in value.items()}
    bounds = Bounds(**shapes)
    if not len(bounds.least) == len(bounds.usual) == len(bounds.most) > 0:
        raise ValueError(f"bounds {value}")
    return bounds
