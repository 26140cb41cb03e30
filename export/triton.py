"""The exporter of a model repository for Triton: exported models in, encoders and a search out.

The encoders are models of their own, so that Triton joins the texts and frames of all requests. The
search is a Python model, which calls them; `server.triton` has its code.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.files import appearing
from granalign_fast.models.exported_graph import graph_shapes
from granalign_fast.models.graph_contract import (
    ENCODER_DEVICES,
    ENGINE_GRAPHS,
    IMAGE_GRAPH,
    SENTENCE_GRAPH,
    TEXT_GRAPH,
)
from granalign_fast.models.manifest import CLIP, SENTENCE_ENCODER, Manifest, read_manifest
from granalign_fast.models.triton_names import (
    IMAGE_MODEL,
    SEARCH_MODEL,
    SENTENCE_MODEL,
    TEXT_MODEL,
    VERSION,
)
from granalign_fast.reading import checked_file
from granalign_fast.runtime.device import Device
from granalign_fast.runtime.shapes import GraphShapes, load_graph

from .tensorrt import external_files
from .triton_config import Batching, Instances, ModelConfig, Tensor

BACKENDS = ("onnxruntime", "python")
"""Back ends that can run an encoder. Of a server that has Python's alone, ONNX Runtime runs there.
"""
_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 6: "TYPE_INT32", 7: "TYPE_INT64", 10: "TYPE_FP16"}
"""Triton's names of ONNX's types of elements, of all that an encoder takes and gives."""
_QUERIES = 16
"""Queries that are searched together, as in `granalign serve`."""
_WAITING = 64
"""Searches that wait; further ones are refused."""
_TIMEOUT_US = 60_000_000
"""Microseconds after which a search that waits is refused."""
_PYTHON_MODEL = '''"""{about} The code is granalign-fast's."""

from granalign_fast.server.triton.{module} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class SearchPlace:
    """The library and the models that the search model opens on the server.

    Attributes:
        library: the folder of the library there.
        models: the folder of the language models there, or ``miniatures``; None for none.
        preset: of a search that names none; None for the default.
        captions_only: leave out the models that look at frames.
    """

    library: str
    models: str | None = None
    preset: str | None = None
    captions_only: bool = False


def export_triton(
    models: Mapping[str, Path],
    out: str | Path,
    *,
    search: SearchPlace | None = None,
    backend: str = "onnxruntime",
    device: str = "cpu",
    instances: int = 1,
) -> Path:
    """Write a model repository.

    Args:
        models: folders of exported models by kind, as `exported_models` returns them. Encoders
            become models of the repository; others are left to the search.
        out: the repository, a new folder.
        search: of the search model; None for the encoders alone.
        backend: of the encoders, ``"onnxruntime"`` or ``"python"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"tensorrt"``: ONNX Runtime's TensorRT
            provider in the shape profiles of `ENGINE_GRAPHS`.
        instances: of each encoder.

    Raises:
        GranAlignError: there is no encoder, `out` exists, an argument is out of range, or a model's
            folder is altered.
    """
    out, parsed = Path(out), Device.parse(device)
    if backend not in BACKENDS:
        raise GranAlignError(f"backend: got {backend!r}, expected one of {BACKENDS}")
    if backend == "python" and parsed.kind == "tensorrt":
        raise GranAlignError(f"backend 'python': got device {device!r}, expected cpu or cuda")
    if instances < 1:
        raise GranAlignError(f"instances: got {instances}, expected at least 1")
    if SENTENCE_ENCODER not in models and (search is not None or CLIP not in models):
        raise GranAlignError(
            f"got models of the kinds {sorted(models)}, expected a sentence encoder; run "
            f"granalign export sentence-encoder"
        )
    where = _Target(backend, parsed, instances)
    with appearing(out) as draft:
        for kind in (SENTENCE_ENCODER, CLIP):
            if kind in models:
                _write_encoders(models[kind], draft, where)
        if search is not None:
            _write_search(search, draft, parsed)
    return out


@dataclass(frozen=True)
class _Target:
    """Where and how the encoders run."""

    backend: str
    device: Device
    instances: int

    @property
    def gpus(self) -> tuple[int, ...]:
        return () if self.device.kind == "cpu" else (self.device.index or 0,)


def _write_encoders(folder: Path, repository: Path, where: _Target) -> None:
    """Write the models of one exported folder: a sentence encoder, or the two towers of CLIP."""
    manifest = read_manifest(folder)
    allowed = ENCODER_DEVICES.get(manifest.precision, ("cpu",))
    if where.device.kind not in allowed:
        raise GranAlignError(
            f"{folder}: got device {where.device.kind!r} for precision {manifest.precision!r}, "
            f"expected one of {allowed}; export the model in fp16 for a GPU"
        )
    if manifest.kind == SENTENCE_ENCODER:
        names = {SENTENCE_MODEL: SENTENCE_GRAPH}
    else:
        names = {IMAGE_MODEL: IMAGE_GRAPH, TEXT_MODEL: TEXT_GRAPH}
    for name, graph in names.items():
        version = repository / name / VERSION
        version.mkdir(parents=True)
        # The version's folder is the exported folder: the search takes its tokenizer from there.
        files: Iterable[str] = manifest.files
        if name == TEXT_MODEL:
            files = (graph, *external_files(load_graph(folder / graph)))
        for file in ("manifest.json", *files):
            shutil.copyfile(checked_file(folder / file, inside=folder), version / file)
        if where.backend == "python":
            about = f"Runs {graph} by ONNX Runtime."
            _write_python(version, about, "encoder_model")
        config = _encoder_config(name, folder / graph, manifest, where)
        (repository / name / "config.pbtxt").write_text(config.to_text(), encoding="ascii")


def _encoder_config(name: str, graph: Path, manifest: Manifest, where: _Target) -> ModelConfig:
    """Return the configuration of an encoder."""
    model = load_graph(graph)
    batches = next(spec.batches for spec in ENGINE_GRAPHS[manifest.kind] if spec.file == graph.name)
    python = where.backend == "python"
    parameters = {"graph": graph.name, "device": where.device.name} if python else {}
    config = ModelConfig(
        name,
        where.backend,
        max_batch=batches[-1],
        inputs=tuple(map(_tensor, model.graph.input)),
        outputs=tuple(map(_tensor, model.graph.output)),
        instances=Instances(where.instances, where.gpus),
        file="model.py" if python else graph.name,
        parameters=parameters,
    )
    if where.device.kind != "tensorrt":
        return config
    # ONNX Runtime builds an engine for these shapes, when the model is loaded. Of a graph that it
    # would split, CUDA runs the whole.
    shapes = graph_shapes(graph)
    if shapes is None or not shapes.by_provider:
        return config
    preferred = Batching(preferred=batches[1:])
    return replace(config, batching=preferred, accelerator=_accelerator(shapes))


def _accelerator(shapes: GraphShapes) -> dict[str, str]:
    """Return the parameters of ONNX Runtime's TensorRT provider."""

    def written(sizes: Mapping[str, Sequence[int]]) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sizes.items())

    span = shapes.span
    return {
        # The graph's own types count, as in our engines.
        "precision_mode": shapes.precision.upper(),
        "trt_profile_min_shapes": written({name: each.least for name, each in span.items()}),
        "trt_profile_opt_shapes": written({name: each.usual for name, each in span.items()}),
        "trt_profile_max_shapes": written({name: each.most for name, each in span.items()}),
    }


def _tensor(value: Any) -> Tensor:
    """Return an input or output of an ONNX graph, whose first axis is the batch."""
    declared = value.type.tensor_type
    sizes = [axis.dim_value or -1 for axis in declared.shape.dim]
    kind = _TYPES.get(declared.elem_type)
    if kind is None or sizes[:1] != [-1]:
        raise GranAlignError(
            f"{value.name}: got the ONNX type {declared.elem_type} and the shape {sizes}, expected "
            f"a batch of numbers; export the model again"
        )
    return Tensor(value.name, kind, tuple(sizes[1:]))


def _write_search(search: SearchPlace, repository: Path, device: Device) -> None:
    """Write the search model."""
    version = repository / SEARCH_MODEL / VERSION
    version.mkdir(parents=True)
    _write_python(version, "Searches a library.", "search_model")
    given = {
        "library": search.library,
        "models": search.models,
        "preset": search.preset,
        "captions_only": "true" if search.captions_only else None,
        # Language models have no TensorRT engines.
        "device": device.name.replace("tensorrt", "cuda"),
    }
    config = ModelConfig(
        SEARCH_MODEL,
        "python",
        max_batch=_QUERIES,
        inputs=(
            Tensor("query", "TYPE_STRING", (1,)),
            Tensor("options", "TYPE_STRING", (1,), optional=True),
        ),
        outputs=(
            Tensor("answer", "TYPE_STRING", (1,)),
            Tensor("count", "TYPE_INT32", (1,)),
            Tensor("videos", "TYPE_STRING", (-1,)),
            Tensor("moments", "TYPE_FP64", (-1, 3)),
        ),
        # The model itself only waits for the encoders: one instance batches best.
        instances=Instances(),
        batching=Batching(delay_us=5000, waiting=_WAITING, timeout_us=_TIMEOUT_US),
        file="model.py",
        parameters={key: value for key, value in given.items() if value is not None},
    )
    (repository / SEARCH_MODEL / "config.pbtxt").write_text(config.to_text(), encoding="ascii")


def _write_python(version: Path, about: str, module: str) -> None:
    (version / "model.py").write_text(
        _PYTHON_MODEL.format(about=about, module=module), encoding="utf-8"
    )
