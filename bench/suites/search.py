"""Suite ``search``: from a sentence to moments, in a new process and in a warm one.

It measures four situations of a whole search, and a search of captions without models. The plain
loop recomputes each result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.bench.harness.judges import judge_result
from granalign_fast.bench.harness.models import models_of
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, Run, require
from granalign_fast.bench.harness.workloads import CLIPS, captioned, rewritten, sentence, video
from granalign_fast.config import preset
from granalign_fast.errors import GranAlignError
from granalign_fast.index import VideoIndex
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.pipeline import MomentRetriever, SentenceEncoder

from .index import captioner_of

_CLI = "from granalign_fast.cli import main; main()"


def run(bench: Bench) -> None:
    """Search with captions alone, then with models that look at frames."""
    _captions(bench)
    _with_models(bench)


def captions_retriever(bench: Bench) -> MomentRetriever:
    """Return a retriever with no model but the sentence encoder.

    It has the settings' preset if that scores by captions, ``tuned`` otherwise.
    """
    config = preset(bench.settings.preset)
    if config.scorer != "captions":
        config = preset("tuned")
    device = bench.settings.device
    return MomentRetriever(SentenceEncoder(device=device), config, device=device)


def _captions(bench: Bench) -> None:
    retriever = captions_retriever(bench)
    index = retriever.index(captioned(np.random.default_rng(bench.settings.seed), "captions"))
    stages = _Stages()

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
        judge_result(outputs[OURS], index, retriever.encoder, retriever.config)

    samples = bench.race(
        "captions alone, given rewrites",
        [Runner(run=stages.watching(lambda query: retriever.search(index, query)))],
        rewritten,
        judge,
        unit="query",
        clock=HostClock(),
        parameters={"clips": CLIPS},
    )
    bench.breakdown("captions alone", stages.medians(samples[OURS].median))
    bench.constant("captions_seconds_per_query", samples[OURS].median)


class _Stages:
    """Collects each stage's seconds in a race's searches; their medians are a typical search."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, float]] = []

    def watching(self, search: Run) -> Run:
        """Wrap a search so that its stages are collected."""

        def run(query: Any) -> Any:
            result = search(query)
            self.seen.append(result.seconds)
            return result

        return run

    def medians(self, whole: float) -> dict[str, float]:
        """Return the median seconds by stage, and the rest of the whole as ``other``.

        Choosing and prefilling key frames overlaps with other stages: ``prefill`` is only the time
        that the search waited for it.
        """
        names = dict.fromkeys(name for seconds in self.seen for name in seconds)
        medians = {
            "prefill" if name == "wait" else name: float(
                np.median([seconds.get(name, 0.0) for seconds in self.seen])
            )
            for name in names
            if name not in ("key_frames", "prefill")
        }
        other = whole - sum(medians.values())
        return medians | ({"other": other} if other > 0 else {})


def _with_models(bench: Bench) -> None:
    models = models_of(bench)
    captioner = captioner_of(models)
    config = preset(bench.settings.preset)
    retriever = models.retriever(config)
    path = video(bench.folder, side=224, frame_rate=10)
    captioner.cache = PrefixCache()
    folder = models.index([path], bench.folder / "searched")[0]
    index = VideoIndex.load(folder)
    parameters = {"clips": index.video.clips, "preset": bench.settings.preset}
    cache = captioner.cache
    encoder = retriever.encoder

    def judge(inputs: str, outputs: Mapping[str, Any]) -> None:
        result = outputs[OURS]
        if config.scorer == "captions":
            judge_result(result, index, encoder, config, retriever.frame_encoder)
        require(result.exists is None or 0 <= result.exists <= 1, "search: exists is not in [0, 1]")

    def forget() -> None:
        captioner.cache = PrefixCache()

    def remember() -> None:
        captioner.cache = cache

    situations: dict[str, tuple[Any, Any]] = {
        "cold index": (forget, lambda query: retriever.search(VideoIndex.load(folder), query)),
        "warm index": (forget, lambda query: retriever.search(index, query)),
        "cached prefixes": (remember, lambda query: retriever.search(index, query)),
    }
    for name, (prepare, search) in situations.items():
        stages = _Stages()

        def draw(rng: np.random.Generator, prepare: Any = prepare) -> str:
            prepare()
            return sentence(rng)

        samples = bench.race(
            name,
            [Runner(run=stages.watching(search))],
            draw,
            judge,
            unit="query",
            clock=HostClock(),
            parameters=parameters,
            rounds=8,
        )
        bench.breakdown(name, stages.medians(samples[OURS].median))
    bench.constant("models_seconds_per_query", samples[OURS].median)
    captioner.cache = cache
    assert models.folder is not None  # no server takes part
    _cold_start(bench, models.folder, folder, parameters)


def _cold_start(bench: Bench, models: Path, index: Path, parameters: Mapping[str, Any]) -> None:
    """Search in a new process: Python, imports, models, index, search."""
    cache = bench.folder / "cache"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", _CLI, "search", str(index)]
    options = ["--models", str(models), "--preset", bench.settings.preset, "--json"]
    options += ["--device", bench.settings.device]
    stages = _Stages()

    def search(query: str) -> dict[str, Any]:
        process = subprocess.run(
            [*command, query, *options], capture_output=True, text=True, env=environment
        )
        if process.returncode:
            raise GranAlignError(f"granalign search: {process.stderr.strip()[-300:]}")
        record: dict[str, Any] = json.loads(process.stdout)
        stages.seen.append(record["seconds"])
        return record

    def judge(inputs: str, outputs: Mapping[str, Any]) -> None:
        record = outputs[OURS]
        require(record["query"] == inputs and bool(record["moments"]), "search: no moment found")

    samples = bench.race(
        "cold start",
        [Runner(run=search)],
        sentence,
        judge,
        unit="query",
        clock=HostClock(),
        parameters=parameters,
        rounds=4,
    )
    stage_seconds = stages.medians(samples[OURS].median)
    stage_seconds["start and load"] = stage_seconds.pop("other", 0.0)
    bench.breakdown("cold start", stage_seconds)
