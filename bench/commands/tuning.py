"""Check the tuned preset's constants: ``python -m granalign_fast.bench.commands.tuning``.

There are two checks, on a split with ground truth, such as QVHighlights val. The ablation scores
the preset with one part left out at a time. The cross-validation chooses all constants on some of
the videos and scores them on the others. The preset's own figures are higher, because its constants
were chosen on all videos: the difference is the optimism of that choice. It does not show how far
the design of the rules was itself fitted to the split.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast import kernels
from granalign_fast.config import RetrieverConfig, preset
from granalign_fast.datasets import PathLike, read_annotations
from granalign_fast.errors import GranAlignError
from granalign_fast.evaluation import CaptionFile
from granalign_fast.evaluation.opening import open_videos
from granalign_fast.files import default_cache
from granalign_fast.index import CaptionedVideo
from granalign_fast.jsonl import Record
from granalign_fast.kernels import ContextRules, Curves, FeedbackRules, ProposalRules
from granalign_fast.metrics import intervals, retrieval_of_each, score_qvhighlights
from granalign_fast.models.embedding_cache import CachedEncoder
from granalign_fast.pipeline import MomentRetriever, SentenceEncoder
from granalign_fast.protocols import TextEncoder
from granalign_fast.search.batches import PreparedQuery
from granalign_fast.search.results import search_results

SEED, SWEEPS = 0, 3
COLUMNS = {
    "MR-full-mAP": "mAP@avg",
    "MR-full-R1@0.5": "R1@0.5",
    "MR-full-R1@0.7": "R1@0.7",
    "HL-min-VeryGood-mAP": "HL-mAP",
    "HL-min-VeryGood-Hit1": "Hit1",
}
"""Reported keys of ``brief``, and their headings; `Benchmark.figures` has the first three."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Constants that are chosen on the data; the ascent starts from the defaults.

    Two settings are fixed: the query is a variant, and every variant's curve gives candidates.
    """

    context: tuple[int, int] | None = None
    """Radius and power."""
    power: float = 1.0
    feedback_clips: int = 0
    """0 for no feedback, and so no second context."""
    feedback_level: float = 0.6
    feedback_sigma: float = 1.0
    second_context: tuple[int, int] | None = None
    sigma: float = 1.0
    high_factor: float = 0.0
    low_factor: float = 0.0
    fine_sigma: float = 0.5
    fine_factor: float = 0.0
    own_share: float = 0.0
    length_weight: float = 0.3
    nms_threshold: float = 0.75

    def config(self) -> RetrieverConfig:
        """Return the configuration with these constants."""
        rules = asdict(self)
        mixing = [
            one and ContextRules(radius=one[0], power=one[1])
            for one in map(rules.pop, ("context", "second_context"))
        ]
        power, threshold = map(rules.pop, ("power", "nms_threshold"))
        clips, level, sigma = (
            rules.pop(f"feedback_{name}") for name in ("clips", "level", "sigma")
        )
        feedback = FeedbackRules(clips=max(clips, 1), level=level, sigma=sigma, context=mixing[1])
        return RetrieverConfig(
            use_query=True,
            context=mixing[0],
            power=power,
            feedback=feedback if clips else None,
            proposals=ProposalRules(variants=True, **rules),
            nms_threshold=threshold,
        )


GRIDS: Mapping[str, tuple[Any, ...]] = {
    # Radius and power are one constant. The ascent starts without mixing: a power alone then
    # changes nothing, and a radius alone would be judged at an arbitrary power.
    "context": (None, *product((4, 5, 6), (3, 4))),
    "power": (1.0, 1.25, 1.5, 1.75),
    "feedback_clips": (0, 8, 10, 12, 16),
    "feedback_level": (0.4, 0.5, 0.6, 0.7),
    "feedback_sigma": (0.5, 1.0, 1.5),
    "second_context": (None, *product((10, 20, 30), (4, 6))),
    "sigma": (0.5, 0.75, 1.0, 1.25, 1.5),
    "high_factor": (0.0, 0.4, 0.5, 0.6),
    "low_factor": (0.0, 0.8, 0.9, 0.95),
    "fine_factor": (0.0, 0.7, 0.8, 0.9),
    "fine_sigma": (0.0, 0.5),
    "own_share": (0.0, 0.5, 1.0),
    "length_weight": (0.2, 0.25, 0.3, 0.35),
    "nms_threshold": (0.7, 0.75, 0.8),
}
"""Values that the ascent tries, in this order of constants."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Queries with their ground truth, and embeddings of texts and captions; caches results."""

    requests: Sequence[PreparedQuery]
    truth: Sequence[Record]
    texts: npt.NDArray[np.float32]
    """`(queries, variants, dim)`: embeddings of the query, then of its rewrites."""
    agnostic: npt.NDArray[np.float32]
    offsets: Ints
    videos: Ints
    """`agnostic`, `offsets` and `videos` as `similarity` takes them."""
    _curves: dict[Any, Curves] = field(default_factory=dict, init=False)
    _mixed: dict[Any, Any] = field(default_factory=dict, init=False)
    _figures: dict[RetrieverConfig, Floats] = field(default_factory=dict, init=False)

    def curves(self, config: RetrieverConfig) -> Curves:
        """Return the curves of all queries, cached."""
        key = config.context, config.power, config.feedback, config.use_query
        if key not in self._curves:
            first = 0 if config.use_query or self.texts.shape[1] == 1 else 1
            texts, rules = np.ascontiguousarray(self.texts[:, first:]), config.feedback
            captions, second = self.mixed(config)
            self._curves[key] = kernels.refined_curves(
                texts,
                captions,
                self.offsets,
                second=second,
                videos=self.videos,
                power=config.power,
                rules=rules,
            )
        return self._curves[key]

    def mixed(self, config: RetrieverConfig) -> tuple[Any, Any]:
        """Return the rows that variants are compared with; the last ones are cached."""
        key = config.context, config.feedback and config.feedback.context
        if key not in self._mixed:
            self._mixed.clear()
            self._mixed[key] = kernels.mixed_rows(
                self.agnostic, self.offsets, context_rules=config.context, rules=config.feedback
            )
        agnostic, second = self._mixed[key]
        return agnostic, second

    def predictions(self, config: RetrieverConfig) -> list[Record]:
        """Return the line of a submission for each query."""
        curves = self.curves(config)
        candidates = kernels.proposals(*curves, rules=config.proposals)
        ranked = kernels.nms(*candidates, threshold=config.nms_threshold, top=config.top)
        pairs = zip(self.truth, search_results(self.requests, curves, ranked, config), strict=True)
        return [{"qid": truth["qid"]} | result.to_record() for truth, result in pairs]

    def score(self, predictions: Sequence[Record]) -> dict[str, float]:
        """Return the `COLUMNS`, in percent."""
        brief = score_qvhighlights(predictions, self.truth)["brief"]
        return {key: brief[key] for key in COLUMNS if key in brief}

    def figures(self, config: RetrieverConfig) -> Floats:
        """Return mAP@avg, R1@0.5 and R1@0.7 of each query, `(queries, 3)`, cached.

        `score` returns their means.
        """
        if config not in self._figures:
            each = retrieval_of_each(self.predictions(config), self.truth)
            self._figures[config] = np.stack(list(each.values()), axis=1)
        return self._figures[config]


def load(
    encoder: TextEncoder, queries: PathLike, captions: PathLike, ground_truth: PathLike
) -> Benchmark:
    """Read the files, and embed the same texts in the same order as `evaluate_qvhighlights`.

    Raises:
        GranAlignError: an input is invalid, or queries have unequal numbers of rewrites.
    """
    annotations = read_annotations([queries, ground_truth], "qvhighlights")
    truth, queries_read = annotations.ground_truth(), [q for q in annotations.queries if q.windows]
    rewrites = [query.rewrites for query in queries_read]
    texts = [(texts_of.query, *texts_of.simplified, *texts_of.detailed) for texts_of in rewrites]
    for query, texts_of in zip(queries_read, texts, strict=True):
        if len(texts_of) != len(texts[0]):
            raise GranAlignError(
                f"{queries}: qid {query.qid!r} has {len(texts_of) - 1} rewrites, expected "
                f"{len(texts[0]) - 1} as the first: give every query equally many"
            )
    retriever = MomentRetriever(encoder)
    opened, _ = open_videos(
        retriever, queries_read, (), CaptionFile(captions), missing="fail", captions_only=True
    )
    needed = [video for video in opened.videos.values() if isinstance(video, CaptionedVideo)]
    indices = retriever.index_many(needed, progress=_counter("captions"))
    number = {vid: i for i, vid in enumerate(opened.videos)}
    embedded = encoder.encode(
        [text for texts_of in texts for text in texts_of], progress=_counter("texts")
    )
    return Benchmark(
        requests=[
            PreparedQuery(indices[number[query.vid]], query.rewrites, {}) for query in queries_read
        ],
        truth=truth,
        texts=embedded.reshape(len(queries_read), len(texts[0]), -1),
        agnostic=np.concatenate([index.caption_embeddings for index in indices]),
        offsets=np.cumsum([0, *(index.video.clips for index in indices)]),
        videos=np.array([number[query.vid] for query in queries_read]),
    )


def ablation(benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """Score the tuned preset, and variants with one part changed, by the name of the change."""
    tuned = preset("tuned")
    assert tuned.feedback is not None

    def rules(**changes: Any) -> RetrieverConfig:
        return replace(tuned, proposals=replace(tuned.proposals, **changes))

    configs = {
        "tuned": tuned,
        "no feedback": replace(tuned, feedback=None),
        "no second context": replace(tuned, feedback=replace(tuned.feedback, context=None)),
        "no first context": replace(tuned, context=None),
        "no fine cut": rules(fine_factor=0.0),
        "power 1": replace(tuned, power=1.0),
        "no Gaussian": rules(sigma=0.0),
        "no high level": rules(high_factor=0.0),
        "no low level": rules(low_factor=0.0),
        "neither level": rules(high_factor=0.0, low_factor=0.0),
        "length weight 0": rules(length_weight=0.0),
        "own share 0": rules(own_share=0.0),
        "fused curve only": rules(variants=False),
        "without the query": replace(tuned, use_query=False),
    }
    table = {name: benchmark.score(benchmark.predictions(one)) for name, one in configs.items()}
    alone = replace(benchmark, texts=benchmark.texts[:, :1])
    table["query only"] = alone.score(alone.predictions(tuned))
    table["paper"] = benchmark.score(benchmark.predictions(preset("paper")))
    return table


def folds_of(videos: Ints, folds: int) -> Ints:
    """Return the fold of each query. It depends on the video; folds differ by at most one video.

    Raises:
        GranAlignError: there are fewer than two folds, or more folds than videos.
    """
    count = int(videos.max()) + 1
    if not 2 <= folds <= count:
        raise GranAlignError(f"folds: got {folds}, expected 2 to {count}, the number of videos")
    order: Ints = np.random.default_rng(SEED).permutation(count)
    return order[videos] % folds


def ascend(
    objective: Callable[[Constants], float], start: Constants, grids: Mapping[str, Sequence[Any]]
) -> Constants:
    """Maximise by coordinate ascent: each constant in turn takes the best value of its grid.

    Ends after `SWEEPS` sweeps, or after a sweep that changes nothing. A tie changes nothing.
    """
    best, highest = start, objective(start)
    for sweep in range(SWEEPS):
        before = best
        for name, values in grids.items():
            for trial in [replace(best, **{name: value}) for value in values]:
                if (value := objective(trial)) > highest:
                    best, highest = trial, value
        _say(f"  sweep {sweep + 1}: {highest:.2f}")
        if best == before:
            break
    return best


def crossvalidation(benchmark: Benchmark, folds: int) -> dict[str, Any]:
    """Choose constants without each fold, and score each query with those of its fold."""
    fold_of = folds_of(benchmark.videos, folds)
    chosen, predictions = [], []
    for fold in range(folds):
        held_out = fold_of == fold
        _say(f"fold {fold + 1} of {folds}: {held_out.sum()} of {len(held_out)} queries held out")

        def objective(constants: Constants, training: npt.NDArray[np.bool_] = ~held_out) -> float:
            return float(benchmark.figures(constants.config())[training, 0].mean())

        constants = ascend(objective, Constants(), GRIDS)
        chosen.append(asdict(constants))
        predictions.append(benchmark.predictions(constants.config()))
    pooled = [predictions[fold][i] for i, fold in enumerate(fold_of.tolist())]
    tuned = preset("tuned")
    columns = dict(zip(COLUMNS, benchmark.figures(tuned).T, strict=False))
    return {
        "chosen": chosen,
        "held_out": benchmark.score(pooled),
        "tuned": benchmark.score(benchmark.predictions(tuned)),
        "tuned_95%": intervals(columns, benchmark.videos.tolist()),
    }


def print_scores(lines: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table of `COLUMNS`, one line for each name."""
    columns = list(next(iter(lines.values())))
    print(f"{'percent':<24}" + "".join(f"{COLUMNS[key]:>9}" for key in columns))
    for name, line in lines.items():
        print(f"{name:<24}" + "".join(f"{line[key]:9.2f}" for key in columns))


def print_crossvalidation(result: Mapping[str, Any]) -> None:
    """Print each fold's constants, the figures, and the intervals of the preset's figures."""
    chosen = result["chosen"]
    print(f"{'chosen without fold':<24}" + "".join(f"{i + 1:>9}" for i in range(len(chosen))))
    for name in chosen[0]:
        print(f"{name:<24}" + "".join(f"{one[name]!s:>9}" for one in chosen))
    print()
    print_scores({"held out, pooled": result["held_out"], "tuned, all queries": result["tuned"]})
    bounds = (f"{COLUMNS[key]} {a:.2f} to {b:.2f}" for key, (a, b) in result["tuned_95%"].items())
    print("tuned, 95% bootstrap over videos: " + ", ".join(bounds))


def _counter(what: str) -> Callable[[int], None]:
    """Return a progress callback that counts embedded items, and prints every 10,000."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done // 10_000 > before // 10_000:
            _say(f"{done:,} {what} embedded")

    return count


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser of what names a benchmark and how it is measured."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--ground-truth", type=Path, required=True)
    parser.add_argument("--encoder", help="a sentence encoder's folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--folds", type=int, default=5)
    return parser


def open_benchmark(options: argparse.Namespace) -> Benchmark:
    """Read and embed the benchmark that `arguments` name."""
    model = SentenceEncoder(options.encoder, precision=options.precision)
    encoder = CachedEncoder(model, default_cache())
    return load(encoder, options.queries, options.captions, options.ground_truth)


def main() -> None:
    """Print the tables, and write them to the file of ``--json``."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=("ablation", "crossvalidation"))
    options = parser.parse_args()

    record: dict[str, Any] = {"precision": options.precision, "folds": options.folds, "seed": SEED}
    try:
        benchmark = open_benchmark(options)
        if options.only != "crossvalidation":
            record["ablation"] = ablation(benchmark)
            print_scores(record["ablation"])
            print()
        if options.only != "ablation":
            record["crossvalidation"] = crossvalidation(benchmark, options.folds)
            print_crossvalidation(record["crossvalidation"])
    except GranAlignError as error:
        sys.exit(f"tuning: {error}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
