"""Draw when each stage of a search runs: ``python -m granalign_fast.bench.commands.timeline``.

A video is rendered, indexed, and searched several times. The search of median length is drawn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.bench.harness.machine import facts
from granalign_fast.bench.harness.workloads import sentence, video
from granalign_fast.files import replacing
from granalign_fast.index import VideoIndex
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.miniatures import MODELS
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.output.plot import CURVE, INK, MOMENT, new_figure, plain, save_figure
from granalign_fast.pipeline import ModelFolder
from granalign_fast.search.clock import Span
from granalign_fast.search.request import Request

SECOND_THREAD = ("key_frames", "prefill")
"""Stages that run in a second thread."""


def searches(
    models: ModelFolder, preset: str, folder: Path, *, count: int, keep_prefixes: bool
) -> list[list[Span]]:
    """Return the spans of `count` searches, each for another query.

    Args:
        models: all models that the preset needs.
        preset: name of the preset.
        folder: where a video is rendered and indexed.
        count: number of searches, after two warm-up searches.
        kept: whether the frames' prefixes are kept from one search to the next.
    """
    retriever = models.retriever(preset)
    (path,) = models.index([video(folder, side=224, frame_rate=10)], folder / "index")
    index, rng, results = VideoIndex.load(path), np.random.default_rng(0), []
    for _ in range(2 + count):
        if not keep_prefixes and isinstance(models.captioner, VlmCaptioner):
            models.captioner.cache = PrefixCache()
        spans: list[Span] = []
        retriever.search_many([Request(index, sentence(rng))], spans=spans)
        results.append(spans)
    return results[2:]


def median_search(results: Sequence[list[Span]]) -> list[Span]:
    """Return the search of median length; of the two in the middle, the shorter."""
    return sorted(results, key=lambda spans: max(span.end for span in spans))[
        (len(results) - 1) // 2
    ]


def draw(spans: Sequence[Span], title: str) -> Any:
    """Draw a bar for each stage, at its time.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    stages = list(dict.fromkeys(span.stage for span in sorted(spans, key=lambda s: s.begin)))
    end = max(span.end for span in spans)
    figure = new_figure(9, 0.36 * len(stages) + 1.1, layout="constrained")
    axes = figure.subplots()
    for span in spans:
        colour = MOMENT if span.stage in SECOND_THREAD else CURVE
        width = 1e3 * (span.end - span.begin)
        axes.barh(stages.index(span.stage), width, left=1e3 * span.begin, color=colour, height=0.7)
    for row, stage in enumerate(stages):
        stage_spans = [span for span in spans if span.stage == stage]
        milliseconds = 1e3 * sum(span.end - span.begin for span in stage_spans)
        last = max(span.end for span in stage_spans)
        axes.text(
            1e3 * last + 8 * end, row, f"{milliseconds:.3g} ms", va="center", color=INK, fontsize=8
        )
    axes.set_yticks(range(len(stages)), [stage.replace("_", " ") for stage in stages])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12e3 * end)
    axes.set_xlabel("milliseconds since the search began")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    plain(axes)
    return figure


def main() -> None:
    """Parse the command line, measure, draw."""
    parser = argparse.ArgumentParser(description="Draw when each stage of a search runs.")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--preset", default="tuned")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--searches", type=int, default=11)
    parser.add_argument(
        "--kept", action="store_true", help="keep the frames' prefixes between searches"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here, PNG, SVG or PDF")
    options = parser.parse_args()
    models = ModelFolder(options.models, device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        results = searches(
            models, options.preset, Path(folder), count=options.searches, keep_prefixes=options.kept
        )
    spans = median_search(results)
    name = "miniatures" if options.models == MODELS else options.models.name
    frames = "frames known before" if options.kept else "frames seen for the first time"
    if options.plot:
        title = f"One search: {name}, {options.preset}, {options.device}; {frames}"
        save_figure(draw(spans, title), options.plot)
    if options.json:
        record = {
            "machine": facts(options.device),
            "models": name,
            "preset": options.preset,
            "frames": frames,
            "seconds": [max(span.end for span in one) for one in results],
            "median": [span._asdict() for span in spans],
        }
        with replacing(options.json) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())
    for span in spans:
        print(f"{span.stage:<12} {1e3 * span.begin:8.2f} to {1e3 * span.end:8.2f} ms")


if __name__ == "__main__":
    main()
