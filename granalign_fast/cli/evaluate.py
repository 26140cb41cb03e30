"""``granalign evaluate`` and ``granalign score``: searches and predictions against a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from granalign_fast.errors import GranAlignError

from .options import (
    Device,
    Encoder,
    InputFile,
    Json,
    Models,
    Precision,
    PrefixGib,
    Preset,
    check_target,
    print_json,
)
from .progress import progress_bar


def evaluate(
    dataset: Annotated[str, typer.Argument(help="qvhighlights.")],
    queries: InputFile,
    ground_truth: InputFile,
    captions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON Lines of captions; or --indexes."),
    ] = None,
    indexes: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What `index` wrote; or --captions."),
    ] = None,
    models: Models = None,
    absent: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON Lines of queries that their videos do not show."),
    ] = None,
    preset: Preset = "tuned",
    encoder: Encoder = None,
    precision: Precision = None,
    device: Device = "cpu",
    rewriter: Annotated[
        str,
        typer.Option(
            help="given: the rewrites in the queries file; rules: by rules; models: by the "
            "language model."
        ),
    ] = "given",
    predictions: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a submission: .jsonl or .jsonl.gz.")
    ] = None,
    prefix_gib: PrefixGib = 4.0,
    cache: Annotated[bool, typer.Option(help="Keep embeddings on disk, and use kept ones.")] = True,
    as_json: Json = False,
) -> None:
    """Search for every query of a benchmark in captions or videos, and score the moments."""
    from granalign_fast.evaluation import evaluate_qvhighlights
    from granalign_fast.jsonl import write_jsonl
    from granalign_fast.language.rewriters import RuleRewriter
    from granalign_fast.pipeline import open_models, open_retriever

    from .tables import evaluation_record, print_evaluation

    if dataset != "qvhighlights":
        raise GranAlignError(f"dataset: got {dataset!r}, expected qvhighlights")
    if rewriter not in ("given", "rules", "models"):
        raise GranAlignError(f"--rewriter: got {rewriter!r}, expected given, rules or models")
    if rewriter == "models" and models is None:
        raise GranAlignError("--rewriter models: got no models, expected --models DIR")
    check_target("--predictions", predictions)
    opened = None
    if models is not None:
        opened = open_models(models, device=device, prefix_gib=prefix_gib)
    retriever = open_retriever(
        preset, models=opened, encoder=encoder, precision=precision, device=device, cache=cache
    )
    rewriters = {
        "given": None,
        "rules": RuleRewriter(),
        "models": None if opened is None else opened.rewriter,
    }
    with progress_bar("embedding captions", "captions", hidden=as_json) as progress:
        evaluation = evaluate_qvhighlights(
            retriever,
            queries=queries,
            ground_truth=ground_truth,
            captions=captions,
            indexes=indexes,
            absent=absent,
            rewriter=rewriters[rewriter],
            progress=progress,
        )
    if predictions is not None:
        write_jsonl(predictions, evaluation.predictions)
    if as_json:
        print_json(evaluation_record(evaluation))
    else:
        print_evaluation(evaluation)


def score(
    dataset: Annotated[str, typer.Argument(help="qvhighlights, charades or activitynet.")],
    predictions: InputFile,
    ground_truth: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Annotation file; give the option once for each file."),
    ],
    as_json: Json = False,
) -> None:
    """Score predictions from a file."""
    from granalign_fast.metrics import DATASETS, load_ground_truth, load_predictions

    from .tables import print_metrics

    if dataset not in DATASETS:
        raise GranAlignError(f"dataset: got {dataset!r}, expected one of: {', '.join(DATASETS)}")
    truth = load_ground_truth(ground_truth, dataset)
    metrics = DATASETS[dataset](load_predictions(predictions, truth), truth)
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics)
