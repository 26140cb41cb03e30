"""``granalign export``: models to ONNX folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from granalign_fast.errors import GranAlignError

from .options import NewFolder
from .progress import status
from .verbosity import with_verbosity

export_app = typer.Typer(no_args_is_help=True, help="Write models as ONNX and check them.")


def _source(folder: str) -> Any:
    return typer.Argument(help=f"{folder}, or org/name on the hub.")


@export_app.command("sentence-encoder")
@with_verbosity
def export_sentence_encoder(
    source: Annotated[str, _source("A sentence-transformers folder")],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
) -> None:
    """Write a sentence encoder with pooling and normalisation inside the graph."""
    from granalign_fast.export.sentence_encoder import export_sentence_encoder as run

    _export(run, source, out, precision)


@export_app.command("clip")
@with_verbosity
def export_clip(
    source: Annotated[str, _source("A CLIP or SigLIP folder")],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
) -> None:
    """Write the image and text towers of CLIP or SigLIP, normalisation inside the graphs."""
    from granalign_fast.export.frame_encoder import export_clip as run

    _export(run, source, out, precision)


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
) -> None:
    """Write a language model with its cache in the graph; optimum's ORTModel opens it too."""
    from granalign_fast.export.llm import export_llm as run

    _export(run, source, out, precision)


@export_app.command("vlm")
@with_verbosity
def export_vlm(
    source: Annotated[str, _source("A Qwen2.5-VL folder")],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int4.")] = "fp32",
    image_size: Annotated[
        str,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Size of resized frames, in multiples of 28 pixels.",
        ),
    ] = "336x560",
) -> None:
    """Write a vision-language model for frames of one size."""
    from granalign_fast.export.vlm import export_vlm as run

    height, cross, width = image_size.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise GranAlignError(f"--image-size: got {image_size!r}, expected a size such as 336x560")
    _export(run, source, out, precision, image_size=(int(height), int(width)))


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
    typer.echo(f"built and checked against the ONNX: {done}")


def _export(
    run: Callable[..., Path], source: str, out: Path, precision: str, **options: Any
) -> None:
    with status(f"exporting {source} in {precision}"):
        run(source, out, precision=precision, **options)
    typer.echo(f"written and checked against the source: {out}")
