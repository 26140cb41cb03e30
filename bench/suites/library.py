"""Suite ``library``: the first stage of a library beside other software, and how it grows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.bench.harness.limits import Work
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import require
from granalign_fast.bench.harness.workloads import CLIPS, DIM, embeddings
from granalign_fast.bench.peers.runtimes import FAISS
from granalign_fast.bench.peers.vector_search import Peer, peers
from granalign_fast.kernels import Codes, code_blocks, code_range, corpus, make_codes
from granalign_fast.library.approximate import ApproximateIndex

_RACED = 1_000_000
_QUERIES = (1, 16, 256)
_GROWTH = (10_000, 100_000, 1_000_000, 10_000_000)
_BEST = 100
"""Clips of a query that are found."""
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of an approximate index that are read."""
_VIDEOS = 1_000
"""Videos that are drawn at a time."""
_TOLERANCE = 1e-5
"""Largest difference of a score from the exact product."""
_DISK_SHARE = 0.5
"""Share of the free disk space that the largest library may take."""

Halves = npt.NDArray[np.float16]


def run(bench: Bench) -> None:
    """Race searches of a million clips, then search libraries of growing size on disk."""
    if bench.on_gpu:
        bench.note("measured on the host; the suite `scaling` searches libraries on a GPU")
    rng = np.random.default_rng(bench.settings.seed)
    clips = draw_clips(rng, bench.settings.scaled(_RACED, 4 * _BEST))
    codes = make_codes(clips)
    for peer in (None, *peers(clips, _BEST)):
        # One index at a time is in memory beside the clips.
        for count in _QUERIES:
            _race(bench, clips, codes, count, peer)
    _approximate(bench, clips, codes)
    del codes
    _grow(bench, clips)


def draw_clips(rng: np.random.Generator, count: int) -> Halves:
    """Return clips of videos with eight scenes each, `(count, DIM)`."""
    clips = np.empty((count, DIM), np.float16)
    for first in range(0, count, _VIDEOS * CLIPS):
        part = clips[first : first + _VIDEOS * CLIPS]
        part[...] = embeddings(rng, -(-len(part) // CLIPS)).clips[: len(part)]
    return clips


def _asked(clips: Halves, count: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return queries near clips that are drawn, rows of unit length."""
    near = clips[np.sort(rng.integers(0, len(clips), count))].astype(np.float32)
    near += rng.standard_normal(near.shape, np.float32) / np.float32(np.sqrt(DIM))
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    return near


def _race(bench: Bench, clips: Halves, codes: Codes, count: int, peer: Peer | None) -> None:
    """Race our search, with and without codes, with one of other software."""
    runners = [
        Runner(
            run=lambda queries: corpus(queries.astype(np.float16), clips, k=_BEST, codes=codes),
            work=Work(1.0 * clips.size, 2.0 * clips.size * count, "int8"),
        )
    ]
    if peer is None:
        runners.append(
            Runner(
                name=f"{OURS}, without codes",
                run=lambda queries: corpus(queries.astype(np.float16), clips, k=_BEST, finite=True),
            )
        )
    else:
        runners.append(Runner(name=peer.name, run=peer.search, peer=True))
    recalls: list[float] = []

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
        best = outputs[OURS]
        _require_exact(clips, inputs.astype(np.float16), best)
        for name, (scores, rows) in outputs.items():
            if name == OURS:
                continue
            if peer is None:
                require(bool((rows == best.rows).all()), f"{name}: other clips than with codes")
                continue
            pairs = zip(rows.tolist(), best.rows.tolist(), strict=True)
            recalls.append(float(np.mean([len({*a} & {*b}) / _BEST for a, b in pairs])))
            if peer.exact:
                error = float(np.abs(scores - best.scores).max())
                # The queries of `corpus` have 16 bits, those of others 32.
                require(error < 2e-3, f"{name}: scores {error:.0e} off")

    bench.race(
        f"best {_BEST} of a library, {count} {'query' if count == 1 else 'queries'}",
        runners,
        lambda rng: _asked(clips, count, rng),
        judge,
        unit="query",
        items=count,
        parameters={"queries": count, "clips": len(clips), "beside": peer.name if peer else OURS},
        rounds=4 if count > 16 else None,
    )
    if peer is not None and not peer.exact and recalls:
        bench.constant(f"recall at {_BEST}: {peer.name}, {count}", float(np.mean(recalls)))


def _approximate(bench: Bench, clips: Halves, codes: Codes) -> None:
    """Race searches of parts of an approximate index with the exact one, and record their recall.

    Each query goes alone: many at once read most lists together.
    """
    if not FAISS.installed:
        bench.note("approximate indexes: not measured, because faiss-cpu is not installed")
        return
    begin = time.process_time()
    index = ApproximateIndex.of(clips)
    seconds = time.process_time() - begin
    bench.constant(f"approximate index of {len(clips):,} clips, processor seconds", seconds)
    names = {f"{OURS}, approximate {share:.0%}": share for share in _SHARES}
    recalls: dict[str, list[float]] = {name: [] for name in names}

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
        best = outputs[OURS]
        _require_exact(clips, inputs.astype(np.float16), best)
        for name in names:
            ((found,), (exact,)) = outputs[name].tolist(), best.rows.tolist()
            recalls[name].append(len({*found} & {*exact}) / _BEST)

    bench.race(
        f"best {_BEST} of a library, approximate, 1 query",
        [
            Runner(
                run=lambda queries: corpus(queries.astype(np.float16), clips, k=_BEST, codes=codes),
                work=Work(1.0 * clips.size, 2.0 * clips.size, "int8"),
            ),
            *(
                Runner(
                    name=name,
                    run=lambda queries, share=share: index.nearest(  # type: ignore[misc]
                        queries.astype(np.float16), _BEST, share
                    ),
                )
                for name, share in names.items()
            ),
        ],
        lambda rng: _asked(clips, 1, rng),
        judge,
        unit="query",
        parameters={"queries": 1, "clips": len(clips), "beside": "approximate"},
    )
    for name, values in recalls.items():
        bench.constant(f"recall at {_BEST}: {name}", float(np.mean(values)))


def _require_exact(clips: Halves, queries: Halves, found: Any) -> None:
    """Raise unless the first query's clips are right by products in float64.

    Their scores are exact, and of the first million clips none that is left out is better.
    """
    query = queries[0].astype(np.float64)
    scores, rows = found.scores[0], found.rows[0]
    error = float(np.abs(clips[rows].astype(np.float64) @ query - scores).max())
    require(error < _TOLERANCE, f"best of a library: scores {error:.0e} off")
    require(len(set(rows.tolist())) == _BEST, "best of a library: one clip twice")
    for first in range(0, min(len(clips), _RACED), 1 << 16):
        exact = clips[first : first + (1 << 16)].astype(np.float32).astype(np.float64) @ query
        better = first + np.flatnonzero(exact > scores[-1] + _TOLERANCE)
        require(bool(np.isin(better, rows).all()), "best of a library: a better clip is left out")


def _grow(bench: Bench, clips: Halves) -> None:
    """Search memory-mapped libraries of growing size for one query; record the memory."""
    for total in _GROWTH:
        total = bench.settings.scaled(total, _BEST)
        needed, free = 3 * DIM * total, shutil.disk_usage(bench.folder).free
        if needed > _DISK_SHARE * free:
            bench.note(
                f"{total:,} clips: not run, {needed / 2**30:.1f} GiB on disk of which "
                f"{free / 2**30:.1f} GiB are free"
            )
            continue
        rows, codes, files = _on_disk(bench.folder, clips, total)

        def judge(inputs: Any, outputs: Mapping[str, Any], rows: Halves = rows) -> None:
            _require_exact(rows, inputs.astype(np.float16), outputs[OURS])

        bench.race(
            "clips: the first stage, one query",
            [
                Runner(
                    run=lambda queries, rows=rows, codes=codes: corpus(  # type: ignore[misc]
                        queries.astype(np.float16), rows, k=_BEST, codes=codes
                    ),
                    work=Work(1.0 * rows.size, 2.0 * rows.size, "int8"),
                )
            ],
            lambda rng: _asked(clips, 1, rng),
            judge,
            unit="clip",
            items=total,
            parameters={"clips": total},
            rounds=4,
        )
        bench.constant(f"memory that is not in files, {total:,} clips, bytes", _anonymous())
        del rows, codes
        for path in files:
            path.unlink()


def _on_disk(folder: Path, clips: Halves, total: int) -> tuple[Halves, Codes, Sequence[Path]]:
    """Write a library of clips, each time with their numbers in another order, and map it."""
    few = clips[: 1 << 16]
    low, step = code_range(few)
    # All numbers have one scale, so that their order can change.
    high = (low + 255 * step).max()
    low = np.full_like(low, low.min())
    step = (high - low) / np.float32(255)
    blocks = list(code_blocks(few, low, step))
    made = np.concatenate([codes for _, codes, *_ in blocks])
    files = folder / "rows.f16", folder / "rows.u8"
    with files[0].open("wb") as rows_file, files[1].open("wb") as codes_file:
        for shift, first in enumerate(range(0, total, len(few))):
            some = slice(0, min(len(few), total - first))
            rows_file.write(np.roll(few[some], shift, axis=1).data.cast("B"))
            codes_file.write(np.roll(made[some], shift, axis=1).data.cast("B"))
    rows = np.memmap(files[0], np.float16, "r", shape=(total, DIM))
    mapped = np.memmap(files[1], np.uint8, "r", shape=(total, DIM))
    error, length = max(one[2] for one in blocks), max(one[3] for one in blocks)
    return rows, Codes(mapped, low, step, error, length), files


def _anonymous() -> float:
    """Return the bytes of this process's memory that lie in no file."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return 1024.0 * int(line.split()[1])
    return float("nan")
