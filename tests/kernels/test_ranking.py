"""One sequence of launches for a workload: what it finds, and what it does not do on the way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy, reference
from helpers.devices import DEVICES, KernelDevice, emulated_hopper, on

from granalign_fast.bench.commands import kernels as bench
from granalign_fast.config import PRESETS
from granalign_fast.kernels import (
    Ranking,
    RankingRules,
    context,
    feedback,
    nms,
    proposals,
    similarity,
    warm_up,
)
from granalign_fast.kernels.launch import SOURCES, source

RULES = {
    "tuned": RankingRules(
        context=PRESETS["tuned"].context,
        power=1.5,
        feedback=PRESETS["tuned"].feedback,
        proposals=PRESETS["tuned"].proposals,
    ),
    "paper": RankingRules(proposals=PRESETS["paper"].proposals, threshold=0.5, top=3),
}
HALVES = [np.float32, np.float16]
# Float32 sums of 400 numbers, and a rescaling that makes up to ten times of a difference; the mean
# of a neighbourhood in half precision is rounded once more.
TOLERANCE = {np.float32: 1e-4, np.float16: 1e-2}

Batch = dict[str, Any]

SHAPES: dict[str, Any] = {  # lengths of the videos, the videos asked about, dim, variants
    "ragged": ([19, 0, 75, 1, 2], [2, 0, 1, 3, 2, 4], 33, (3, 2)),
    "one pair": ([75], [0], 384, (4, 3)),
    "an empty pair": ([0], [0], 8, (1, 0)),
    "only detailed": ([9, 40], [0, 1], 24, (0, 3)),
    "more variants than a warp holds": ([12, 40], [1, 0], 40, (9, 10)),
    "no pairs": ([5], [], 8, (2, 1)),
}


def make(seed: int, shape: Any, dtype: Any, aware_share: float = 0.3) -> Batch:
    """Scenes, of which the queries ask for one each."""
    lengths, videos, dim, counts = shape
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    scenes = rng.standard_normal((max(int(offsets[-1]), 1) // 6 + 2, dim))
    scene = np.sort(rng.integers(0, len(scenes), offsets[-1]))
    asked = scenes[rng.integers(0, len(scenes), len(videos)), None]
    total = sum(lengths[video] for video in videos)
    rows = np.full(total, -1, np.int32)
    chosen = np.flatnonzero(rng.random(total) < aware_share)
    rows[chosen] = rng.permutation(len(chosen))

    def unit(near: Any, *shape: int) -> Any:
        drawn = near + 0.7 * rng.standard_normal((*shape, dim))
        return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(dtype)

    return {
        "simplified": unit(asked, len(videos), counts[0]),
        "detailed": unit(asked, len(videos), counts[1]),
        "agnostic": unit(scenes[scene], int(offsets[-1])),
        "aware": unit(0, len(chosen)),
        "aware_rows": rows,
    }


def unguided(batch: Batch) -> Batch:
    return {name: a for name, a in batch.items() if "aware" not in name}


def made(there: KernelDevice, shape: Any, dtype: Any, rules: RankingRules, aware: int) -> Ranking:
    lengths, videos, dim, (simplified, detailed) = shape
    return Ranking(
        np.cumsum([0, *lengths]),
        videos=np.array(videos, np.int64),
        dim=dim,
        simplified=simplified,
        detailed=detailed,
        aware=aware,
        dtype=dtype,
        rules=rules,
        device=there.device,
    )


def ask(there: KernelDevice, ranking: Ranking, batch: Batch) -> tuple[Any, Any]:
    """Return copies of the moments and of the curves."""
    found = ranking(**{name: there.put(array) for name, array in batch.items()})
    return copied(there, found), copied(there, ranking.curves)


def copied(there: KernelDevice, columns: Any) -> Any:
    """Out of the memory that the next call overwrites."""
    return type(columns)(*map(np.array, there.get(columns)))


def separately(
    there: KernelDevice, shape: Any, batch: Batch, rules: RankingRules
) -> tuple[Any, Any]:
    """The same through the four functions."""
    given = {name: there.put(array) for name, array in batch.items()}
    offsets = np.cumsum([0, *shape[0]])
    if rules.context is not None:
        given["agnostic"] = context(given["agnostic"], offsets, rules=rules.context)
    given |= {"offsets": offsets, "videos": np.array(shape[1], np.int64)}
    curves = similarity(**given, power=rules.power)
    if rules.feedback is not None:
        moved = feedback(curves.variants, **given, rules=rules.feedback)
        if again := rules.feedback.context:
            given["second"] = context(given["agnostic"], offsets, rules=again, rescale=True)
        curves = similarity(**given | moved._asdict(), power=rules.power)
    found = proposals(curves.variants, curves.fused, curves.offsets, rules=rules.proposals)
    ranked = nms(*found, threshold=rules.threshold, top=rules.top)
    return copied(there, ranked), copied(there, curves)


def same(got: Any, expected: Any) -> None:
    for column, right in zip(got, expected, strict=True):
        np.testing.assert_array_equal(column, right)


def judge(found: Any, curves: Any, shape: Any, batch: Batch, rules: RankingRules) -> None:
    """Curves to a tolerance; from the very curves that were found on, moments to the bit."""
    lengths, videos, *_ = shape
    offsets, begin = np.cumsum([0, *lengths]), 0
    dtype = batch["agnostic"].dtype.type
    for pair, video in enumerate(videos):
        clips = batch["agnostic"][offsets[video] : offsets[video + 1]]
        end = begin + len(clips)
        mixed = reference.context(clips, rules.context) if rules.context else clips
        rows = batch["aware_rows"][begin:end] if "aware" in batch else np.full(len(clips), -1)
        aware = {f: batch["aware"][row] for f, row in enumerate(rows) if row >= 0}
        variants = batch["simplified"][pair], batch["detailed"][pair]
        want = reference.refined_curves(*variants, mixed, aware, rules.power, rules.feedback)
        own, fused = curves.variants[:, begin:end], curves.fused[begin:end]
        tolerance = TOLERANCE[dtype if rules.context else np.float32]
        np.testing.assert_allclose(own, reference.as_array(want, len(clips)), atol=tolerance)
        np.testing.assert_allclose(fused, reference.fused(want), atol=tolerance)
        candidates = reference.proposals(own.tolist(), fused.tolist(), rules.proposals)
        count = found.counts[pair]
        best = zip(*(column[pair, :count].tolist() for column in found[:3]), strict=True)
        assert list(best) == reference.nms(candidates, rules.threshold, rules.top)
        assert np.isneginf(found.scores[pair, count:]).all()
        begin = end


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_calls_equal_the_functions_and_the_reference(
    device: str, dtype: Any, rules: RankingRules, shape: Any
) -> None:
    """Recorded or not, with other inputs each time, with aware captions and without."""
    batches = [make(seed, shape, dtype) for seed in (1, 2)]
    batches.append(unguided(make(3, shape, dtype)))
    with on(device) as there:
        most = max(len(batch.get("aware", ())) for batch in batches)
        ranking = made(there, shape, dtype, rules, most)
        results = [ask(there, ranking, batch) for batch in batches]
        inputs = ranking.capture()
        assert (inputs is None) == (device == "numpy")
        assert ranking.capture() is inputs
        for batch, (found, curves) in zip(batches, results, strict=True):
            judge(found, curves, shape, batch, rules)
            same((*found, *curves), sum(separately(there, shape, batch, rules), ()))
        for number in (0, 2, 1):  # with aware captions, without, with others
            same(sum(results[number], ()), sum(ask(there, ranking, batches[number]), ()))


@pytest.mark.parametrize("device", DEVICES[1:])
def test_what_is_written_into_the_inputs_counts(device: str) -> None:
    shape, rules = SHAPES["ragged"], RULES["tuned"]
    first, second = (make(seed, shape, np.float16) for seed in (4, 5))
    with on(device) as there:
        ranking = made(there, shape, np.float16, rules, 200)
        expected, _ = ask(there, ranking, second)
        inputs = ranking.capture()
        assert inputs is not None
        ask(there, ranking, first)
        inputs.agnostic[...] = there.put(second["agnostic"])
        given = {name: there.put(array) for name, array in second.items()}
        same(there.get(ranking(**given | {"agnostic": inputs.agnostic})), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_what_is_not_a_number_is_not_ranked(device: str, rules: RankingRules) -> None:
    shape = ([20, 30, 9], [0, 1, 1, 2], 12, (2, 1))
    batch = unguided(make(6, shape, np.float32))
    with on(device) as there:
        ranking = made(there, shape, np.float32, rules, 0)
        expected, _ = ask(there, ranking, batch)
        batch["agnostic"][25, 3] = np.nan  # of video 1
        found, curves = ask(there, ranking, batch)
    assert found.counts.tolist() == [expected.counts[0], 0, 0, expected.counts[3]]
    same([c[[0, 3]] for c in found], [c[[0, 3]] for c in expected])
    assert np.isnan(curves.fused[[20 + 5, 20 + 30 + 5]]).all()
    assert not np.isnan(curves.fused[:20]).any() and not np.isnan(curves.fused[-9:]).any()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """CuPy's stand-in in its place, its kernels emulated."""
    with emulated_hopper(monkeypatch, tmp_path) as found:
        yield found


def forbid_all_but_launches(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a call uploads, allocates and waits for nothing")

    for owner, name in (
        (cupy, "empty"),
        (cupy, "asarray"),
        (cupy.ndarray, "get"),
        (cupy.ndarray, "set"),
        (cupy.ndarray, "copy"),
        (cupy.Stream, "synchronize"),
        (cupy.Event, "synchronize"),
    ):
        monkeypatch.setattr(owner, name, forbidden)


CHAINS = {"paper": ["cosines", "rescale", "proposals", "nms"]}
CHAINS["tuned"] = ["context", "cosines", "rescale", "feedback", "context", "cosines"]
CHAINS["tuned"] += CHAINS["paper"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_call_does_nothing_but_launch(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str, dtype: Any
) -> None:
    rules, chain = RULES[name], [f"run {kernel}" for kernel in CHAINS[name]]
    shape, log = SHAPES["ragged"], cupy.LOG
    there = KernelDevice("cuda", lambda a: cupy.asarray(a), lambda t: tuple(np.array(c) for c in t))
    batches = [make(seed, shape, dtype) for seed in (7, 8)]
    on_gpu = [{name: cupy.asarray(array) for name, array in b.items()} for b in batches]
    expected = [separately(there, shape, batch, rules) for batch in batches]
    ranking = made(there, shape, dtype, rules, max(len(b["aware"]) for b in batches))

    with monkeypatch.context() as patch:
        forbid_all_but_launches(cupy, patch)
        for batch, (found, curves) in zip(on_gpu, expected, strict=True):
            log.clear()
            same((*ranking(**batch), *ranking.curves), (*found, *curves))
            assert log == chain

    log.clear()
    inputs = ranking.capture()
    # Run once to compile, not while it is captured, and once as it was.
    assert log == ["copy", *chain, "capture", "launch 0", *chain]
    with monkeypatch.context() as patch:
        forbid_all_but_launches(cupy, patch)
        with cupy.Stream() as mine:
            for batch, (found, curves) in zip(on_gpu, expected, strict=True):
                log.clear()
                same((*ranking(**batch), *ranking.curves), (*found, *curves))
                assert log == ["copy"] * 5 + [f"launch {mine.ptr}", *chain]
            log.clear()
            ranking(**inputs._asdict())
            assert log == [f"launch {mine.ptr}", *chain]  # what is there is not copied


@pytest.mark.parametrize("dtype", HALVES)
def test_warming_up_compiles_all_that_there_is(cupy: Any, dtype: Any, tmp_path: Path) -> None:
    compiled = []

    class Recorded(fake_cupy.RawModule):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            text = self.code.partition("\n// --std")[0]  # what is loaded has options at its end
            compiled.append((text, "-DGRANALIGN_HALF" in self.options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_cupy, "RawModule", Recorded)
        warm_up(dtype)
        half = dtype == np.float16
        embedded = {"context", "similarity", "feedback", "corpus", "corpus_many"}
        families = {path.stem for path in SOURCES.glob("*.cu")}
        families -= set() if half else {"corpus_sm90"}
        assert sorted(compiled) == sorted((source(f), half and f in embedded) for f in families)
        compiled.clear()
        warm_up(dtype)
        assert not compiled


def test_warming_up_a_cpu_is_nothing() -> None:
    warm_up(device="cpu")


def test_a_gpu_without_cupy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"granalign-fast\[cuda\]"):
        Ranking([0, 1], dim=1, simplified=1, device="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [0, 2, 1]}, "goes backwards at 1"),
        ({"offsets": []}, "offsets: got 1-d, empty"),
        ({"videos": [2]}, "videos: got 2 to 2, expected 0 to 1"),
        ({"simplified": 0}, "at least one"),
        ({"detailed": -1}, "at least one"),
        ({"dim": 0}, "dim, aware: got 0, 0"),
        ({"aware": -1}, "dim, aware: got 4, -1"),
        ({"dtype": np.float64}, "dtype: got float64"),
        ({"device": "gpu"}, "device: got 'gpu', expected 'cpu' or 'cuda'"),
    ],
)
def test_a_workload_that_cannot_be_is_named(change: Batch, message: str) -> None:
    arguments: Batch = {"offsets": [0, 2, 5], "dim": 4, "simplified": 2}
    with pytest.raises(ValueError, match=message):
        Ranking(**arguments | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"power": 11.0}, "power: got 11"),
        ({"threshold": 0.0}, "threshold: got 0"),
        ({"top": 0}, "top: got 0"),
    ],
)
def test_rules_that_cannot_be_are_named(change: Batch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RankingRules(), **change)


ZEROS: Batch = {
    "simplified": np.zeros((1, 2, 4), np.float32),
    "detailed": np.zeros((1, 1, 4), np.float32),
    "agnostic": np.zeros((5, 4), np.float32),
    "aware": np.zeros((3, 4), np.float32),
    "aware_rows": np.full(5, -1, np.int32),
}


@pytest.mark.parametrize("device", ["numpy", "emulated"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"simplified": ZEROS["simplified"][:, :1]}, r"simplified: got shape \(1, 1, 4\)"),
        ({"simplified": ZEROS["simplified"].astype(np.float16)}, "simplified: got dtype float16"),
        ({"agnostic": np.zeros((4, 4), np.float32)}, r"agnostic: got shape \(4, 4\), expected"),
        ({"detailed": None}, r"detailed: got none, expected shape \(1, 1, 4\)"),
        ({"detailed": np.zeros((1, 2, 4), np.float32)}, r"detailed: got shape"),
        ({"aware": np.zeros((4, 4), np.float32)}, "aware: got 4 captions, expected at most 3"),
        ({"aware": None}, "expected both or neither"),
        ({"aware_rows": np.zeros(4, np.int32)}, "aware_rows: got shape"),
        ({"aware_rows": np.zeros(5, np.int64)}, "aware_rows: got dtype int64"),
    ],
)
def test_arrays_that_do_not_fit_are_named(device: str, change: Batch, message: str) -> None:
    with on(device) as there:
        ranking = made(there, ([5], [0], 4, (2, 1)), np.float32, RankingRules(), 3)
        ranking(**ZEROS)
        with pytest.raises(ValueError, match=message):
            ranking(**ZEROS | change)


def test_arrays_of_the_other_device_are_refused(cupy: Any) -> None:
    rankings = [Ranking([0, 1], dim=1, simplified=1, device=d) for d in ("cpu", "cuda")]
    one = np.ones((1, 1), np.float32)
    with pytest.raises(TypeError, match="got arrays from NumPy, expected CuPy"):
        rankings[1](one[None], one)
    with pytest.raises(TypeError, match="got arrays from CuPy, expected NumPy"):
        rankings[0](cupy.asarray(one[None]), cupy.asarray(one))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_benchmark_runs_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    out = tmp_path / "kernels.json"
    options = ["--queries", "3", "--dim", "16", "--rounds", "1", "--dtype", dtype]
    monkeypatch.setattr(sys, "argv", ["kernels", *options, "--json", str(out)])
    bench.main()
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [r["queries"] for r in record["rankings"]] == [1, 3]
    assert all(r["seconds"] > 0 for r in record["rankings"])
