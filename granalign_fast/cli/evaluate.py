"""``granalign evaluate`` and ``granalign score``: searches and predictions against a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from granalign_fast.errors import GranAlignError
from granalign_fast.output.visible import visible

from .options import (
    CaptionsOnly,
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
from .remote import RemoteOptions, open_chosen, with_remote_models
from .verbosity import write_warning

if TYPE_CHECKING:
    from granalign_fast.datasets import Annotations
    from granalign_fast.evaluation import Difference, Missing


@with_remote_models
def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            help="qvhighlights, charades or activitynet; corpus: every query is searched in all "
            "videos."
        ),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The dataset's published annotation files, or our own form; several are joined."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Captions: JSON Lines, or a folder of one file for each video."
        ),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Video files, each with the name of its video. They are indexed as needed; run "
            "the same command again to resume. Needs --models.",
        ),
    ] = None,
    indexes: Annotated[
        Path | None,
        typer.Option(
            "--indexes",
            "--library",
            metavar="DIR",
            help="What `index` wrote; with --videos, where their indexes are kept. Default then: "
            "DIR-indexes beside the videos.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--dataset", help="Of a corpus: the files' dataset, if they do not show it."),
    ] = None,
    refine: Annotated[
        int,
        typer.Option(min=0, help="Of a corpus: videos that the method searches, the best first."),
    ] = 20,
    models: Models = None,
    queries: Annotated[Path | None, typer.Option(metavar="FILE", hidden=True)] = None,
    ground_truth: Annotated[Path | None, typer.Option(metavar="FILE", hidden=True)] = None,
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
            help="given: the rewrites in the files; rules: by rules; models: by the language "
            "model; none: the queries alone."
        ),
    ] = "given",
    captions_only: CaptionsOnly = False,
    missing: Annotated[
        str,
        typer.Option(
            help="What becomes of queries whose video is missing. skip: they are left out; zero: "
            "they count as misses; fail: it is an error."
        ),
    ] = "skip",
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write a submission: .jsonl, .jsonl.gz, or the .zip of QVHighlights' server.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Write the results with the figures of every query, for --compare."
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Results of another run on the same queries: print the differences and their 95% "
            "intervals.",
        ),
    ] = None,
    prefix_gib: PrefixGib = 4.0,
    cache: Annotated[bool, typer.Option(help="Keep embeddings on disk, and use kept ones.")] = True,
    as_json: Json = False,
    remote: RemoteOptions | None = None,
) -> None:
    """Search for every query of a benchmark in captions or videos, and score the moments.

    A video that cannot be indexed or read is named at the end, and the exit code is then 1.
    """
    from granalign_fast import evaluation
    from granalign_fast.config import resolve_config
    from granalign_fast.evaluation.submission import check_predictions_file, write_predictions
    from granalign_fast.pipeline import open_retriever

    from .evaluate_corpus import evaluate_in_library
    from .evaluate_sources import open_source, rewriter_of, setup_record
    from .tables import print_comparison, print_evaluation

    # 1. Refuse what cannot be done, before any work.
    read = [*(files or ()), captions, queries, ground_truth, absent, compare]
    for option, path in (("--predictions", predictions), ("--results", results)):
        check_target(option, path, inputs=read)
    if predictions and results and predictions.absolute() == results.absolute():
        raise GranAlignError(f"--results {results}: got the file of --predictions too")
    if predictions is not None:
        check_predictions_file(predictions, dataset)
    other = None if compare is None else evaluation.read_results(compare)
    named = [*(files or ()), *(path for path in (queries, ground_truth) if path is not None)]
    if not named:
        raise GranAlignError(f"FILES: got none, expected the annotation files of {dataset}")
    if dataset == "corpus":
        for option, value in (
            *(("--videos", videos), ("--absent", absent), ("--predictions", predictions)),
            *(("--results", results), ("--compare", compare)),
        ):
            if value is not None:
                raise GranAlignError(f"{option}: got a corpus, expected a dataset; leave it out")
    scoring = predictions is None or results is not None or other is not None
    annotations = None
    if dataset != "corpus":
        annotations = _read_annotations(named, dataset, scoring=scoring)
    opened = open_chosen(
        models, remote, device=device, prefix_gib=prefix_gib, encoder=encoder or precision
    )
    chosen = rewriter_of(rewriter, opened)
    settings: Any = {
        "models": opened,
        "encoder": encoder,
        "precision": precision,
        "device": device,
        "cache": cache,
        "captions_only": captions_only,
    }
    if annotations is None:
        retriever = open_retriever(preset, **settings)
        evaluate_in_library(
            named,
            retriever,
            dataset=form,
            captions=captions,
            library=indexes,
            rewriter=chosen,
            refine=refine,
            missing=missing,
            setup=setup_record(retriever, opened, preset=preset, rewriter=rewriter, device=device),
            as_json=as_json,
        )
        return
    source = open_source(
        captions,
        videos,
        indexes,
        opened,
        encoder or precision,
        config=resolve_config(preset),
        hidden=as_json,
    )

    # 2. Search and score.
    retriever = open_retriever(preset, **settings)
    result = evaluation.evaluate(
        retriever,
        annotations,
        source,
        absent=absent,
        rewriter=chosen,
        missing=missing,
        captions_only=captions_only,
        compare_to=other,
        bars=lambda what, unit: progress_bar(what, unit, hidden=as_json),
        sources={} if opened is None else {kind: sha for kind, (_, sha) in opened.sources.items()},
        setup=setup_record(retriever, opened, preset=preset, rewriter=rewriter, device=device),
    )
    differences = [] if other is None else evaluation.compare(result, other)

    # 3. Write and print.
    if predictions is not None:
        write_predictions(predictions, result.predictions, shown=bool(result.scored))
    if results is not None:
        evaluation.write_results(results, result)
    for warning in result.warnings:
        write_warning(warning)
    if as_json:
        print_json(result.to_record() | _comparison_record(differences, compare))
    else:
        print_evaluation(result)
        if compare is not None:
            print_comparison(differences, str(compare))
    _report_missing(result.missing, source.lacks)


def _read_annotations(files: Sequence[Path], dataset: str, *, scoring: bool) -> Annotations:
    """Read the annotation files; if metrics are wanted, they must have ground truth."""
    from granalign_fast.datasets import read_annotations

    annotations = read_annotations(files, dataset)
    if scoring and not any(query.windows for query in annotations.queries):
        raise GranAlignError(
            f"{files[0]}: got no ground truth, so that there is nothing to score; write a "
            f"submission with --predictions OUT alone, or name a file with windows as well"
        )
    return annotations


def _comparison_record(differences: Sequence[Difference], other: Path | None) -> dict[str, Any]:
    """Return what a comparison adds to the JSON object; nothing without one."""
    if other is None:
        return {}
    return {"compared_with": str(other), "differences": [asdict(one) for one in differences]}


def _report_missing(missing: Missing, lacks: str) -> None:
    """Name the videos that were not searched; end with exit code 1 if one could not be read."""
    from granalign_fast.errors import counted, listed

    if missing.not_found:
        write_warning(f"no {lacks} of {listed(missing.not_found)}; {missing}")
    if missing.failed:
        failed = counted(len(missing.failed), "video")
        sys.stderr.write(f"granalign: {failed} could not be searched:\n")
        for vid, reason in missing.failed.items():
            sys.stderr.write(visible(f"  {vid}: {reason}") + "\n")
        raise typer.Exit(1)


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
