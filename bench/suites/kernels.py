"""Suite ``kernels``: from embeddings to ranked moments, each kernel alone and all together.

The judge is `plain_method`, a loop over queries, which is also a peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from granalign_fast.bench.harness.limits import Work
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import require
from granalign_fast.bench.harness.workloads import CLIPS, DIM, VARIANTS, Batch, embeddings
from granalign_fast.bench.peers import plain_method as plain
from granalign_fast.bench.peers import runtimes as peers
from granalign_fast.config import RetrieverConfig, preset
from granalign_fast.kernels import (
    Curves,
    Proposals,
    Ranked,
    context,
    feedback,
    mixed_rows,
    nms,
    proposals,
    refined_curves,
    similarity,
)

_QUERIES, _ONE_BY_ONE = 256, 16
"""Queries of a batch, and those that the plain loop gets: it is slow."""
_JUDGED = 4
"""Queries of a batch that are compared with the plain loop."""
_CURVE_TOLERANCE = 5e-5
"""Largest difference of normalised cosines: float32 sums of `DIM` products, divided by a span of
about 0.1."""


class _Inputs(NamedTuple):
    """A batch on the device, with the inputs of every stage."""

    variants: Any
    clips: Any
    mixed: Any
    second: Any
    offsets: Any
    first_curves: Curves
    curves: Curves
    proposed: Proposals


def run(bench: Bench) -> None:
    """Measure each kernel with warm and cold caches, then whole searches and their peers."""
    config = preset(bench.settings.preset)
    queries = bench.settings.scaled(_QUERIES, 8)
    sizes = {"queries": queries, "clips": CLIPS}
    work = stage_work(config, queries)

    def draw(rng: np.random.Generator) -> _Inputs:
        return prepare(bench, embeddings(rng, queries), config)

    runs: dict[str, Any] = {
        "similarity": lambda g: similarity(g.variants, g.mixed, g.offsets, power=config.power),
        "proposals": lambda g: proposals(*g.curves, rules=config.proposals),
        "nms": lambda g: nms(*g.proposed, threshold=config.nms_threshold, top=config.top),
    }
    if config.context is not None:
        rules = config.context
        runs = {"context": lambda g: context(g.clips, g.offsets, rules=rules)} | runs
    if config.feedback is not None:
        more = config.feedback
        runs["feedback"] = lambda g: feedback(
            g.first_curves.variants, g.variants, g.mixed, g.offsets, rules=more
        )
    stages = {}
    for name, stage in runs.items():
        samples = bench.race(
            name,
            [Runner(run=stage, work=work[name], caches=caches) for caches in ("warm", "cold")],
            draw,
            lambda inputs, outputs, name=name: _judge(bench, config, name, inputs, outputs),  # type: ignore[misc]
            unit="query",
            items=queries,
            parameters=sizes,
        )
        stages[name] = samples[f"{OURS}, cold"].median / queries
    if config.feedback is not None:
        # The second comparison takes as many products as the first, or twice as many.
        stages["second similarity"] = stages["similarity"] * (2 if config.feedback.context else 1)
    bench.breakdown(f"kernels, a query of {CLIPS} clips, cold caches", stages)
    _whole(
        bench, config, queries, sizes, sum((work[n] for n in work if "context" not in n), Work())
    )
    _torch(bench, config, queries, sizes, work["similarity"])


def prepare(bench: Bench, batch: Batch, config: RetrieverConfig) -> _Inputs:
    """Return the inputs of every stage of a batch, on the device."""
    variants, clips = bench.to_device(batch.variants), bench.to_device(batch.clips)
    first, second = mixed_rows(
        clips, batch.offsets, context_rules=config.context, rules=config.feedback
    )
    first_curves = similarity(variants, first, batch.offsets, power=config.power)
    curves = refined_curves(
        variants, first, batch.offsets, second=second, power=config.power, rules=config.feedback
    )
    proposed = proposals(*curves, rules=config.proposals)
    return _Inputs(variants, clips, first, second, batch.offsets, first_curves, curves, proposed)


def stage_work(
    config: RetrieverConfig, queries: int, clips: int = CLIPS, dim: int = DIM
) -> dict[str, Work]:
    """Count bytes and operations of each kernel; every array is read or written once.

    Candidates are counted as one for eight clips of each curve and level, about as many as on
    QVHighlights.
    """
    total, rules = queries * clips, config.proposals
    twice = config.feedback is not None and config.feedback.context is not None
    sources = 1 + VARIANTS * (1 + twice) * rules.variants + (rules.fine_factor > 0)
    curve_bytes = 4.0 * total * (VARIANTS + 1)
    variant_bytes = 4.0 * queries * VARIANTS * dim
    slots = total / 8 * sources * sum(factor > 0 for factor in rules.factors)

    def mixing(radius: int) -> Work:
        # Each clip: products with its near clips, and their weighted sum.
        return Work(2.0 * 4 * total * dim, 2.0 * 2 * total * (2 * radius + 1) * dim)

    products = 2.0 * total * VARIANTS * dim
    similarity = Work(4.0 * total * dim + variant_bytes + curve_bytes, products)
    work = {
        "context": mixing(config.context.radius) if config.context else Work(),
        "similarity": similarity,
        # A slot: start, end, and a score in double precision, 16 bytes.
        "proposals": Work(4.0 * total * sources + 16.0 * slots),
        "nms": Work(16.0 * slots + 16.0 * queries * config.top),
    }
    if config.feedback is not None:
        work["feedback"] = Work(4.0 * total * dim + 2 * variant_bytes + curve_bytes, products)
        work["second similarity"] = similarity + similarity if twice else similarity
        if config.feedback.context is not None:
            work["second context"] = mixing(config.feedback.context.radius)
    return work


def _whole(
    bench: Bench, config: RetrieverConfig, queries: int, sizes: Mapping[str, Any], work: Work
) -> None:
    """Measure a search from embeddings to moments, and the plain loop over queries."""
    few = min(_ONE_BY_ONE, queries)

    def draw(rng: np.random.Generator) -> _Inputs:
        return prepare(bench, embeddings(rng, queries), config)

    def ours(inputs: _Inputs) -> Ranked:
        curves = refined_curves(
            inputs.variants,
            inputs.mixed,
            inputs.offsets,
            second=inputs.second,
            power=config.power,
            rules=config.feedback,
        )
        proposed = proposals(*curves, rules=config.proposals)
        return nms(*proposed, threshold=config.nms_threshold, top=config.top)

    def loop(inputs: _Inputs) -> list[list[plain.Moment]]:
        variants = bench.to_host(inputs.variants[:few])
        first = bench.to_host(inputs.mixed[: few * CLIPS])
        second = None if inputs.second is None else bench.to_host(inputs.second[: few * CLIPS])
        parts = [slice(q * CLIPS, (q + 1) * CLIPS) for q in range(few)]
        return [
            plain.search(
                variants[q], (first[part], None if second is None else second[part]), config
            )
            for q, part in enumerate(parts)
        ]

    def judge(inputs: _Inputs, outputs: Mapping[str, Any]) -> None:
        expected, got = outputs["loop"], ranked_lists(bench, outputs["ours"])
        # Cosines differ in their last bits, so a clip may fall to the other side of a threshold.
        # That happens in few queries.
        same = [
            [moment[:2] for moment in one] == [moment[:2] for moment in other]
            for one, other in zip(got[:few], expected, strict=True)
        ]
        share = float(np.mean(same))
        require(share >= 0.75, f"search: {share:.0%} of the queries have the loop's moments")

    samples = bench.race(
        "search: similarity, proposals, nms",
        [
            Runner(run=ours, work=work),
            Runner(name="loop", run=loop, items=few, peer=True),
        ],
        draw,
        judge,
        unit="query",
        items=queries,
        parameters=sizes,
    )
    bench.constant("kernel_seconds_per_clip", samples["ours"].median / queries / CLIPS)


def _torch(
    bench: Bench, config: RetrieverConfig, queries: int, sizes: Mapping[str, Any], work: Work
) -> None:
    """Measure similarity and a batched product in torch, on equally long videos."""
    theirs = peers.torch_curves(bench.settings.device, config.power)
    if theirs is None:
        return

    def draw(rng: np.random.Generator) -> _Inputs:
        return prepare(bench, embeddings(rng, queries), config)

    def judge(inputs: _Inputs, outputs: Mapping[str, Any]) -> None:
        ours = bench.to_host(outputs["ours"].variants)
        other = bench.to_host(outputs["torch"]).transpose(1, 0, 2).reshape(ours.shape)
        error = float(np.abs(ours - other).max())
        require(error < _CURVE_TOLERANCE, f"similarity: {error:.0e} from torch's curves")

    bench.race(
        "similarity, beside torch",
        [
            Runner(
                run=lambda g: similarity(g.variants, g.mixed, g.offsets, power=config.power),
                work=work,
            ),
            Runner(
                name="torch",
                run=lambda g: theirs((g.variants, g.mixed.reshape(queries, CLIPS, -1))),
                peer=True,
                work=work,
            ),
        ],
        draw,
        judge,
        unit="query",
        items=queries,
        parameters=sizes,
    )


def ranked_lists(bench: Bench, ranked: Ranked) -> list[list[plain.Moment]]:
    """Convert ranked moments to lists, one for each query, as `plain_method` returns them."""
    starts, ends, scores, counts = (bench.to_host(column).tolist() for column in ranked)
    return [
        list(zip(starts[q][:n], ends[q][:n], scores[q][:n], strict=True))
        for q, n in enumerate(counts)
    ]


def _judge(
    bench: Bench, config: RetrieverConfig, stage: str, inputs: _Inputs, outputs: Mapping[str, Any]
) -> None:
    """Compare a few queries of a stage's outputs with the plain loop on the same inputs."""
    for output in outputs.values():
        _judge_one(bench, config, stage, inputs, output)


def _judge_one(
    bench: Bench, config: RetrieverConfig, stage: str, inputs: _Inputs, output: Any
) -> None:
    total = len(inputs.offsets) - 1
    variants, clips, mixed = (
        bench.to_host(array) for array in (inputs.variants, inputs.clips, inputs.mixed)
    )
    curves, fused = bench.to_host(inputs.curves.variants), bench.to_host(inputs.curves.fused)
    for query in np.linspace(0, total - 1, min(_JUDGED, total)).astype(int).tolist():
        part = slice(int(inputs.offsets[query]), int(inputs.offsets[query + 1]))
        if stage == "context" and config.context is not None:
            expected = plain.context(clips[part], config.context)
            wrong = np.abs(bench.to_host(output)[part] - expected).max() > 1e-5
        elif stage == "similarity":
            each = plain.curves(variants[query], mixed[part], config.power)
            got, mean = bench.to_host(output.variants)[:, part], bench.to_host(output.fused)[part]
            wrong = max(np.abs(got - each).max(), np.abs(mean - each.mean(axis=0)).max())
            wrong = wrong > _CURVE_TOLERANCE
        elif stage == "feedback" and config.feedback is not None:
            each = bench.to_host(inputs.first_curves.variants)[:, part]
            moved = [
                plain.move(variant, curve, mixed[part], config.feedback)
                for variant, curve in zip(variants[query], each, strict=True)
            ]
            wrong = np.abs(bench.to_host(output.simplified)[query] - moved).max() > 1e-5
        else:
            candidates = plain.candidates(curves[:, part], fused[part], config.proposals)
            if stage == "proposals":
                wrong = _slots(bench, output, query) != sorted(candidates)
            else:
                best = plain.suppress(candidates, config.nms_threshold, config.top)
                wrong = ranked_lists(bench, output)[query] != best
        require(not wrong, f"{stage}: query {query} has not what the plain loop finds")


def _slots(bench: Bench, proposed: Proposals, query: int) -> list[plain.Moment]:
    """Return the filled slots of a query, sorted."""
    part = slice(int(proposed.offsets[query]), int(proposed.offsets[query + 1]))
    columns = (bench.to_host(column)[part].tolist() for column in proposed[:3])
    return sorted(one for one in zip(*columns, strict=True) if one[2] > -np.inf)
