"""The `granalign` command. Heavy imports wait for the command that needs them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import GranAlignError

if TYPE_CHECKING:
    from .retriever import MomentRetriever

app = typer.Typer(
    help="Find the moment in a video that a sentence describes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
export_app = typer.Typer(no_args_is_help=True, help="Write a model as ONNX, checked.")
app.add_typer(export_app, name="export")

Preset = Annotated[str, typer.Option(help="tuned (the default), or paper: the text to the letter.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="A sentence-transformers folder, one that `export` wrote, or org/name@revision on "
        "the hub. Default: all-MiniLM-L6-v2.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or int8. Default: an exported folder's own, else fp32."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
NewFolder = Annotated[Path, typer.Argument(help="A folder to write; it must not exist.")]
InputFile = Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines, plain or .gz.")]


@app.command()
def search(
    captions: Annotated[Path, typer.Argument(help="JSON Lines of vid and captions.")],
    query: Annotated[str, typer.Argument(help="The sentence that describes the moment.")],
    vid: Annotated[str | None, typer.Option(help="Which video, if the file has several.")] = None,
    rewrites: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON Lines of query and rewrites. Default: by rules."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many moments.")] = 5,
    preset: Preset = "tuned",
    encoder: Encoder = None,
    precision: Precision = None,
    device: Device = "cpu",
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw the curve and the moments.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank the moments of a captioned video that fit a query."""
    from .evaluation import read_captions
    from .report import print_moments, search_record
    from .rewrites import RuleRewriter, StoredRewriter

    videos = read_captions(captions)
    if vid is None and len(videos) > 1:
        raise GranAlignError(
            f"{captions}: holds {len(videos)} videos; name one with --vid, such as "
            f"{next(iter(videos))!r}"
        )
    video = videos.get(vid if vid is not None else next(iter(videos)))
    if video is None:
        raise GranAlignError(
            f"{captions}: has no video {vid!r}; expected one of its {len(videos)}, such as "
            f"{next(iter(videos))!r}"
        )
    rewriter = RuleRewriter() if rewrites is None else StoredRewriter(rewrites)
    (asked,) = rewriter.rewrite([query])
    _check_suffix(plot)
    retriever = _retriever(preset, encoder, precision, device, top=top)
    index = retriever.index(video)
    result = retriever.search(index, asked)
    if plot is not None:
        from .plot import draw_search

        draw_search(index, result, plot)
    if as_json:
        _print_json(search_record(index, result))
    else:
        print_moments(index, result)
        if plot is not None:
            typer.echo(f"drawn in {plot}")


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Argument(help="qvhighlights.")],
    queries: InputFile,
    captions: InputFile,
    ground_truth: InputFile,
    preset: Preset = "tuned",
    encoder: Encoder = None,
    precision: Precision = None,
    device: Device = "cpu",
    rewriter: Annotated[
        str, typer.Option(help="given: the queries file's own rewrites; rules: made by rules.")
    ] = "given",
    predictions: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a submission: .jsonl or .jsonl.gz.")
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep embeddings on disk and use those that are there.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Search every query of a benchmark in given captions, and score the moments."""
    from .evaluation import evaluate_qvhighlights
    from .jsonl import write_jsonl
    from .report import evaluation_record, print_evaluation
    from .rewrites import RuleRewriter

    if dataset != "qvhighlights":
        raise GranAlignError(f"dataset: got {dataset!r}, expected qvhighlights")
    if rewriter not in ("given", "rules"):
        raise GranAlignError(f"--rewriter: got {rewriter!r}, expected given or rules")
    if predictions is not None and not predictions.resolve().parent.is_dir():
        raise GranAlignError(f"--predictions {predictions}: its folder is not there; make it first")
    retriever = _retriever(preset, encoder, precision, device, cache=cache)
    with _progress("embedding captions", quiet=as_json) as progress:
        evaluation = evaluate_qvhighlights(
            retriever,
            queries=queries,
            captions=captions,
            ground_truth=ground_truth,
            rewriter=RuleRewriter() if rewriter == "rules" else None,
            progress=progress,
        )
    if predictions is not None:
        write_jsonl(predictions, evaluation.predictions)
    if as_json:
        _print_json(evaluation_record(evaluation))
    else:
        print_evaluation(evaluation)


@app.command()
def score(
    dataset: Annotated[str, typer.Argument(help="qvhighlights, charades or activitynet.")],
    predictions: InputFile,
    ground_truth: InputFile,
    as_json: Json = False,
) -> None:
    """Score predictions that lie in a file."""
    from .metrics import DATASETS, load_ground_truth, load_predictions
    from .report import print_metrics

    if dataset not in DATASETS:
        raise GranAlignError(f"dataset: got {dataset!r}, expected one of: {', '.join(DATASETS)}")
    truth = load_ground_truth(ground_truth)
    metrics = DATASETS[dataset](load_predictions(predictions, truth), truth)
    if as_json:
        _print_json(metrics)
    else:
        print_metrics(metrics)


@app.command()
def demo(
    plot: Annotated[Path, typer.Option(metavar="PNG", help="Where to draw.")] = Path("demo.png"),
) -> None:
    """Ask a captioned video that comes with the package, and draw the answer."""
    from importlib.resources import as_file, files

    from .report import DEMO_QUERY

    with as_file(files("granalign_fast") / "data") as data:
        video, rewrites = data / "demo.jsonl", data / "demo_rewrites.jsonl"
        typer.echo(
            f"$ granalign search {_short(video)} {DEMO_QUERY!r} --rewrites {_short(rewrites)}"
        )
        search(video, DEMO_QUERY, rewrites=rewrites, plot=plot)


@app.command()
def doctor(device: Device = "cpu", as_json: Json = False) -> None:
    """Say what is installed, what is missing, and the command that brings it."""
    from dataclasses import asdict

    from .doctor import examine
    from .report import print_findings

    findings = examine(device)
    if as_json:
        _print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings)
    if not all(finding.ok for finding in findings if finding.needed):
        raise typer.Exit(1)


@export_app.command("sentence-encoder")
def export_sentence_encoder(
    source: Annotated[
        str, typer.Argument(help="A sentence-transformers folder, or org/name@revision on the hub.")
    ],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
) -> None:
    """Write a sentence encoder with pooling and normalisation inside the graph."""
    from .export.sentence_encoder import export_sentence_encoder as run

    _export(run, source, out, precision)


@export_app.command("clip")
def export_clip(
    source: Annotated[
        str, typer.Argument(help="A CLIP or SigLIP folder, or org/name@revision on the hub.")
    ],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
) -> None:
    """Write the image and text towers of CLIP or SigLIP, normalisation inside the graphs."""
    from .export.clip import export_clip as run

    _export(run, source, out, precision)


@export_app.command("llm")
def export_llm(
    source: Annotated[
        str, typer.Argument(help="A Llama, Qwen2 or Qwen3 folder, or org/name@revision on the hub.")
    ],
    out: NewFolder,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int4.")] = "fp32",
) -> None:
    """Write a language model with its cache in the graph; optimum's ORTModel opens it too."""
    from .export.llm import export_llm as run

    _export(run, source, out, precision)


def main() -> None:
    """The entry point: an error that a user can cause is one line, and the exit code 2."""
    try:
        app()
    except GranAlignError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")


def _export(run: Callable[..., Path], source: str, out: Path, precision: str) -> None:
    with _status(f"exporting {source} in {precision}"):
        run(source, out, precision=precision)
    typer.echo(f"written and checked against the source: {out}")


def _fail(message: str) -> None:
    sys.stderr.write(f"granalign: {message}\n")
    sys.exit(2)


def _retriever(
    preset: str,
    encoder: str | None,
    precision: str | None,
    device: str,
    *,
    top: int | None = None,
    cache: bool = False,
) -> MomentRetriever:
    from dataclasses import replace

    from .cache import CachedEncoder, default_cache
    from .config import preset as find
    from .encoders import SentenceEncoder
    from .retriever import MomentRetriever

    config = find(preset)
    if top is not None:
        config = replace(config, top=top)
    model = SentenceEncoder(encoder, precision=precision, device=device)
    return MomentRetriever(CachedEncoder(model, default_cache()) if cache else model, config)


def _check_suffix(plot: Path | None) -> None:
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise GranAlignError(f"--plot {plot}: expected a name that ends in .png, .svg or .pdf")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


def _short(path: Path) -> str:
    """Relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return min(str(path), relative, key=len)


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, where somebody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda more, total: bar.update(task, advance=more, total=total)


@contextmanager
def _status(what: str) -> Iterator[None]:
    """A spinner on stderr, where somebody watches."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
