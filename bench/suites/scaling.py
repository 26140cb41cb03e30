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
from granalign_fast.kernels import context, corpus, nms, proposals, similarity

from .kernels import ranked_lists, stage_work

_CLIPS = (75, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_QUERIES = (1, 4, 16, 64, 256, 1024)
_MINUTES = (1, 3, 10, 30, 60, 180)
_BEST = 100
"""Clips of a library that a search asks for."""
_BLOCK = 65_537
"""Clips that are drawn; a larger library repeats them."""
_TOLERANCE = 5e-5
_SHARE = 0.75
"""Of the free memory: the rest is for what is made on the way."""


def run(bench: Bench) -> None:
    """Clips, queries and minutes, each on its own."""
    _clips(bench)
    _queries(bench)
    _minutes(bench)


def _clips(bench: Bench) -> None:
    """One query against all clips: a stream of embeddings, bounded by memory on a large device."""
    power = preset(bench.settings.preset).power
    largest = _CLIPS[-1] * min(bench.settings.size, 1.0)
    rng = np.random.default_rng(bench.settings.seed)
    block = embeddings(rng, 1, _BLOCK if largest > _BLOCK else 1_000).clips
    for clips in _CLIPS:
        needed = clips * 4 * (DIM + 2 * (VARIANTS + 1))
        if clips > largest or needed > _free(bench):
            bench.note(
                f"{clips:,} clips: not run, {needed / 2**30:.1f} GiB of memory wanted, "
                f"{_free(bench) / 2**30:.1f} GiB to be had"
                if clips <= largest
                else f"{clips:,} clips: left out at this size"
            )
            continue
        rows = bench.to_device(np.resize(block, (clips, DIM)))
        offsets = np.array([0, clips])
        work = Work(4.0 * clips * (DIM + VARIANTS + 1), 2.0 * clips * DIM * VARIANTS)

        def draw(rng: np.random.Generator) -> Any:
            return bench.to_device(embeddings(rng, 1, 8).variants)

        def judge(given: Any, outputs: Mapping[str, Any], clips: int = clips) -> None:
            # Clips that repeat the block have its cosines, hence its curve.
            few = min(clips, len(block))
            got = bench.to_host(outputs[OURS].variants)
            want = plain.curves(bench.to_host(given)[0], block[:few], power)
            error = float(np.abs(got[:, :few] - want).max())
            require(error < _TOLERANCE, f"similarity of {clips:,} clips: {error:.0e} off")
            last = (clips - 1) % len(block)
            error = float(np.abs(got[:, -1] - want[:, min(last, few - 1)]).max())
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
    """The best clips of a library for one query, which is what a search of all videos begins with.

    Repeated clips are ties, so that any of them may be named: the scores are what is judged.
    """
    clips = len(rows)

    def draw(rng: np.random.Generator) -> Any:
        return bench.to_device(embeddings(rng, 1, 8).variants[0, :1])

    def judge(given: Any, outputs: Mapping[str, Any]) -> None:
        scores, chosen = (bench.to_host(column)[0] for column in outputs[OURS])
        exact = block.astype(np.float64) @ bench.to_host(given)[0].astype(np.float64)
        every = np.resize(exact, clips)
        wanted = np.sort(np.partition(every, clips - _BEST)[clips - _BEST :])[::-1]
        error = max(np.abs(scores - wanted).max(), np.abs(scores - every[chosen]).max())
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
    """What a workload may take of the memory that is free where the kernels run."""
    if not bench.on_gpu:
        return _SHARE * machine.available_bytes()
    import cupy

    return _SHARE * float(cupy.cuda.runtime.memGetInfo()[0])


def _queries(bench: Bench) -> None:
    """A batch of queries, each about a video of 75 clips."""
    for queries in _QUERIES:
        if queries <= max(_QUERIES[-1] * bench.settings.size, 4):
            _search(bench, "queries: a batch of searches", queries, CLIPS, "query", queries)


def _minutes(bench: Bench) -> None:
    """One query about a long video, its captions mixed for the occasion."""
    for minutes in _MINUTES:
        if minutes <= max(_MINUTES[-1] * bench.settings.size, 3):
            _search(bench, "minutes: one search", 1, minutes * 30, "minute", minutes)


def _search(bench: Bench, task: str, queries: int, clips: int, unit: str, items: int) -> None:
    config = preset(bench.settings.preset)

    def draw(rng: np.random.Generator) -> Batch:
        batch = embeddings(rng, queries, clips)
        return Batch(bench.to_device(batch.variants), bench.to_device(batch.clips), batch.offsets)

    def search(given: Batch) -> Any:
        mixed = given.clips
        if config.context is not None:
            mixed = context(mixed, given.offsets, rules=config.context)
        curves = similarity(given.variants, mixed, given.offsets, power=config.power)
        found = proposals(*curves, rules=config.proposals)
        return curves, nms(*found, threshold=config.nms_threshold, top=config.top)

    def judge(given: Batch, outputs: Mapping[str, Any]) -> None:
        curves, ranked = outputs[OURS]
        got = ranked_lists(bench, ranked)
        for query in {0, queries - 1}:
            part = slice(int(given.offsets[query]), int(given.offsets[query + 1]))
            each = bench.to_host(curves.variants)[:, part]
            found = plain.candidates(each, bench.to_host(curves.fused)[part], config.proposals)
            best = plain.suppress(found, config.nms_threshold, config.top)
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
