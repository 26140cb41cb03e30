"""The stamp beside a TensorRT engine: what it was built from, for and with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.files import read_json, replacing, sha256_of

from .shapes import Bounds, Profile
from .tensorrt_library import Machine

ENGINE_FOLDER = "tensorrt"
"""Where an exported folder has its engines."""

ENGINE_FORMAT = 1
"""Rises whenever engines of before have to be built again."""


def engine_path(graph: Path) -> Path:
    """Where the engine of a graph lies, whether or not it does."""
    return graph.parent / ENGINE_FOLDER / f"{graph.stem}.engine"


@dataclass(frozen=True, kw_only=True)
class EngineStamp:
    """What ``<engine>.json`` says.

    A plan is machine code: an engine is only opened whose stamp fits it, the graph it stands for
    and this machine. The hash guards against damage and mix-ups, not against malice, as whoever can
    change the engine can change the stamp.

    Attributes:
        format_version: `ENGINE_FORMAT`.
        engine_sha256: of the plan.
        sources: SHA-256 of the graph and of its external data, by file name.
        machine: what it was built for. No hardware compatibility is asked for, as it costs speed:
            another GPU's engine is another engine.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        flags: of the builder and of the network.
        profiles: bounds of every input, a profile for each batch size, ascending.
        validation: what was measured against the graph on ONNX Runtime's CPU.
    """

    format_version: int = ENGINE_FORMAT
    engine_sha256: str
    sources: dict[str, str]
    machine: Machine
    precision: str
    flags: list[str]
    profiles: list[Profile]
    validation: dict[str, float]

    def write(self, engine: Path) -> None:
        """Write the stamp of an engine, whole or not at all."""
        with replacing(_stamp_path(engine)) as file:
            file.write((json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, engine: Path) -> EngineStamp:
        """Read the stamp of an engine.

        Raises:
            GranAlignError: it is missing, of another format version, or not a stamp.
        """
        path = _stamp_path(engine)
        if not path.is_file():
            raise GranAlignError(f"{engine}: no {path.name} beside it; {_remedy(engine)}")
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
        """Raise unless the engine is the stamp's, and was built from `folder` for `machine`.

        Raises:
            GranAlignError: with everything that does not fit.
        """
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
    return engine.with_suffix(".engine.json")


def _remedy(engine: Path) -> str:
    folder = engine.parent.parent
    return (
        f"run granalign export tensorrt {folder} to build it here, or delete {engine.parent} to "
        f"leave it to ONNX Runtime"
    )


def _bounds(value: dict[str, list[int]]) -> Bounds:
    shapes = {name: tuple(int(size) for size in shape) for name, shape in value.items()}
    bounds = Bounds(**shapes)
    if not len(bounds.least) == len(bounds.usual) == len(bounds.most) > 0:
        raise ValueError(f"bounds {value}")
    return bounds
