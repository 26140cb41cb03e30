"""The exporter of TensorRT engines: an exported encoder in, checked engines of its graphs out.

This module has not built a real engine yet, because no GPU was available. The tests run everything
up to the builder's call against a stand-in, and compare the stand-in's methods and parameters with
TensorRT's own bindings.
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
from granalign_fast.files import appearing, replacing, sha256_of
from granalign_fast.models.exported_graph import graph_shapes
from granalign_fast.models.graph_contract import ENGINE_GRAPHS
from granalign_fast.models.manifest import read_manifest
from granalign_fast.parsing.limits import MOST_GRAPH_BYTES
from granalign_fast.reading import checked_file, read_file
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

    The engines go to the sub-folder ``tensorrt``, where `Session` looks for them, each with its
    stamp. Each engine is compared with its ONNX graph on the CPU, at every batch size, before the
    sub-folder gets its name. On failure earlier engines stay. The builder's measurements go to the
    cache folder, so that the next build is quicker.

    Args:
        folder: a sentence encoder, a CLIP or a vision-language model that `granalign export` wrote.
            Of a vision-language model only the vision tower gets an engine.
        out: a folder to write, with a copy of the model in it; None replaces the engines of
            `folder` itself.
        precision: ``"fp32"`` or ``"fp16"``, which must be that of the graph; None for just that.
            Engines are strongly typed: they compute every layer in the graph's types. TensorRT 11
            has no other way, and no flags for it.
        device: ``"tensorrt"`` or ``"tensorrt:<number>"``.
        cache_dir: None for ``granalign-fast`` in the user's cache folder.
        progress: called with the name of each step as it begins.

    Raises:
        GranAlignError: the folder is of another kind or altered, `out` exists, TensorRT cannot
            build an engine, or an engine is too far from its ONNX.
        MissingExtraError: TensorRT, CuPy or ONNX Runtime is not installed.
    """
    tell = progress or (lambda step: None)
    # Check what is cheap to check before any work.
    folder, gpu = Path(folder), Device.parse(device)
    if gpu.kind != "tensorrt":
        raise GranAlignError(f"device {device!r}: expected 'tensorrt' or 'tensorrt:<number>'")
    if precision is not None:
        check_precision(precision, ENGINE_PRECISIONS)
    # Read the graphs and the machine, which an engine is bound to.
    tell("reading")
    graphs = _graphs(folder, precision)
    machine = Machine.current(gpu.index or 0)
    engines = usable_cache(ENGINE_FOLDER) if cache_dir is None else Path(cache_dir) / ENGINE_FOLDER
    timings = None if engines is None else engines / f"{machine.slug}.timings"
    from granalign_fast.export.checks.engine import validate_engine

    with _draft(folder, Path(out) if out is not None else None) as draft:
        for graph, shapes in graphs.items():
            # Build the engine, and write it with its stamp.
            tell(f"building {graph.name}")
            plan = build_engine(graph, shapes, gpu, timings)
            path = draft / engine_path(graph).name
            path.write_bytes(plan.data)
            stamp = EngineStamp(
                engine_sha256=hashlib.sha256(plan.data).hexdigest(),
                sources={name: sha256_of(folder / name) for name in (graph.name, *plan.files)},
                machine=machine,
                precision=shapes.precision,
                flags=plan.flags,
                profiles=list(shapes.profiles),
                validation={},
            )
            del plan
            stamp.write(path)
            # Compare; the stamp then gets the measured errors.
            tell(f"comparing {graph.name} with its ONNX")
            measured = validate_engine(path, graph, gpu.index or 0)
            replace(stamp, validation=measured).write(path)
    return folder if out is None else Path(out)


def _graphs(folder: Path, precision: str | None) -> dict[Path, GraphShapes]:
    """Return the graphs of a folder that TensorRT runs; `read_manifest` checks all files."""
    if not (folder / "manifest.json").is_file():
        raise GranAlignError(
            f"{folder}: no manifest.json; name a folder that `granalign export` wrote, of one model"
        )
    manifest = read_manifest(folder)
    kind = manifest.kind
    if manifest.precision not in ENGINE_PRECISIONS:
        raise GranAlignError(
            f"{folder}: got precision {manifest.precision!r}, expected one of "
            f"{sorted(ENGINE_PRECISIONS)}; export the model in fp16 first"
        )
    if kind not in ENGINE_GRAPHS:
        raise GranAlignError(
            f"{folder}: got kind {kind!r}, expected one of {sorted(ENGINE_GRAPHS)}; decoders run "
            f"by CUDA"
        )
    graphs = {}
    for spec in ENGINE_GRAPHS[kind]:
        graph = folder / spec.file
        # Not every vision-language model has a graph of clips.
        shapes = graph_shapes(graph) if spec.file in manifest.files else None
        if shapes is None:
            continue
        if precision not in (None, shapes.precision):
            raise GranAlignError(
                f"{graph}: got precision {precision!r} for a graph in {shapes.precision}, expected "
                f"{shapes.precision!r}; for the other, export the model in {precision} first"
            )
        graphs[graph] = shapes
    return graphs


@contextmanager
def _draft(folder: Path, out: Path | None) -> Iterator[Path]:
    """Yield a draft folder of engines; it gets its name when the block ends without an error."""
    # A new folder: copy the model, but not its engines.
    if out is not None:
        with appearing(out) as draft:
            for path in folder.iterdir():
                if path.is_file():
                    shutil.copy2(checked_file(path, inside=folder), draft / path.name)
                elif path.name != ENGINE_FOLDER:
                    shutil.copytree(path, draft / path.name, symlinks=True)
            (draft / ENGINE_FOLDER).mkdir()
            yield draft / ENGINE_FOLDER
        return
    # The model's own folder: the draft replaces its engines at the end.
    target = folder / ENGINE_FOLDER
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{ENGINE_FOLDER}.", dir=folder))
    except OSError as error:
        raise GranAlignError(
            f"{target}: cannot be written ({error.strerror or error}); name an OUT to copy it to"
        ) from None
    try:
        yield draft
        shutil.rmtree(target, ignore_errors=True)
        draft.chmod(0o755)  # mkdtemp makes it private
        draft.rename(target)
    except OSError as error:
        raise GranAlignError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@dataclass(frozen=True)
class Plan:
    """A serialised engine, the flags it was built with, and the graph's external data files."""

    data: bytes
    flags: list[str]
    files: list[str]


def build_engine(graph: Path, shapes: GraphShapes, device: Device, timings: Path | None) -> Plan:
    """Build the strongly typed engine of one graph; this takes minutes.

    Args:
        graph: the ONNX file; its external data are in the same folder.
        shapes: the shapes that the engine must accept, and the graph's precision.
        device: the GPU.
        timings: file of the builder's earlier measurements; it is read if it exists, and written.
            None keeps no measurements.

    Raises:
        GranAlignError: TensorRT cannot read the graph, or cannot build the engine. The message
            holds all of its complaints.
    """
    trt, cupy = libraries()
    log = logger(trt)
    log.errors.clear()
    # Make the graph readable: no bytes but in casts, and standard operators alone.
    model = load_graph(graph)
    files = external_files(model)
    cast_bytes(model)
    standardise(model)
    try:
        with cupy.cuda.Device(device.index or 0):
            # Parse the graph.
            builder = trt.Builder(log)
            network = builder.create_network(_network_flags(trt))
            parser = trt.OnnxParser(network, log)  # owns the weights until the engine is built
            # The path tells the parser the folder of external data.
            if not parser.parse(model.SerializeToString(), str(graph)):
                raise _unreadable(trt.__version__, parser, log, graph)
            # Configure precision, shapes and earlier measurements, then build.
            config = builder.create_builder_config()
            if shapes.precision == "fp32":
                config.clear_flag(trt.BuilderFlag.TF32)  # 11 bits of mantissa are not float32
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
            return Plan(bytes(plan), ["STRONGLY_TYPED"], files)
    except GranAlignError:
        raise
    # TensorRT's bindings raise RuntimeError, TypeError or ValueError, CuPy its own.
    except Exception as error:
        raise GranAlignError(
            f"{graph}: TensorRT cannot build an engine ({one_line(error)}; {logged_errors(log)})"
        ) from None


def external_files(model: Any) -> list[str]:
    """Return the names of the files that hold a graph's large tensors."""
    return sorted(
        {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def cast_bytes(model: Any) -> None:
    """Cast inputs of bytes to float32 at once: TensorRT can do nothing else with bytes.

    Results are equal to the bit. The graph's next operators only move values. Then it casts them,
    which now changes nothing, or it dequantises them; `DequantizeLinear` becomes a difference and a
    product.
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
        del graph.value_info[:]  # recorded types of bytes are wrong now
    nodes = [part for node in graph.node for part in _expand_dequantize(graph, node)]
    del graph.node[:]
    graph.node.extend(nodes)


def _expand_dequantize(graph: Any, node: Any) -> list[Any]:
    """Return a `DequantizeLinear` of former bytes as cast, difference and product."""
    from onnx import helper, numpy_helper

    if node.op_type != "DequantizeLinear":
        return [node]
    x, step, centre = node.input
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kind, dtype = tensors[step].data_type, numpy_helper.to_array(tensors[step]).dtype
    # The zero point becomes a number of the scale's type.
    numbers, less, level = (f"{node.name}.{part}" for part in ("numbers", "less", "level"))
    zero_point = numpy_helper.to_array(tensors[centre]).astype(dtype)
    graph.initializer.append(numpy_helper.from_array(zero_point, level))
    graph.initializer.remove(tensors[centre])
    return [
        helper.make_node("Cast", [x], [numbers], name=numbers, to=kind),
        helper.make_node("Sub", [numbers, level], [less], name=less),
        helper.make_node("Mul", [less, step], node.output, name=node.name),
    ]


def _network_flags(trt: Any) -> int:
    """Return the flags of a strongly typed network, whose layers keep the graph's types.

    TensorRT 11 takes no notice of them: its networks are all so.
    """
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _unreadable(version: str, parser: Any, log: Any, graph: Path) -> GranAlignError:
    """Return an error with all of the parser's complaints, in one line."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [
        f"{error.node_operator()} {error.node_name()!r}: {' '.join(error.desc().split())}"
        for error in errors
    ]
    return GranAlignError(
        f"{graph}: TensorRT {version} cannot read it, {len(lines)} errors: "
        f"{'; '.join(lines) or logged_errors(log)}; run it by 'cuda', or report this model"
    )


def _add_profile(builder: Any, config: Any, profile: Profile) -> None:
    """Add the least, usual and greatest shape of every input."""
    bounds_of_inputs = builder.create_optimization_profile()
    for name, bounds in profile.items():
        bounds_of_inputs.set_shape(name, bounds.least, bounds.usual, bounds.most)
    if config.add_optimization_profile(bounds_of_inputs) < 0:
        shown = ", ".join(f"{name} {bounds}" for name, bounds in profile.items())
        raise GranAlignError(f"TensorRT refuses the shapes {shown}; report this model")


def _load_timings(config: Any, path: Path | None) -> None:
    """Give the builder its earlier measurements, if the file exists."""
    data = b""
    if path is not None:
        with suppress(GranAlignError):
            data = read_file(path, MOST_GRAPH_BYTES)
    # If the file is damaged or of another machine, the builder measures again.
    cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: Any, path: Path | None) -> None:
    """Write the builder's measurements for the next build."""
    if path is None:
        return
    # A failure only makes the next build slow: it must not discard the engine.
    with suppress(OSError, GranAlignError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, private=True) as file:
            file.write(bytes(config.get_timing_cache().serialize()))
