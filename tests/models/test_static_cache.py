"""The static KV cache: equal results to the growing one, slots, and steps as CUDA graphs."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.tiny_llm import (
    CONFIGS,
    PREFIX_ERROR,
    RAGGED,
    VOCABULARY,
    prompts_of,
    write_tiny_llm,
    write_unchecked,
)
from helpers.tiny_vlm import IMAGE, frames_of, write_unchecked_vlm

from granalign_fast.errors import GranAlignError
from granalign_fast.files import sha256_of
from granalign_fast.models import language_model, static_cache
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.runtime.onnx_run import BoundRun
from granalign_fast.runtime.session import Session
from granalign_fast.runtime.session_loader import SessionLoader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unchecked(tmp_path_factory.mktemp("llm"), CONFIGS["llama-gqa-untied"])


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Mark sessions as capturable, which the CPU ignores; yield the numbers of captured graphs."""
    real_open, real_capture, graphs = language_model.open_session, BoundRun.capture, []

    def open_capturable(path: Path, *, capturable: bool = False, **options: Any) -> Session:
        session = real_open(path, **options)
        session.capturable = capturable
        return session

    def capture(self: BoundRun, graph: int) -> None:
        real_capture(self, graph)
        graphs.append(graph)

    monkeypatch.setattr(language_model, "open_session", open_capturable)
    monkeypatch.setattr(BoundRun, "capture", capture)
    yield graphs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_results_equal_those_of_a_growing_cache(tmp_path: Path, name: str, precision: str) -> None:
    out = write_unchecked(tmp_path, CONFIGS[name], precision=precision)
    growing, static = CausalLM(out), CausalLM(out, static_cache=True)
    start, *ends = prompts_of(23, *RAGGED)
    # Wide where weights are rounded: `test_rounding_costs_no_more_than_with_a_growing_cache` is
    # stricter for these precisions.
    error = {"fp32": 2e-5, "fp16": 5e-2, "int4": PREFIX_ERROR["int4"]}[precision]
    prefixes = [model.prefill(start) for model in (growing, static)]
    for one, other in zip(*(prefix.cache for prefix in prefixes), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=error)
    for prefix in prefixes:  # they have the same shape, so each model can use the other's
        actual, expected = (m.logits(ends, prefix=prefix) for m in (static, growing))
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=error)
    if precision == "fp32":  # where the nearest two tokens cannot swap
        for prefix in (prefixes[1], None):
            actual, expected = (
                model.generate(ends, prefix=prefix, max_new_tokens=40, stop_ids=())
                for model in (static, growing)
            )
            assert actual == expected


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_rounding_costs_no_more_than_with_a_growing_cache(
    tmp_path: Path, name: str, precision: str
) -> None:
    """Rounded weights change the results of both graphs much, but should do so equally.

    In fp16 the static graph's error is up to 1.19 times as large: it keeps sums in fp16, where the
    CPU computes the growing graph's sums in fp32.
    """
    prompts = prompts_of(*RAGGED, *RAGGED, 40, 3, 21, 9)
    exact = CausalLM(write_unchecked(tmp_path / "fp32", CONFIGS[name])).logits(prompts)
    out = write_unchecked(tmp_path / precision, CONFIGS[name], precision=precision)
    growing, static = (
        np.square(CausalLM(out, static_cache=kind).logits(prompts) - exact).mean() ** 0.5
        for kind in (False, True)
    )
    assert 0 < static < 1.25 * growing


def slots_of(model: CausalLM) -> Any:
    """Return the slots that a model's decoder keeps, by rows and capacity."""
    assert isinstance(model._decoder, static_cache.StaticDecoder)
    return model._decoder._slots


def test_tokens_around_a_multiple_of_the_capacity_step(folder: Path) -> None:
    """Prompts and answers that fill a capacity exactly, or exceed it by one token."""
    growing, static = CausalLM(folder), CausalLM(folder, static_cache=True)
    for length, new in ((250, 6), (250, 7), (251, 7), (1, 256), (256, 1), (257, 2)):
        prompts = prompts_of(length, 3)
        actual, expected = (
            model.generate(prompts, max_new_tokens=new, stop_ids=()) for model in (static, growing)
        )
        assert actual == expected


def test_frames(tmp_path: Path) -> None:
    out = write_unchecked_vlm(tmp_path)
    growing, static = (VisionLanguageModel(out, static_cache=kind) for kind in (False, True))
    before, ends = [5, 6, IMAGE, 7], prompts_of(4, 9, 2)
    prefixes = [model.prefill_frames(frames_of(3), before) for model in (growing, static)]
    np.testing.assert_allclose(prefixes[1].cache[-1], prefixes[0].cache[-1], atol=1e-5)
    actual, expected = (
        model.generate(ends, prefix=prefixes[1], max_new_tokens=12, stop_ids=())
        for model in (static, growing)
    )
    assert actual == expected
    logits = [model.logits(ends, prefix=prefixes[0]) for model in (static, growing)]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_rows_stop_by_themselves(folder: Path) -> None:
    growing, static = CausalLM(folder), CausalLM(folder, static_cache=True)
    prompts = prompts_of(*RAGGED)
    free = growing.generate(prompts, max_new_tokens=30, stop_ids=())
    for stops in ({free[0][0], free[1][3]}, range(300), {free[4][29]}):
        for every in (1, 8):
            static.look_every = every
            actual = static.generate(prompts, max_new_tokens=30, stop_ids=stops)
            assert actual == growing.generate(prompts, max_new_tokens=30, stop_ids=stops)


def test_threads_share_one(folder: Path) -> None:
    static = CausalLM(folder, static_cache=True)
    batches = [prompts_of(*lengths) for lengths in ((5, 9), (9, 5), (30, 2), (1, 1))]

    def generate(prompts: list[list[int]]) -> Any:
        return static.generate(prompts, prefix=prefix, max_new_tokens=9, stop_ids=())

    prefix = static.prefill(prompts_of(17)[0])
    expected = [generate(prompts) for prompts in batches]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(generate, batches * 4)) == expected * 4


def test_a_step_is_captured_when_its_shape_comes_again(folder: Path, capturing: list[int]) -> None:
    static = CausalLM(folder, static_cache=True)
    growing = CausalLM(folder)
    batches = {2: prompts_of(4, 9), 3: prompts_of(9, 1, 5), 1: prompts_of(7)}
    expected = {
        rows: growing.generate(prompts, max_new_tokens=20, stop_ids=())
        for rows, prompts in batches.items()
    }
    for rows, numbers in ((2, []), (3, []), (2, [1]), (2, [1]), (1, [1]), (3, [1, 2]), (2, [1, 2])):
        actual = static.generate(batches[rows], max_new_tokens=20, stop_ids=())
        assert actual == expected[rows]
        assert capturing == numbers and static.captured_graphs == len(numbers)
    for _ in range(2):  # without a decode step no slot is kept
        static.generate(prompts_of(4, 4, 4, 4), max_new_tokens=1)
        static.logits(prompts_of(4, 4))
    assert capturing == [1, 2]


def test_a_slot_without_a_step_is_not_captured(folder: Path, capturing: list[int]) -> None:
    static = CausalLM(folder, static_cache=True)
    static.look_every = 1
    prompts = prompts_of(4, 9)
    for _ in range(3):
        assert static.generate(prompts, max_new_tokens=5, stop_ids=range(320)) == [[], []]
    assert capturing == []
    for _ in range(2):
        static.generate(prompts, max_new_tokens=5, stop_ids=())
    assert capturing == [1]


def test_slots_are_evicted_by_number(
    folder: Path, capturing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_cache, "_MAX_SLOTS", 4)
    static = CausalLM(folder, static_cache=True)
    slots = slots_of(static)

    def generate(rows: int) -> None:
        static.generate(prompts_of(*[3] * rows), max_new_tokens=3, stop_ids=())

    def rows_in_slots() -> list[int]:
        return sorted(rows for rows, _ in slots)

    for rows in (1, 2, 1, 3, 4, 6):
        generate(rows)
    assert rows_in_slots() == [1, 3, 4, 6] and capturing == [1], (
        "the least recently used is evicted"
    )
    generate(5)  # rounded to 6
    assert rows_in_slots() == [1, 3, 4, 6] and capturing == [1, 2]
    monkeypatch.setattr(static_cache, "_MAX_GRAPHS", 2)
    for rows in (8, 12, 8, 12, 8, 16):
        generate(rows)
    assert capturing == [1, 2], "no capture is left, as ONNX Runtime never frees a graph"
    assert rows_in_slots() == [1, 6, 8, 16], "slots with a graph are not evicted"
    monkeypatch.setattr(static_cache, "_MAX_SLOTS", 2)
    del slots[8, 256], slots[16, 256]
    generate(8)
    assert rows_in_slots() == [1, 6]


def test_slots_are_evicted_by_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = CausalLM(folder, static_cache=True)
    slots = slots_of(static)

    def generate(rows: int) -> list[int]:
        static.generate(prompts_of(*[3] * rows), max_new_tokens=3, stop_ids=())
        return [rows for rows, _ in slots]

    generate(1), generate(2)
    row = slots[1, 256].nbytes
    assert row == sum(cache.nbytes for cache in slots[1, 256].cache)
    monkeypatch.setattr(static_cache, "_MAX_SLOT_BYTES", 4 * row)
    assert generate(1) == [2, 1] and generate(2) == [1, 2] and generate(3) == [3]
    assert generate(6) == [], "a slot above the limit is not kept"

    real_init, limit = static_cache._Slot.__init__, 3

    def limited_init(self: Any, context: Any, rows: int, capacity: int) -> None:
        if rows + sum(rows for rows, _ in slots) > limit:
            raise GranAlignError("GPU 0 failed (out of memory)")
        real_init(self, context, rows, capacity)

    monkeypatch.setattr(static_cache._Slot, "__init__", limited_init)
    assert generate(2) == [2] and generate(3) == [3], "memory of the other slot is freed"
    with pytest.raises(GranAlignError, match="out of memory"):
        generate(4)


def test_a_slot_is_zeroed_between_batches(folder: Path) -> None:
    """Attention multiplies unused positions by 0, which turns a NaN there into a wrong answer."""
    static, growing = (CausalLM(folder, static_cache=kind) for kind in (True, False))
    prompts = prompts_of(4, 9, 2)
    for _ in range(2):
        actual = static.generate(prompts, max_new_tokens=9, stop_ids=())
        assert actual == growing.generate(prompts, max_new_tokens=9, stop_ids=())
        (slot,) = slots_of(static).values()
        for cache in slot.cache:
            cache[...] = np.nan


def test_padding_repeats_a_token_of_its_row(tmp_path: Path) -> None:
    """A token whose embedding overflows spoils the rows that contain it, and no others."""
    write_tiny_llm(tmp_path / "source", CONFIGS["llama-gqa-untied"])
    prompts = prompts_of(*RAGGED)
    unused = sorted(set(range(VOCABULARY)) - {token for prompt in prompts for token in prompt})
    assert 0 in unused, "the obvious choice of a padding token must be one that overflows"
    out = write_unchecked(tmp_path)
    expected = CausalLM(out).logits(prompts)
    # An export refuses such a source, so the export itself is altered.
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    (table,) = (t for t in graph.initializer if t.name == "model.embed_tokens.weight")
    offset = {entry.key: entry.value for entry in table.external_data}["offset"]
    data = out / "model.onnx_data"
    np.memmap(data, np.float32, "r+", int(offset), tuple(table.dims))[unused] = np.inf
    record = json.loads((out / "manifest.json").read_text())
    record["files"][data.name] = sha256_of(data)
    (out / "manifest.json").write_text(json.dumps(record))
    for static in (False, True):
        actual = CausalLM(out, static_cache=static).logits(prompts)
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("static", [False, True])
def test_a_deleted_model_frees_its_memory_at_once(folder: Path, static: bool) -> None:
    """The next model is loaded into that memory, so the garbage collector would be too late."""
    gc.collect()
    gc.disable()
    try:
        model = CausalLM(folder, static_cache=static)
        for _ in range(2):
            model.generate(prompts_of(3, 4), max_new_tokens=3)
        refs = [weakref.ref(model._graph), weakref.ref(model._graph._run.session)]
        del model
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


def test_a_failed_capture_loads_the_model_again_without_graphs(
    folder: Path, capturing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    static = CausalLM(folder, static_cache=True)
    prompts = prompts_of(*RAGGED)
    expected = static.generate(prompts, max_new_tokens=9, stop_ids=())
    assert static.graphs_refused is None
    before = weakref.ref(static._graph._run.session)

    def load_without_memory(self: SessionLoader, graphs: bool = False) -> Any:
        raise GranAlignError("static.onnx: out of memory")

    def fail_to_capture(self: BoundRun, graph: int) -> None:
        raise GranAlignError("static.onnx: operation not permitted when stream is capturing")

    monkeypatch.setattr(BoundRun, "capture", fail_to_capture)
    load = SessionLoader.load
    monkeypatch.setattr(SessionLoader, "load", load_without_memory)
    for _ in range(2):
        with pytest.raises(GranAlignError, match="out of memory"):
            static.generate(prompts, max_new_tokens=9)
    monkeypatch.setattr(SessionLoader, "load", load)
    for _ in range(3):
        assert static.generate(prompts, max_new_tokens=9, stop_ids=()) == expected
        assert static.graphs_refused and "not permitted" in static.graphs_refused
    gc.collect()
    assert before() is None, "the weights are not in memory twice"
    assert static.captured_graphs == 0


def test_an_export_without_a_static_graph(tmp_path: Path) -> None:
    """Early exports and some of optimum's have none."""
    out = write_unchecked(tmp_path)
    record = json.loads((out / "manifest.json").read_text())
    del record["files"]["static.onnx"]
    (out / "manifest.json").write_text(json.dumps(record))
    (out / "static.onnx").unlink()
    with pytest.raises(GranAlignError, match=r"got no static.onnx, expected one") as error:
        CausalLM(out, static_cache=True)
    assert "\n" not in str(error.value)
    assert CausalLM(out).generate([[1, 2]], max_new_tokens=2)
