"""``granalign export``: models to ONNX folders."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.output.visible import visible

from .options import CaptionsOnly, NewFolder, SearchPreset
from .progress import status, weights_progress
from .verbosity import is_quiet, with_verbosity

export_app = typer.Typer(no_args_is_help=True, help="Write models as ONNX and check them.")


Check = Annotated[
    bool | None,
    typer.Option(
        "--check/--no-check",
        show_default=False,
        help="Compare with transformers, which loads the whole model in float32. "
        "Default: if the extra [export] is installed.",
    ),
]


def _source(folder: str) -> Any:
    return typer.Argument(help=f"{folder}, or org/name on the hub.")


@export_app.command("sentence-encoder")
@with_verbosity
def export_sentence_encoder(
    source: Annotated[str, _source("A sentence-transformers folder")],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    check: Check = None,
) -> None:
    """Write a sentence encoder with pooling and normalisation inside the graph."""
    from granalign_fast.export.sentence_encoder import export_sentence_encoder as run

    _export(run, source, out, precision, check)


@export_app.command("clip")
@with_verbosity
def export_clip(
    source: Annotated[str, _source("A CLIP or SigLIP folder")],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    check: Check = None,
) -> None:
    """Write the image and text towers of CLIP or SigLIP, normalisation inside the graphs."""
    from granalign_fast.export.frame_encoder import export_clip as run

    _export(run, source, out, precision, check)


@export_app.command("llm")
@with_verbosity
def export_llm(
    source: Annotated[
        str,
        typer.Argument(
            help="A Llama, Qwen2 or Qwen3 folder, or org/name on the hub. Other "
            "architectures are exported by optimum, in fp32."
        ),
    ],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int4.")] = "fp32",
    check: Check = None,
) -> None:
    """Write a language model with its cache in the graph; optimum's ORTModel opens it too."""
    from granalign_fast.export.llm import export_llm as run

    _export(run, source, out, precision, check)


@export_app.command("vlm")
@with_verbosity
def export_vlm(
    source: Annotated[str, _source("A folder of a Qwen2.5-VL, Qwen3-VL or SmolVLM2")],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int4.")] = "fp32",
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Size of resized frames, in multiples of 28 pixels (Qwen2.5-VL) or 32 (Qwen3-VL); "
            "by default 12 x 20 of these. SmolVLM2: the size of its tower, or tiles of that size, "
            "such as 1024x1024 (500M).",
        ),
    ] = None,
    check: Check = None,
) -> None:
    """Write a vision-language model for frames of one size."""
    from granalign_fast.export.vlm import export_vlm as run

    size = None
    if image_size is not None:
        height, cross, width = image_size.partition("x")
        if not (cross and height.isdecimal() and width.isdecimal()):
            raise GranAlignError(
                f"--image-size: got {image_size!r}, expected HEIGHTxWIDTH such as 448x672"
            )
        size = int(height), int(width)
    _export(run, source, out, precision, check, image_size=size)


@export_app.command("tensorrt")
@with_verbosity
def export_tensorrt(
    folder: Annotated[
        Path, typer.Argument(help="A sentence encoder, CLIP or vlm folder that `export` wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(help="A new folder for a copy with engines. Default: FOLDER itself."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or fp16; it must be that of the folder.")
    ] = None,
    device: Annotated[str, typer.Option(help="tensorrt, tensorrt:1, ...")] = "tensorrt",
) -> None:
    """Build TensorRT engines of an exported encoder, for this GPU and this TensorRT only."""
    from granalign_fast.export.tensorrt import export_tensorrt as run

    with status(f"building engines of {folder}; this takes minutes"):
        done = run(folder, out, precision=precision, device=device)
    typer.echo(f"built and checked against the ONNX: {visible(str(done))}")


@export_app.command("triton")
@with_verbosity
def export_triton(
    models: Annotated[Path, typer.Argument(help="A folder of exported models, or: miniatures.")],
    out: Annotated[
        Path, typer.Argument(metavar="REPO", help="A model repository; it must not exist.")
    ],
    library: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="A library that the repository's granalign_search searches, as a path on the "
            "server. Default: no such model, the encoders alone.",
        ),
    ] = None,
    models_at: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where MODELS is on the server, whose language models the search uses. Default: "
            "the same path.",
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Of the encoders: onnxruntime, or python.")
    ] = "onnxruntime",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, tensorrt, ...")] = "cpu",
    instances: Annotated[int, typer.Option(min=1, help="Instances of each encoder.")] = 1,
    preset: SearchPreset = None,
    captions_only: CaptionsOnly = False,
) -> None:
    """Write a model repository for Triton: the encoders, and the search of a library."""
    from granalign_fast.config import resolve_config
    from granalign_fast.export.cached import exported_minilm
    from granalign_fast.export.triton import SearchPlace
    from granalign_fast.export.triton import export_triton as run
    from granalign_fast.miniatures import NAMES
    from granalign_fast.models.manifest import LLM, SENTENCE_ENCODER, VLM, exported_models
    from granalign_fast.pipeline import models_folder

    if preset is not None:
        resolve_config(preset)  # an unknown name is refused
    folder = models_folder(models)
    kinds = exported_models(folder)
    place = None
    if library is not None:
        language = None
        if not captions_only and {LLM, VLM} & kinds.keys():
            names = {path: name for name, path in NAMES.items()}
            here = names.get(folder, str(folder.absolute()))
            language = models_at or here
        place = SearchPlace(str(Path(library).absolute()), language, preset, captions_only)
        kinds.setdefault(SENTENCE_ENCODER, exported_minilm())
    with status(f"copying the models to {out}"):
        run(kinds, out, search=place, backend=backend, device=device, instances=instances)
    typer.echo(f"written: {visible(str(out))}")


def _export(
    run: Callable[..., Path],
    source: str,
    out: Path,
    precision: str,
    check: bool | None,
    **options: Any,
) -> None:
    with weights_progress(f"exporting {source} in {precision}") as progress, ended_by_signals():
        run(
            source,
            out,
            precision=precision,
            check=check,
            progress=progress.step,
            written=progress.written,
            **options,
        )
    report_export(out)


def report_export(out: Path) -> None:
    """Say what was written, and whether it was compared with transformers."""
    from granalign_fast.errors import install_command
    from granalign_fast.export.checks.transformers import NOT_COMPARED
    from granalign_fast.files import read_json

    if read_json(out / "manifest.json")["comparison"] != NOT_COMPARED:
        typer.echo(f"written and checked against the source: {visible(str(out))}")
        return
    typer.echo(f"written and checked against NumPy: {visible(str(out))}")
    if not is_quiet():
        remedy = f"run {install_command('export')}, and export again with --check"
        typer.echo(f"{NOT_COMPARED}: to compare, {remedy}", err=True)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the block by an exception on SIGTERM and SIGHUP, so that what is half written goes.

    A second signal does not interrupt the deletion.
    """

    def end(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set them
        numbers = (signal.SIGTERM, signal.SIGHUP)
        before = {
            number: signal.signal(number, end)
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup sets it
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
