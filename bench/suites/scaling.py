"""Suite ``scaling``: how time grows with clips, queries and the length of a video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from granalign_fast.bench.harness import machine
from granalign_fast.bench.harness.limits import Work
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import require
from granalign_fast.bench.harness.workloads import CLIPS, DIM, VARIANTS, Batch, embeddings
from granalign_fast.bench.peers import plain_method as plain
from granalign_fast.config import preset
from granalign_fast.kernels import corpus, mixed_rows, nms, proposals, refined_curves, similarity

from .kernels import ranked_lists, stage_work

_CLIPS = (75, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_QUERIES = (1, 4, 16, 64, 256, 1024)
_MINUTES = (1, 3, 10, 30, 60, 180)
_BEST = 100
"""Number of best clips that a search of a library returns."""
_BLOCK = 65_537
"""Number of random clips; a larger library repeats them."""
_TOLERANCE = 5e-5
"""Largest difference of curves, as in the suite `kernels`."""
_SHARE = 0.75
"""Share of the free memory for a workload; the rest is for intermediate arrays."""


def run(bench: Bench) -> None:
    """Vary clips, queries and minutes, one at a time."""
    _clips(bench)
    _queries(bench)
    _minutes(bench)


def _clips(bench: Bench) -> None:
    """Compare one query with all clips: a stream of embeddings, bounded by memory bandwidth."""
    power = preset(bench.settings.preset).power
    largest = _CLIPS[-1] * min(bench.settings.size, 1.0)
    rng = np.random.default_rng(bench.settings.seed)
    block = embeddings(rng, 1, _BLOCK if largest > _BLOCK else 1_000).clips
    for clips in _CLIPS:
        needed = clips * 4 * (DIM + 2 * (VARIANTS + 1))
        if clips > largest or needed > _free(bench):
            bench.note(
                f"{clips:,} clips: not run, needs {needed / 2**30:.1f} GiB of memory, "
                f"{_free(bench) / 2**30:.1f} GiB are free"
                if clips <= largest
                else f"{clips:,} clips: left out at this size"
            )
            continue
        rows = bench.to_device(np.resize(block, (clips, DIM)))
        offsets = np.array([0, clips])
        work = Work(4.0 * clips * (DIM + VARIANTS + 1), 2.0 * clips * DIM * VARIANTS)

        def draw(rng: np.random.Generator) -> Any:
            return bench.to_device(embeddings(rng, 1, 8).variants)

        def judge(inputs: Any, outputs: Mapping[str, Any], clips: int = clips) -> None:
            # Repeated clips have the block's cosines, and so its curve.
            few = min(clips, len(block))
            got = bench.to_host(outputs[OURS].variants)
            expected = plain.curves(bench.to_host(inputs)[0], block[:few], power)
            error = float(np.abs(got[:, :few] - expected).max())
            require(error < _TOLERANCE, f"similarity of {clips:,} clips: {error:.0e} off")
            last = (clips - 1) % len(block)
            error = float(np.abs(got[:, -1] - expected[:, min(last, few - 1)]).max())
            require(error < _TOLERANCE, f"similarity of {clips:,} clips: the last is off")

        bench.race(
            "clips: similarity of one query",
            [
                Runner(
                    run=lambda v, rows=rows, offsets=offsets: similarity(  # type: ignore[misc]
                        v, rows, offsets, power=power
                    ),
                    work=work,
                )
            ],
            draw,
            judge,
            unit="clip",
            items=clips,
            parameters={"clips": clips},
            seconds=bench.settings.seconds / 2,
        )
        if clips >= _BEST:
            _library(bench, rows, block)
        del rows


def _library(bench: Bench, rows: Any, block: Any) -> None:
    """Find a library's best clips for one query: the first stage of a search of all videos.

    Repeated clips have equal scores, so any of them may be returned: only scores are judged.
    """
    clips = len(rows)

    def draw(rng: np.random.Generator) -> Any:
        return bench.to_device(embeddings(rng, 1, 8).variants[0, :1])

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
        scores, chosen = (bench.to_host(column)[0] for column in outputs[OURS])
        exact = block.astype(np.float64) @ bench.to_host(inputs)[0].astype(np.float64)
        every = np.resize(exact, clips)
        best = np.sort(np.partition(every, clips - _BEST)[clips - _BEST :])[::-1]
        error = max(np.abs(scores - best).max(), np.abs(scores - every[chosen]).max())
        require(float(error) < 1e-5, f"the best of {clips:,} clips: scores {error:.0e} off")
        require(len(set(chosen.tolist())) == _BEST, f"the best of {clips:,} clips: one twice")

    bench.race(
        "clips: the best of a library",
        [
            Runner(
                run=lambda query: corpus(query, rows, k=_BEST),
                work=Work(4.0 * clips * DIM, 2.0 * clips * DIM),
            )
        ],
        draw,
        judge,
        unit="clip",
        items=clips,
        parameters={"clips": clips},
        seconds=bench.settings.seconds / 2,
    )


def _free(bench: Bench) -> float:
    """Return the bytes of the device's free memory that a workload may use."""
    if not bench.on_gpu:
        return _SHARE * machine.available_bytes()
    import cupy

    return _SHARE * float(cupy.cuda.runtime.memGetInfo()[0])


def _queries(bench: Bench) -> None:
    """Search with batches of queries, each about a video of 75 clips."""
    for queries in _QUERIES:
        if queries <= max(_QUERIES[-1] * bench.settings.size, 4):
            _search(bench, "queries: a batch of searches", queries, CLIPS, "query", queries)


def _minutes(bench: Bench) -> None:
    """Search long videos with one query; the time includes the mixing of captions."""
    for minutes in _MINUTES:
        if minutes <= max(_MINUTES[-1] * bench.settings.size, 3):
            _search(bench, "minutes: one search", 1, minutes * 30, "minute", minutes)


def _search(bench: Bench, task: str, queries: int, clips: int, unit: str, items: int) -> None:
    config = preset(bench.settings.preset)

    def draw(rng: np.random.Generator) -> Batch:
        batch = embeddings(rng, queries, clips)
        return Batch(bench.to_device(batch.variants), bench.to_device(batch.clips), batch.offsets)

    def search(inputs: Batch) -> Any:
        first, second = mixed_rows(
            inputs.clips, inputs.offsets, context_rules=config.context, rules=config.feedback
        )
        curves = refined_curves(
            inputs.variants,
            first,
            inputs.offsets,
            second=second,
            power=config.power,
            rules=config.feedback,
        )
        candidates = proposals(*curves, rules=config.proposals)
        return curves, nms(*candidates, threshold=config.nms_threshold, top=config.top)

    def judge(inputs: Batch, outputs: Mapping[str, Any]) -> None:
        curves, ranked = outputs[OURS]
        got = ranked_lists(bench, ranked)
        for query in {0, queries - 1}:
            part = slice(int(inputs.offsets[query]), int(inputs.offsets[query + 1]))
            each = bench.to_host(curves.variants)[:, part]
            candidates = plain.candidates(each, bench.to_host(curves.fused)[part], config.proposals)
            best = plain.suppress(candidates, config.nms_threshold, config.top)
            require(got[query] == best, f"{task}: query {query} has not the plain loop's moments")

    work = sum(stage_work(config, queries, clips).values(), Work())
    bench.race(
        task,
        [Runner(run=search, work=work)],
        draw,
        judge,
        unit=unit,
        items=items,
        parameters={"queries": queries, "clips": clips},
        seconds=bench.settings.seconds / 2,
    )
