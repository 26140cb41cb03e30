"""TensorRT engines that somebody else built: machine code, which is not run."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.runtime.engine_stamp import EngineStamp, engine_path
from granalign_fast.runtime.shapes import Bounds
from granalign_fast.runtime.tensorrt_library import Machine

MACHINE = Machine(**{field.name: "x" for field in fields(Machine)})
OTHERS = "got an engine that somebody else built, expected one of this user; run granalign export"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine with its stamp, built here."""
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"graph")
    path = engine_path(graph)
    path.parent.mkdir()
    path.write_bytes(b"plan")
    bounds = Bounds((1, 1), (1, 24), (1, 256))
    EngineStamp(
        engine_sha256=sha256_of(path),
        sources={"model.onnx": sha256_of(graph)},
        machine=MACHINE,
        precision="fp32",
        flags=[],
        profiles=[{"input_ids": bounds}],
        validation={"min_cosine": 0.123456789},
    ).write(path)
    return path


def check(engine: Path) -> None:
    EngineStamp.read(engine).check(engine, engine.parent.parent, MACHINE)


def test_an_engine_that_somebody_else_built(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(engine)
    # Their hashes fit their engine, and no key of theirs makes our mark.
    engine.write_bytes(b"their plan")
    stamp_path = engine.with_suffix(".engine.json")
    stamp = json.loads(stamp_path.read_text()) | {"engine_sha256": sha256_of(engine)}
    for mark in (stamp["mark"], "", "0" * 64, 7, None, "\u00e9"):
        stamp_path.write_text(json.dumps(stamp | {"mark": mark}))
        with pytest.raises(GranAlignError, match=OTHERS):
            check(engine)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(engine.parent / "theirs"))
        with pytest.raises(GranAlignError, match=OTHERS):  # there is no key yet
            check(engine)
        replace(EngineStamp.read(engine), validation={}).write(engine)
        check(engine)
    with pytest.raises(GranAlignError, match=OTHERS):
        check(engine)


def test_a_key_that_others_can_read_is_none(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    stamp = EngineStamp.read(engine)
    stamp.write(engine)
    key = tmp_path / "config" / "granalign-fast" / "engine.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in key.parent.iterdir()] == [key.name]
    for mode, content, message in (
        (0o644, bytes(32), "got a key that others own or can read"),
        (0o600, b"", "got 0 bytes, expected 32"),
    ):
        key.write_bytes(content)
        key.chmod(mode)
        with pytest.raises(GranAlignError, match=message):
            check(engine)
        with pytest.raises(GranAlignError, match=message):
            stamp.write(engine)
