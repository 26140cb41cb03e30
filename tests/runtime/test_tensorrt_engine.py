"""TensorRT engines, from an exported folder to embeddings, on a stand-in that runs on the CPU.

Results are compared with ONNX Runtime's. `test_tensorrt_bindings` checks the stand-in itself.
"""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy, fake_tensorrt
from helpers.tiny_bert import flip_byte, write_tiny_bert
from helpers.tiny_vlm import frames_of, write_unchecked_vlm
from typer.testing import CliRunner

from granalign_fast.cli.export import export_app
from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.tensorrt import build_engine, export_tensorrt
from granalign_fast.files import sha256_of
from granalign_fast.models.exported_graph import graph_shapes, open_session
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime import engine as engines
from granalign_fast.runtime.device import Device
from granalign_fast.runtime.engine import Engine
from granalign_fast.runtime.engine_stamp import EngineStamp

TEXTS = ["a b c", "d", "a b c", "", "hello world.", "e f", "x " * 40, *"abcdefghijkl"]
GPU = {"name": b"NVIDIA H200", "major": 9, "minor": 0}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sentence encoders by precision, and a vision-language model, without engines."""
    root = tmp_path_factory.mktemp("models")
    source = write_tiny_bert(root / "source")
    return {
        precision: export_sentence_encoder(source, root / precision, precision=precision)
        for precision in ("fp32", "fp16", "int8")
    } | {"vlm": write_unchecked_vlm(root / "vlm")}


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake_cupy.LOG.clear()
    fake_tensorrt.BUILT.clear()


@pytest.fixture(scope="module")
def engine_folder(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder's folder with an engine in it, shared by all tests."""
    root = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", fake_tensorrt)
        patch.setitem(sys.modules, "cupy", fake_cupy)
        return export_tensorrt(exported["fp32"], root / "built", cache_dir=root)


@pytest.fixture
def built(engine_folder: Path, tmp_path: Path) -> Path:
    """A copy of a sentence encoder's folder with an engine in it."""
    return shutil.copytree(engine_folder, tmp_path / "built")


def engine_of(folder: Path) -> Engine:
    return Engine(folder / "tensorrt" / "model.engine", folder)


def ids(rows: int, tokens: int = 5) -> np.ndarray:
    return np.random.default_rng(rows).integers(0, 20, (rows, tokens), np.int32)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_embeddings_equal_those_on_the_cpu(
    exported: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    folder = export_tensorrt(exported[precision], tmp_path / "out")
    encoder = SentenceEncoder(folder, device="tensorrt")
    rows = encoder.encode(TEXTS)
    expected = SentenceEncoder(exported[precision]).encode(TEXTS)
    np.testing.assert_allclose(rows, expected, atol=1e-5 if precision == "fp32" else 5e-3)
    assert encoder._session.backend == "TensorRT engine"
    assert encoder._session.precision == precision
    flags = ([] if precision == "fp32" else ["TF32"], 1 << 1)
    assert [flags] == fake_tensorrt.BUILT


def test_a_vision_tower_takes_bytes(exported: dict[str, Path], tmp_path: Path) -> None:
    """The engine's graph casts the bytes first; the results are equal bit for bit."""
    folder = export_tensorrt(exported["vlm"], tmp_path / "out")
    session = open_session(folder / "vision.onnx", device="tensorrt")
    frames = frames_of(5)
    # In batches of 4 and 1, as the engine runs them.
    plain = open_session(exported["vlm"] / "vision.onnx", threads=1)
    expected = np.concatenate([plain(frames=f)["image_embeds"] for f in (frames[:4], frames[4:])])
    np.testing.assert_array_equal(session(frames=frames)["image_embeds"], expected)
    stamp = EngineStamp.read(folder / "tensorrt" / "vision.engine")
    assert set(stamp.sources) == {"vision.onnx", "vision.onnx_data"}


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 17, 255, 256, 257, 600])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_any_number_of_rows(built: Path, rows: int, on_gpu: bool) -> None:
    engine, plain = engine_of(built), open_session(built / "model.onnx")
    x = ids(rows)
    array = fake_cupy.asarray(x) if on_gpu else x
    for _ in range(3):  # plain, captured, replayed
        got = engine({"input_ids": array})["embeddings"]
        assert isinstance(got, fake_cupy.ndarray) == on_gpu
        assert got.shape == (rows, 32) and got.dtype == np.float32
        if rows:
            expected = plain(input_ids=x)["embeddings"]
            np.testing.assert_allclose(np.asarray(got), expected, atol=1e-6)


def test_a_shape_runs_then_is_captured_then_replayed(built: Path) -> None:
    engine = engine_of(built)
    with fake_cupy.Stream() as stream:
        fake_cupy.LOG.clear()
        for _ in range(3):
            engine({"input_ids": ids(4)})
        engine({"input_ids": ids(4, 6)})
    around = f"wait {stream.ptr}", f"record {stream.ptr}"
    steps = [
        [f"execute {stream.ptr}"],
        ["capture", f"launch {stream.ptr}"],
        [f"launch {stream.ptr}"],
    ]
    steps.append([f"execute {stream.ptr}"])  # another length is another shape
    expected = [line for step in steps for line in (around[0], *step, around[1])]
    # Each call waits for the buffers, runs or captures, and records that it is done.
    assert expected == fake_cupy.LOG


def test_an_engine_that_cannot_be_captured_runs_plainly(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_cupy.Stream, "capturable", False)
    engine = engine_of(built)
    fake_cupy.LOG.clear()
    results = [engine({"input_ids": ids(3)})["embeddings"] for _ in range(3)]
    np.testing.assert_array_equal(results[0], results[2])
    assert not any(line.startswith(("launch", "capture")) for line in fake_cupy.LOG)


def test_shapes_are_an_lru_cache(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_SLOTS", 2)
    engine = engine_of(built)
    expected = {n: open_session(built / "model.onnx")(input_ids=ids(4, n)) for n in (2, 3, 4)}
    for n in (2, 3, 4, 2, 2, 4):
        got = engine({"input_ids": ids(4, n)})["embeddings"]
        np.testing.assert_allclose(got, expected[n]["embeddings"], atol=1e-6)
        assert len(engine._slots) <= 2
    assert fake_cupy.LOG.count("synchronize") == 2  # a dropped shape may still be running


def test_threads_take_turns(built: Path) -> None:
    engine, plain = engine_of(built), open_session(built / "model.onnx")
    inputs = [ids(rows, tokens) for rows in range(1, 9) for tokens in (3, 7)] * 4
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: engine({"input_ids": x})["embeddings"], inputs))
    for x, got in zip(inputs, results, strict=True):
        np.testing.assert_allclose(got, plain(input_ids=x)["embeddings"], atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": ids(2).astype(np.int64)}, r"int64 \(2, 5\), expected int32 .* 1\.\.16"),
        ({"input_ids": ids(2, 17)}, r"int32 \(2, 17\), expected int32 .* 1\.\.16"),
        ({"input_ids": ids(2)[0]}, r"got input_ids of int32 \(5,\)"),
        ({"input_ids": np.int32(3)[()].reshape(())}, "got input_ids of int32"),
    ],
)
def test_wrong_arrays(built: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        engine_of(built)(arrays)


@pytest.mark.parametrize(
    ("module_or_gpu", "value", "message"),
    [
        (fake_tensorrt, "10.16.2.1", r"tensorrt '10\.16\.1\.11', expected '10\.16\.2\.1'"),
        (0, GPU | {"minor": 1}, r"compute capability '9\.0', expected '9\.1'"),
        (0, GPU | {"name": b"NVIDIA H100"}, "gpu 'NVIDIA H200', expected 'NVIDIA H100'"),
    ],
)
def test_an_engine_for_another_machine_is_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch, module_or_gpu: Any, value: Any, message: str
) -> None:
    if module_or_gpu is fake_tensorrt:
        monkeypatch.setattr(fake_tensorrt, "__version__", value)
    else:
        monkeypatch.setattr(fake_cupy.cuda.runtime, "gpus", [value])
    with pytest.raises(GranAlignError, match=message + ".*run granalign export tensorrt") as error:
        SentenceEncoder(built, device="tensorrt")
    assert "\n" not in str(error.value)


def test_an_altered_graph_or_engine_is_refused(built: Path) -> None:
    flip_byte(built / "model.onnx")
    flip_byte(built / "tensorrt" / "model.engine")
    with pytest.raises(GranAlignError, match=r"model\.engine with SHA.*model\.onnx with SHA"):
        open_session(built / "model.onnx", device="tensorrt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"format_version": 0}, "format version 0, expected 2"),
        (lambda r: r | {"more": 1}, r"not an engine's stamp \(.*more"),
        (lambda r: {k: v for k, v in r.items() if k != "machine"}, "not an engine's stamp"),
        (lambda r: r | {"machine": {"gpu": "x"}}, "not an engine's stamp"),
        (lambda r: r | {"profiles": []}, "no profile"),
        (lambda r: r | {"profiles": [{"input_ids": {"least": [1]}}]}, "not an engine's stamp"),
        (lambda r: [r], "format version None"),
        (lambda r: None, r"got no model\.engine\.json"),
    ],
)
def test_invalid_stamps(built: Path, change: Any, message: str) -> None:
    path = built / "tensorrt" / "model.engine.json"
    record = change(json.loads(path.read_text()))
    path.unlink() if record is None else path.write_text(json.dumps(record))
    with pytest.raises(GranAlignError, match=message):
        open_session(built / "model.onnx", device="tensorrt")


def test_a_plan_that_tensorrt_rejects(built: Path) -> None:
    path = built / "tensorrt" / "model.engine"
    path.write_bytes(b"something else")
    replace(EngineStamp.read(path), engine_sha256=sha256_of(path)).write(path)
    with pytest.raises(GranAlignError, match=r"cannot load it \(magic tag does not match\)"):
        open_session(built / "model.onnx", device="tensorrt")


def test_the_gpu_runs_out_of_memory(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(built)

    def out_of_memory(shape: Any, dtype: Any) -> Any:
        raise fake_cupy.cuda.memory.OutOfMemoryError("out of memory allocating 9 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(fake_cupy, "empty", out_of_memory)
        with pytest.raises(GranAlignError, match="out of memory allocating 9"):
            engine({"input_ids": ids(2)})
    assert engine({"input_ids": ids(2)})["embeddings"].shape == (2, 32)


def test_a_missing_package_is_named(
    built: Path, exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for call in (
        lambda: open_session(built / "model.onnx", device="tensorrt"),
        lambda: export_tensorrt(exported["fp32"]),
    ):
        with pytest.raises(MissingExtraError, match=r"run .*pip install .*\[tensorrt\]"):
            call()
    assert not (exported["fp32"] / "tensorrt").exists()


def test_another_major_version_of_tensorrt(
    exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("9.3.0.1", "10.15.1.29", "12.0.0.1"):
        monkeypatch.setattr(fake_tensorrt, "__version__", version)
        with pytest.raises(GranAlignError, match=rf"got TensorRT {version}, expected 10\.16"):
            export_tensorrt(exported["fp32"])


def test_the_newest_version_builds_and_runs_engines(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt, "__version__", fake_tensorrt.NEWEST)
    folder = export_tensorrt(exported["fp32"], tmp_path / "out")
    session = open_session(folder / "model.onnx", device="tensorrt")
    assert session.backend == "TensorRT engine"
    assert session(input_ids=ids(2))["embeddings"].shape == (2, 32)
    assert EngineStamp.read(folder / "tensorrt" / "model.engine").machine.tensorrt[:3] == "11."


def test_a_missing_gpu(built: Path) -> None:
    with pytest.raises(GranAlignError, match="GPU 3 cannot be opened"):
        open_session(built / "model.onnx", device="tensorrt:3")


@pytest.mark.parametrize(
    ("model", "precision", "flags"),
    [
        ("fp32", "fp32", ([], 2)),
        ("fp16", "fp16", (["TF32"], 2)),
        ("fp16", None, (["TF32"], 2)),
    ],
)
def test_precisions(
    exported: dict[str, Path], tmp_path: Path, model: str, precision: str | None, flags: Any
) -> None:
    folder = export_tensorrt(exported[model], tmp_path / "out", precision=precision)
    assert [flags] == fake_tensorrt.BUILT
    stamp = EngineStamp.read(folder / "tensorrt" / "model.engine")
    assert stamp.precision == model
    assert stamp.flags == ["STRONGLY_TYPED"]
    assert stamp.validation["min_cosine"] > 0.9999


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("fp16", {"precision": "fp32"}, "for a graph in fp16, expected 'fp16'"),
        ("fp32", {"precision": "fp16"}, "a graph in fp32.*; .*export the model in fp16 first"),
        ("fp32", {"precision": "bf16"}, r"'bf16': expected one of \['fp16', 'fp32'\]"),
        ("fp32", {"precision": "int8"}, "precision 'int8': expected one of"),
        ("fp32", {"device": "cuda"}, "device 'cuda': expected 'tensorrt'"),
        ("int8", {}, r"got precision 'int8', expected one of .*; export the model in fp16 first"),
    ],
)
def test_builds_that_are_refused(
    exported: dict[str, Path], tmp_path: Path, model: str, options: Any, message: str
) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        export_tensorrt(exported[model], tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_invalid_folders(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match=r"no manifest\.json"):
        export_tensorrt(tmp_path)
    folder = shutil.copytree(exported["fp32"], tmp_path / "altered")
    flip_byte(folder / "model.onnx")
    with pytest.raises(GranAlignError, match="altered weights"):
        export_tensorrt(folder)


def test_a_failed_build_gives_the_reason(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = graph_shapes(exported["fp32"] / "model.onnx")
    assert shapes is not None
    # No shape reaches TensorRT.
    monkeypatch.setattr(fake_tensorrt.IOptimizationProfile, "set_shape", lambda *args: None)
    with pytest.raises(GranAlignError, match=r"cannot build an engine \(a dynamic input lacks"):
        build_engine(
            exported["fp32"] / "model.onnx",
            shapes,
            Device.parse("tensorrt"),
            tmp_path / "timings",
        )


def test_a_failed_export_keeps_the_old_engine(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported["fp32"], tmp_path / "model")
    assert export_tensorrt(folder) == folder
    export_tensorrt(folder, precision="fp32")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert open_session(folder / "model.onnx", device="tensorrt").precision == "fp32"

    def run_wrongly(self: Any, arrays: Any) -> Any:
        return {name: array + 0.1 for name, array in run(self, arrays).items()}

    run = fake_tensorrt.IExecutionContext._run
    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "_run", run_wrongly)
    with pytest.raises(GranAlignError, match=r"batches of 1: 41 .*'row 0'.*256, again: 41 "):
        export_tensorrt(folder, precision="fp32")
    after = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert after == before


def test_timings_are_cached_for_this_machine(exported: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tensorrt-10.16.1.11-sm9.0-nvidia-h200.timings"
    path = path.parent / "tensorrt" / path.name
    for i, expected in enumerate([b"timed;", b"timed;timed;", b"timed;"]):
        if i == 2:
            path.write_bytes(b"other machine")
        export_tensorrt(exported["fp32"], tmp_path / str(i), cache_dir=tmp_path / "cache")
        assert path.read_bytes() == expected


def test_the_command(exported: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        export_app, ["tensorrt", str(exported["fp32"]), str(out), "--precision", "fp32"]
    )
    assert result.exit_code == 0 and str(out) in result.output
    assert (out / "tensorrt" / "model.engine").is_file() and (out / "manifest.json").is_file()
