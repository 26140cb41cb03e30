"""An exported encoder in, checked TensorRT engines of its graphs out; all of them, or none.

No engine has been built by this yet, as no GPU was at hand: everything up to the builder's call is
tested against a stand-in, whose methods and parameters are compared with TensorRT's own bindings.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.export.checks.encoder import check_precision
from granalign_fast.export.sources.folder import appearing
from granalign_fast.files import replacing, sha256_of
from granalign_fast.models.exported_graph import graph_shapes
from granalign_fast.models.graph_contract import ENGINE_GRAPHS
from granalign_fast.models.manifest import read_manifest
from granalign_fast.runtime.cache_folder import usable_cache
from granalign_fast.runtime.device import Device
from granalign_fast.runtime.engine_stamp import ENGINE_FOLDER, EngineStamp, engine_path
from granalign_fast.runtime.shapes import GraphShapes, Profile, load_graph
from granalign_fast.runtime.standard_operators import standardise
from granalign_fast.runtime.tensorrt_library import Machine, libraries, logged_errors, logger

from .specs import ENGINE_PRECISIONS


def export_tensorrt(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    precision: str | None = None,
    device: str = "tensorrt",
    cache_dir: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Build engines of an exported encoder for this GPU and this version of TensorRT.

    They go to the sub-folder ``tensorrt``, where `Session` finds them, each with its stamp. Each is
    compared with its ONNX on the CPU, at every batch size, before it gets its place; on failure
    what was there before is still there. What the builder measures is kept in the cache folder, so
    that building again is quicker.

    Args:
        folder: a sentence encoder, a CLIP or a vision-language model as `granalign export` wrote
            it. Of the last it is the vision tower alone.
        out: a folder to write, with a copy of the model in it; None for `folder` itself, whose
            engines are then replaced.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``; None for the folder's own. A float32 graph
            can have any, and TensorRT then decides for each layer; a float16 one only its own.
        device: ``"tensorrt"`` or ``"tensorrt:<number>"``.
        cache_dir: None for ``granalign-fast`` in the user's cache folder.
        progress: called with the name of each step as it begins.

    Raises:
        GranAlignError: the folder is of another kind or altered, `out` exists, TensorRT cannot
            build an engine, or an engine is too far from its ONNX.
        MissingExtraError: TensorRT, CuPy or ONNX Runtime is not installed.
    """
    tell = progress or (lambda step: None)
    folder, wanted = Path(folder), Device.parse(device)
    if wanted.kind != "tensorrt":
        raise GranAlignError(f"device {device!r}: expected 'tensorrt' or 'tensorrt:<number>'")
    if precision is not None:
        check_precision(precision, ENGINE_PRECISIONS)
    tell("reading")
    graphs = _graphs(folder, precision)
    machine = Machine.current(wanted.index or 0)
    cache = Path(cache_dir) if cache_dir is not None else usable_cache()
    timings = None if cache is None else cache / ENGINE_FOLDER / f"{machine.slug}.timings"
    from granalign_fast.export.checks.engine import validate_engine

    with _draft(folder, Path(out) if out is not None else None) as draft:
        for graph, shapes in graphs.items():
            tell(f"building {graph.name}")
            plan = build_engine(graph, shapes, precision or shapes.precision, wanted, timings)
            path = draft / engine_path(graph).name
            path.write_bytes(plan.data)
            stamp = EngineStamp(
                engine_sha256=hashlib.sha256(plan.data).hexdigest(),
                sources={name: sha256_of(folder / name) for name in (graph.name, *plan.files)},
                machine=machine,
                precision=precision or shapes.precision,
                flags=plan.flags,
                profiles=list(shapes.profiles),
                validation={},
            )
            del plan
            stamp.write(path)
            tell(f"comparing {graph.name} with its ONNX")
            measured = validate_engine(path, graph, wanted.index or 0)
            replace(stamp, validation=measured).write(path)
    return folder if out is None else Path(out)


def _graphs(folder: Path, precision: str | None) -> dict[Path, GraphShapes]:
    """The graphs of a folder that TensorRT runs; every file of the folder is checked."""
    if not (folder / "manifest.json").is_file():
        raise GranAlignError(
            f"{folder}: no manifest.json; name a folder that `granalign export` wrote, of one model"
        )
    kind = read_manifest(folder).kind
    if kind not in ENGINE_GRAPHS:
        raise GranAlignError(
            f"{folder}: got kind {kind!r}, expected one of {sorted(ENGINE_GRAPHS)}; decoders run "
            f"by CUDA"
        )
    found = {}
    for spec in ENGINE_GRAPHS[kind]:
        graph = folder / spec.file
        shapes = graph_shapes(graph)
        if shapes is None:
            continue
        if precision not in (None, "fp16") and shapes.precision == "fp16":
            raise GranAlignError(
                f"{graph}: got precision {precision!r} for a graph in fp16, expected 'fp16'; for "
                f"any other, export the model in fp32 first"
            )
        found[graph] = shapes
    return found


@contextmanager
def _draft(folder: Path, out: Path | None) -> Iterator[Path]:
    """A folder of engines, which takes its place when the block ends well."""
    if out is not None:
        with appearing(out) as draft:
            for path in folder.iterdir():
                if path.is_file():
                    shutil.copy2(path, draft / path.name)
                elif path.name != ENGINE_FOLDER:
                    shutil.copytree(path, draft / path.name)
            (draft / ENGINE_FOLDER).mkdir()
            yield draft / ENGINE_FOLDER
        return
    place = folder / ENGINE_FOLDER
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{ENGINE_FOLDER}.", dir=folder))
    except OSError as error:
        raise GranAlignError(
            f"{place}: cannot be written ({error.strerror or error}); name an OUT to copy it to"
        ) from None
    try:
        yield draft
        shutil.rmtree(place, ignore_errors=True)
        draft.chmod(0o755)  # mkdtemp makes it private
        draft.rename(place)
    except OSError as error:
        raise GranAlignError(f"{place}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@dataclass(frozen=True)
class Plan:
    """A serialised engine, the flags it was built with, and the graph's external data files."""

    data: bytes
    flags: list[str]
    files: list[str]


def build_engine(
    graph: Path, shapes: GraphShapes, precision: str, device: Device, timings: Path | None
) -> Plan:
    """Build the engine of one graph; this takes minutes.

    Args:
        graph: the ONNX, its external data beside it.
        shapes: what it is made ready for.
        precision: one of `ENGINE_PRECISIONS`; of a float16 graph, ``"fp16"``.
        device: which GPU.
        timings: what the builder has measured before, read if it is there and written again;
            None to keep nothing.

    Raises:
        GranAlignError: TensorRT cannot read the graph, with all that it complains of, or cannot
            build the engine.
    """
    trt, cupy = libraries()
    log = logger(trt)
    log.errors.clear()
    model = load_graph(graph)
    files = external_files(model)
    cast_bytes(model)
    standardise(model)
    try:
        with cupy.cuda.Device(device.index or 0):
            builder = trt.Builder(log)
            typed = precision == shapes.precision
            network = builder.create_network(_network_flags(trt, typed=typed))
            parser = trt.OnnxParser(network, log)  # owns the weights until the engine is built
            if not parser.parse(model.SerializeToString(), str(graph)):  # where external data lie
                raise _unreadable(trt.__version__, parser, log, graph)
            config = builder.create_builder_config()
            flags = _set_flags(trt, config, precision, typed=typed)
            for profile in shapes.profiles:
                _add_profile(builder, config, profile)
            _load_timings(config, timings)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise GranAlignError(
                    f"{graph}: TensorRT cannot build an engine ({logged_errors(log)}); free the "
                    f"GPU's memory, or choose another precision"
                )
            _save_timings(config, timings)
            return Plan(bytes(plan), flags, files)
    except GranAlignError:
        raise
    # TensorRT's bindings raise RuntimeError, TypeError or ValueError, CuPy its own.
    except Exception as error:
        raise GranAlignError(
            f"{graph}: TensorRT cannot build an engine ({one_line(error)}; {logged_errors(log)})"
        ) from None


def external_files(model: Any) -> list[str]:
    """The names of the files that hold a graph's large tensors."""
    return sorted(
        {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def cast_bytes(model: Any) -> None:
    """Make inputs of bytes float32 at once: with bytes TensorRT can do nothing else.

    All later operators only move values, until the graph's own cast, which then changes nothing, or
    until it takes a level off and scales the rest, which is spelled out; so results are the same to
    the bit.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        numbers = f"{value.name}.float32"
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == value.name:
                    node.input[i] = numbers
        cast = helper.make_node("Cast", [value.name], [numbers], name=numbers, to=TensorProto.FLOAT)
        graph.node.insert(0, cast)
        del graph.value_info[:]  # what is left of bytes there is wrong now
    nodes = [part for node in graph.node for part in _levels(graph, node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _levels(graph: Any, node: Any) -> list[Any]:
    """A `DequantizeLinear` of what were bytes as a cast, a difference and a product."""
    from onnx import helper, numpy_helper

    if node.op_type != "DequantizeLinear":
        return [node]
    x, step, centre = node.input
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kind, dtype = tensors[step].data_type, numpy_helper.to_array(tensors[step]).dtype
    numbers, less, level = (f"{node.name}.{part}" for part in ("numbers", "less", "level"))
    taken = numpy_helper.to_array(tensors[centre]).astype(dtype)
    graph.initializer.append(numpy_helper.from_array(taken, level))
    graph.initializer.remove(tensors[centre])
    return [
        helper.make_node("Cast", [x], [numbers], name=numbers, to=kind),
        helper.make_node("Sub", [numbers, level], [less], name=less),
        helper.make_node("Mul", [less, step], node.output, name=node.name),
    ]


def _network_flags(trt: Any, *, typed: bool) -> int:
    """Strongly typed: every layer computes in the graph's own type, none in another."""
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    return 1 << int(flag) if typed else 0


def _unreadable(version: str, parser: Any, log: Any, graph: Path) -> GranAlignError:
    """All that the parser complains of, in one line."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [
        f"{error.node_operator()} {error.node_name()!r}: {' '.join(error.desc().split())}"
        for error in errors
    ]
    return GranAlignError(
        f"{graph}: TensorRT {version} cannot read it, {len(lines)} errors: "
        f"{'; '.join(lines) or logged_errors(log)}; install TensorRT 10.16, or run it by 'cuda'"
    )


def _set_flags(trt: Any, config: Any, precision: str, *, typed: bool) -> list[str]:
    """Allow what the precision allows, and say what is allowed."""
    flags = trt.BuilderFlag
    if precision == "fp32":
        config.clear_flag(flags.TF32)  # 11 bits of mantissa are not float32
    if typed:
        return ["STRONGLY_TYPED"]
    config.set_flag({"fp16": flags.FP16, "bf16": flags.BF16}[precision])
    return [precision.upper()]


def _add_profile(builder: Any, config: Any, profile: Profile) -> None:
    made = builder.create_optimization_profile()
    for name, bounds in profile.items():
        made.set_shape(name, bounds.least, bounds.usual, bounds.most)
    if config.add_optimization_profile(made) < 0:
        shown = ", ".join(f"{name} {bounds}" for name, bounds in profile.items())
        raise GranAlignError(f"TensorRT refuses the shapes {shown}; report this model")


def _load_timings(config: Any, path: Path | None) -> None:
    data = b""
    if path is not None:
        with suppress(OSError):
            data = path.read_bytes()
    # A mismatch or damage is no harm: the builder measures again.
    cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: Any, path: Path | None) -> None:
    if path is None:
        return
    # Without them building is slow the next time, which is no reason to throw an engine away.
    with suppress(OSError, GranAlignError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(bytes(config.get_timing_cache().serialize()))
